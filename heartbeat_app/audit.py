"""The books held against Kafka's log: lag, and what cannot be right. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from heartbeat_app.kafka import LogRange, TopicLog
from heartbeat_app.storage.books import Books, PartitionBooks


@dataclass(frozen=True, slots=True)
class Line:
    """A partition, in the books or in Kafka or in both.

    Attributes:
        books: None where nothing of it was read yet.
        log: None where Kafka has it no more (the topic was deleted, or made again
            under another id), or could not be asked.
    """

    topic: str
    topic_id: str
    partition: int
    books: PartitionBooks | None
    log: LogRange | None

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] (topic id {self.topic_id})"

    @property
    def lag(self) -> int | None:
        """How many offsets are still to be read; None where Kafka does not tell."""
        if self.log is None:
            return None
        return self.log.unread(self._next_offset)

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
    """

    books: Books
    lines: Sequence[Line]
    problems: Sequence[str]
    warnings: Sequence[str]
    complete: bool

    @property
    def lag(self) -> int | None:
        """The sum over the topics that Kafka has; None where it was not asked."""
        if not self.complete:
            return None
        return sum(line.lag or 0 for line in self.lines)


def audit(books: Books, topic: str, logs: Mapping[str, TopicLog] | None) -> Audit:
    """Hold the books against the logs.

    The logs must have been looked up after the books were read: then a worker that
    goes on meanwhile can only make them longer.

    Arguments:
        topic: The topic that the beats come from now.
        logs: By name, as far as they exist, that topic and those that the books know
            from earlier; None: Kafka could not be asked.
    """
    lines = list(_lines(books, logs or {}))
    return Audit(
        books,
        lines,
        problems=[*books.problems, *_problems(lines, logs or {})],
        warnings=list(_warnings(lines, topic, logs)),
        complete=logs is not None,
    )


def _lines(books: Books, logs: Mapping[str, TopicLog]) -> Iterator[Line]:
    booked = set()
    for each in books.partitions:
        booked.add((each.topic_id, each.partition))
        log = logs.get(each.topic)
        found = None
        if log is not None and log.topic_id == each.topic_id:
            found = log.partitions.get(each.partition)
        yield Line(each.topic, each.topic_id, each.partition, each, found)
    for log in logs.values():
        for partition, found in sorted(log.partitions.items()):
            if (log.topic_id, partition) not in booked:
                yield Line(log.topic, log.topic_id, partition, None, found)


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
        if line.books and line.books.missing:
            yield (
                f"{line}: {line.books.missing:,} records are missing: they fell out "
                "of the log before they were read."
            )
    if logs is not None and topic not in logs:
        yield f"Kafka has no topic {topic} (HEARTBEATS_TOPIC)."
