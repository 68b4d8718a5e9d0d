"""The books held against Kafka's log: lag, and what cannot be right. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from heartbeat_app.audit.deep import DeepAudit
from heartbeat_app.kafka.client import LogRange, TopicLog
from heartbeat_app.storage.read.books import Books, PartitionBooks


@dataclass(frozen=True, slots=True)
class Line:
    """A partition, in the books or in Kafka or in both.

    Attributes:
        books: None where nothing of it was read yet.
        log: None where Kafka has it no more (the topic was deleted, or made again
            under another id), or could not be asked.
        end: Where its log ended before the books were read, if that is known: what
            came later is no lag.
        is_read: Whether the beats come from there now.
    """

    topic: str
    topic_id: str
    partition: int
    books: PartitionBooks | None
    log: LogRange | None
    end: int | None = None
    is_read: bool = True

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] (topic id {self.topic_id})"

    @property
    def lag(self) -> int | None:
        """How many offsets are still to be read; None where Kafka does not tell."""
        if self.log is None:
            return None
        end = self.log.end if self.end is None else min(self.end, self.log.end)
        return LogRange(self.log.begin, end).unread(self._next_offset)

    @property
    def fell_out(self) -> int:
        """How many offsets are no more in the log and were never read."""
        if self.log is None or self.books is None:
            return 0
        return max(0, self.log.begin - self._next_offset)

    @property
    def beyond(self) -> int:
        """By how many offsets the books are ahead of the log's end."""
        return max(0, self._next_offset - self.log.end) if self.log else 0

    @property
    def _next_offset(self) -> int:
        return self.books.next_offset if self.books else 0


@dataclass(frozen=True, slots=True)
class Audit:
    """What the books and Kafka say together.

    Attributes:
        problems: What does not add up: the books do not balance.
        warnings: What adds up and is bad all the same.
        complete: Whether Kafka could be asked.
        deep: What came of Kafka's records, if they were compared.
    """

    books: Books
    lines: Sequence[Line]
    problems: Sequence[str]
    warnings: Sequence[str]
    complete: bool
    deep: DeepAudit | None = None

    @property
    def lag(self) -> int | None:
        """The sum over the topic that is read; None where Kafka was not asked."""
        if not self.complete:
            return None
        return sum(line.lag or 0 for line in self.lines if line.is_read)


def audit(
    books: Books,
    topic: str,
    logs: Mapping[str, TopicLog] | None,
    *,
    before: Mapping[str, TopicLog] | None = None,
    faults: Iterable[object] = (),
    deep: DeepAudit | None = None,
) -> Audit:
    """Hold the books against the logs.

    Arguments:
        topic: The topic that the beats come from now.
        logs: By name, as far as they exist, that topic and those that the books know
            from earlier, looked up after the books were read: then a worker that goes
            on meanwhile can only make them longer. None: Kafka could not be asked.
        before: The same, looked up before the books were read: then what a worker
            stores meanwhile is no lag.
        faults: What of the topic's settings does not suit.
        deep: What came of Kafka's records, if they were compared.
    """
    lines = list(_lines(books, topic, logs or {}, before or {}))
    return Audit(
        books,
        lines,
        problems=[
            *books.problems,
            *_problems(lines, logs or {}),
            *(deep.problems(books.rows) if deep else ()),
        ],
        warnings=[*map(str, faults), *_warnings(lines, topic, logs)],
        complete=logs is not None,
        deep=deep,
    )


def _lines(
    books: Books,
    topic: str,
    logs: Mapping[str, TopicLog],
    before: Mapping[str, TopicLog],
) -> Iterator[Line]:
    rows = {(each.topic_id, each.partition): each for each in books.partitions}
    keys = [(each.topic, *key) for key, each in rows.items()]
    keys += [
        (log.topic, log.topic_id, partition)
        for log in logs.values()
        for partition in sorted(log.partitions)
        if (log.topic_id, partition) not in rows
    ]
    for name, topic_id, partition in keys:
        earlier = _range(before, name, topic_id, partition)
        now = logs.get(name)
        yield Line(
            name,
            topic_id,
            partition,
            rows.get((topic_id, partition)),
            _range(logs, name, topic_id, partition),
            None if earlier is None else earlier.end,
            is_read=name == topic and (now is None or now.topic_id == topic_id),
        )


def _range(
    logs: Mapping[str, TopicLog], topic: str, topic_id: str, partition: int
) -> LogRange | None:
    log = logs.get(topic)
    if log is None or log.topic_id != topic_id:
        return None
    return log.partitions.get(partition)


def _problems(lines: Sequence[Line], logs: Mapping[str, TopicLog]) -> Iterator[str]:
    for line in lines:
        log = logs.get(line.topic)
        if log is not None and log.topic_id == line.topic_id and line.log is None:
            yield f"{line}: it is in the books, but the topic has no such partition."
        if line.beyond and line.books and line.log:
            yield (
                f"{line}: the next offset is {line.books.next_offset:,}, but the log "
                f"ends at {line.log.end:,}; off by {line.beyond:+,}. Kafka lost "
                "records that were stored (an unclean election, a restored broker?)."
            )


def _warnings(
    lines: Sequence[Line], topic: str, logs: Mapping[str, TopicLog] | None
) -> Iterator[str]:
    for line in lines:
        if line.fell_out:
            yield (
                f"{line}: {line.fell_out:,} offsets fell out of the log before they "
                "were read; a worker will count them as missing."
            )
        if line.lag and not line.is_read:
            yield (
                f"{line}: it is no longer read (HEARTBEATS_TOPIC is {topic}), and "
                f"{line.lag:,} of its records were never read."
            )
        if line.books and line.books.missing:
            yield (
                f"{line}: {line.books.missing:,} records are missing: they fell out "
                "of the log before they were read."
            )
    if logs is not None and topic not in logs:
        yield f"Kafka has no topic {topic} (HEARTBEATS_TOPIC)."
