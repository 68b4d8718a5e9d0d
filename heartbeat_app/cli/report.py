"""What the commands print: words and tables for people, JSON for programs. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date, datetime
from typing import Any

from heartbeat_app.audit.deep import DeepAudit
from heartbeat_app.audit.findings import Audit, Line
from heartbeat_app.cli.exporting import Exported
from heartbeat_app.cli.sending import Tally
from heartbeat_app.domain.excerpts import KEPT_BYTES
from heartbeat_app.exceptions import printable
from heartbeat_app.kafka.client import TopicLog
from heartbeat_app.storage.days.partitions import Day, Partitions
from heartbeat_app.storage.operator.erase import Erasure
from heartbeat_app.storage.operator.replay import STORED, Replayed
from heartbeat_app.storage.read.books import PartitionBooks, Total
from heartbeat_app.storage.write.dead_letters import Contents, Letter

# Of a value, for a person; --json gives all of it.
SHOWN_BYTES = 4096
BYTES_A_LINE = 16


# send


def sending(tally: Tally) -> str:
    """How far it is."""
    words = f"{_beats(tally.acknowledged)} acknowledged"
    if tally.bad_lines:
        words += f", {_lines(tally.bad_lines)} passed over"
    if tally.trouble:
        words += f"; Kafka: {tally.trouble}"
    return words


def sent(tally: Tally, topic: str) -> str:
    """What came of it; the last line on standard output."""
    words = f"Kafka acknowledged {_beats(tally.acknowledged)} in {topic}."
    if tally.bad_lines:
        words += f" Passed over {_lines(tally.bad_lines)}."
    if tally.stopped_by is not None:
        words = f"Stopped. {words}"
        if tally.withdrawn:
            words += f" {_beats(tally.withdrawn)} did not leave any more."
        if tally.unknown:
            words += f" {_beats(tally.unknown)} may have arrived or not."
        words += " Sending all again stores nothing twice."
    return words


def sending_problem(tally: Tally) -> str | None:
    """Why the command failed; None if it did not."""
    problems = []
    if tally.failed:
        kinds = "; ".join(
            f"{error} ({count:,})" for error, count in tally.failed.most_common()
        )
        problems.append(
            f"{_beats(tally.failed.total())} of {tally.sent:,} "
            f"{_was(tally.failed.total())} not acknowledged: {kinds}. "
            "Sending all again stores nothing twice."
        )
    if tally.stopped_at is not None:
        problems.append(
            f"{tally.stopped_at}\nStopped there; {_beats(tally.acknowledged)} before "
            f"it {_was(tally.acknowledged)} acknowledged. Mend the line and send all "
            "again, which stores nothing twice; or pass over bad lines with --skip-bad."
        )
    return "\n".join(problems) or None


# export


def exported(result: Exported, path: str) -> str:
    """What came of it; the last line, on standard error where the beats are not."""
    to_stream = path == "-"
    where = "standard output" if to_stream else path
    if result.stopped_by is None:
        return f"Wrote {_beats(result.beats)} to {where}."
    if to_stream:
        return f"Stopped after {_beats(result.beats)} on standard output."
    return f"Stopped after {_beats(result.beats)}. Nothing was kept: no {where}."


def _beats(number: int) -> str:
    return _many(number, "beat")


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _lines(number: int) -> str:
    return _many(number, "bad line")


# erase


def erasing(so_far: Erasure) -> str:
    """How far it is."""
    return f"{so_far.done:,} of {so_far.total:,} days and dead letters"


def erasure_stopped(*, noted: bool) -> str:
    """What a person may rely on after an erasure was broken off.

    Where it was not noted yet, an earlier one may have noted the same customer.
    """
    if noted:
        return (
            "Stopped. What was removed is gone, and nothing of the customer is stored "
            "any more. Run it again to remove the rest."
        )
    return (
        "Stopped before it began: nothing was removed, and beats of the customer may "
        "still be stored. Run it again to remove them."
    )


def erased(result: Erasure) -> str:
    """What was removed, and what a person still has to look at."""
    words = (
        f"Erased {_beats(result.beats)}, {_many(result.rollups, 'roll-up')} and the "
        f"contents of {_many(result.letters, 'dead letter')}; noted as number "
        f"{result.id} in erased_customers, without the name."
    )
    if result.elsewhere:
        words += (
            f"\n{_many(len(result.elsewhere), 'dead letter')} may name the customer; "
            "look at them with `heartbeat_app dead-letters show ID`: "
            f"{_ids(result.elsewhere)}"
        )
    if result.unreadable:
        words += (
            f"\n{_many(len(result.unreadable), 'dead letter')} cannot be looked into "
            "(compressed, encrypted, UTF-16, another binary form, or only a part was "
            f"kept), and may name the customer: {_ids(result.unreadable)}"
        )
    if result.shares:
        words += (
            "\nThe roll-ups of all customers together keep the customer's share of "
            f"{_many(result.shares, 'dropped day')}: in their sums, and the lowest or "
            "highest heart rate of a minute or an hour may be the customer's. They "
            "name nobody; see docs/explanation/security.md."
        )
    return words


def _ids(ids: Sequence[int]) -> str:
    """All of them: a person has to look at each."""
    return ", ".join(map(str, ids))


def still_in_kafka(topic: str, log: TopicLog | None, config: Mapping[str, str]) -> str:
    """What of a customer may still be there, and for how long."""
    if log is None:
        return f"Kafka has no topic {topic}, so nothing of the customer is in it."
    records = sum(each.end - each.begin for each in log.partitions.values())
    milliseconds = int(config.get("retention.ms", -1))
    if "delete" not in config.get("cleanup.policy", "delete") or milliseconds < 0:
        until = "for ever: its configuration deletes nothing by age"
    else:
        days = milliseconds / 86_400_000
        until = f"until they are {days:g} days old (retention.ms)"
    return (
        f"Kafka keeps the records of topic {topic} ({records:,} now, the customer's "
        f"among them) {until}. Workers refuse the customer's, also when all are read "
        "again."
    )


ERASE_ELSEWHERE = (
    "Backups, exports and logs are not touched. After a restore of a backup that is "
    "older than this, run it again."
)


# books


def books_table(audit: Audit) -> str:
    """One table a topic id, and the sums."""
    head = (
        "partition", "first", "next", "consumed", "stored", "duplicate", "dead",
        "missing", "gap", "unreadable", "lag",
    )  # fmt: skip
    parts: list[str] = []
    by_topic: dict[tuple[str, str], list[Line]] = {}
    for line in audit.lines:
        by_topic.setdefault((line.topic, line.topic_id), []).append(line)
    for (topic, topic_id), lines in by_topic.items():
        no_longer = "" if lines[0].is_read else ", no longer read"
        parts.append(f"Topic {topic} (id {topic_id}){no_longer}")
        parts.append(_columns([head, *map(_books_row, lines)]))
    total = audit.books.total
    if len(audit.lines) > 1:
        sums = (
            "all", "", "", total.consumed, total.stored, total.duplicate, total.dead,
            total.missing, total.gap, total.unreadable, audit.lag,
        )  # fmt: skip
        parts.append("In all")
        parts.append(_columns([head, sums]))
    if not audit.lines:
        parts.append("Nothing was read yet.")
    rows = audit.books.rows
    if rows is not None:
        words = f"{_many(rows.counted, 'row')} in heartbeats"
        if rows.dropped:
            words += f"; {rows.dropped:,} more were dropped by the retention"
        words += f", {rows.replayed:,} of them stored by replay."
        if rows.erased:
            words += f" {_many(rows.erased, 'row')} went with erased customers."
        parts.append(words)
    if audit.deep is not None:
        parts.append(_deep_table(audit.deep))
    return "\n".join(parts)


def _deep_table(deep: DeepAudit) -> str:
    head = (
        "topic", "partition", "verified", "beats", "rejected", "transactions",
        "not verifiable",
    )  # fmt: skip
    rows = [
        (f"{each.books.topic} ({each.books.topic_id})", each.books.partition,
         each.verified, each.beats, each.rejected, each.transactions,
         each.not_verifiable)
        for each in deep.partitions
    ]  # fmt: skip
    words = f"Kafka was read again: {deep.verified:,} offsets were verified."
    if deep.not_verifiable:
        words += (
            f" Not verifiable are {deep.not_verifiable:,}: Kafka no longer has them, "
            "or has nothing there that can be read."
        )
    return f"Compared with Kafka\n{_columns([head, *rows])}\n{words}"


def _books_row(line: Line) -> tuple[object, ...]:
    books = line.books
    if books is None:
        return (line.partition, *[""] * 9, line.lag)
    return (
        line.partition,
        books.first_offset,
        books.next_offset,
        books.consumed,
        books.stored,
        books.duplicate,
        books.dead,
        books.missing,
        books.gap,
        books.unreadable,
        line.lag,
    )


def balance(audit: Audit) -> str:
    """That the books balance: the last line on standard output."""
    return f"The books balance: {_sums(audit.books.total)}; lag {audit.lag or 0:,}."


def imbalance(audit: Audit, trouble: str | None) -> str:
    """That they do not, and which partition is off by how much."""
    problems = [*audit.problems, *([trouble] if trouble else [])]
    return "The books do not balance:\n  " + "\n  ".join(problems)


def _sums(total: Total) -> str:
    return (
        f"{total.consumed:,} consumed = {total.stored:,} stored + "
        f"{total.duplicate:,} duplicate + {total.dead:,} dead"
    )


def books_json(audit: Audit, trouble: str | None) -> str:
    """Everything that the table says."""
    rows = audit.books.rows
    return _json(
        {
            "balanced": not audit.problems,
            "problems": list(audit.problems),
            "warnings": list(audit.warnings),
            "kafka_checked": audit.complete,
            "kafka_error": trouble,
            "total": {
                **asdict(audit.books.total),
                "lag": audit.lag,
                "rows": rows.counted if rows else None,
                "replayed": rows.replayed if rows else None,
                "dropped": rows.dropped if rows else None,
                "erased": rows.erased if rows else None,
            },
            "partitions": [_line_json(line) for line in audit.lines],
            "compared": None if audit.deep is None else _deep_json(audit.deep),
        }
    )


def _deep_json(deep: DeepAudit) -> dict[str, object]:
    return {
        "verified": deep.verified,
        "not_verifiable": deep.not_verifiable,
        "rows": deep.rows,
        "partitions": [
            {
                "topic": each.books.topic,
                "topic_id": each.books.topic_id,
                "partition": each.books.partition,
                "verified": each.verified,
                "beats": each.beats,
                "rejected": each.rejected,
                "transactions": each.transactions,
                "not_verifiable": each.not_verifiable,
            }
            for each in deep.partitions
        ],
    }


def _line_json(line: Line) -> dict[str, object]:
    nothing = dict.fromkeys(PartitionBooks.__dataclass_fields__)
    return {
        **(asdict(line.books) if line.books else nothing),
        "topic": line.topic,
        "topic_id": line.topic_id,
        "partition": line.partition,
        "log_begin": line.log.begin if line.log else None,
        "log_end": line.log.end if line.log else None,
        "lag": line.lag,
        "is_read": line.is_read,
    }


# partitions


def partitions_table(found: Partitions) -> str:
    """The days, the months of roll-ups, and what was dropped."""
    if not found.days and not found.dropped_days:
        return "There are no days yet."
    parts = []
    if found.days:
        head = ("day", "rows about", "size", "rolled up", "state", "dropped on")
        rows = [
            (day.day, day.rows, _size(day.bytes), day.rolled_up, _state(day),
             day.drop_on or "never")
            for day in found.days
        ]  # fmt: skip
        parts.append(_columns([head, *rows]))
    if found.months:
        head_of_months = ("roll-ups", "month", "rows about", "size", "dropped on")
        months = [
            (month.table, f"{month.month:%Y-%m}", month.rows, _size(month.bytes),
             month.drop_on or "never")
            for month in found.months
        ]  # fmt: skip
        parts.append(_columns([head_of_months, *months]))
    size = sum(day.bytes for day in found.days)
    size += sum(month.bytes for month in found.months)
    words = f"{_many(len(found.days), 'day')}, {_size(size)} with roll-ups."
    if found.dropped_days:
        words += (
            f" Dropped by the retention: {_many(found.dropped_days, 'day')} with "
            f"{_beats(found.dropped_rows)}."
        )
    if found.leaving:
        words += f" Being dropped: {', '.join(map(str, found.leaving))}."
    return "\n\n".join([*parts, words])


def _state(day: Day) -> str:
    if day.marked_minutes:
        return f"{_many(day.marked_minutes, 'minute')} to roll up"
    return "rolled up"


def _size(count: int) -> str:
    """Bytes for a person, in powers of 1,000."""
    if count < 1_000_000:
        return f"{count / 1e3:.0f} kB"
    if count < 1_000_000_000:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:,.1f} GB"


def partitions_json(found: Partitions) -> str:
    """Everything that the tables say."""
    return _json(
        {
            "days": [
                {**asdict(day), "rolled_up_completely": not day.marked_minutes}
                for day in found.days
            ],
            "rollup_months": [asdict(month) for month in found.months],
            "dropped_days": found.dropped_days,
            "dropped_rows": found.dropped_rows,
            "leaving": list(found.leaving),
        }
    )


# dead-letters


def letters_table(letters: Sequence[Letter], counts: Mapping[str, int]) -> str:
    """The letters, and how many there are of each reason."""
    if not counts:
        return "There are no dead letters."
    head = ("id", "first seen", "record", "reason", "replay", "detail")
    rows = [
        (
            str(letter.id),
            _instant(letter.first_seen),
            _where(letter),
            letter.reason,
            letter.replay_outcome or "-",
            escaped(letter.detail),
        )
        for letter in letters
    ]
    kinds = ", ".join(f"{number:,} {reason}" for reason, number in counts.items())
    all_letters = _many(sum(counts.values()), "dead letter")
    return f"{_columns([head, *rows])}\n{len(letters):,} of {all_letters}: {kinds}."


def letters_json(letters: Sequence[Letter], counts: Mapping[str, int]) -> str:
    """The same; contents are left to `show`."""
    return _json({"counts": counts, "letters": [asdict(each) for each in letters]})


def letter_text(letter: Letter, contents: Contents) -> str:
    """A letter whole; nothing in it reaches the terminal as a control character."""
    replay = "never"
    if letter.replayed_at is not None:
        replay = f"{_instant(letter.replayed_at)}: {letter.replay_outcome}"
    headers = contents.headers or []
    return "\n".join(
        [
            f"id          {letter.id}",
            f"record      {_where(letter)}",
            f"topic id    {letter.topic_id}",
            f"first seen  {_instant(letter.first_seen)}",
            f"reason      {letter.reason}",
            f"detail      {escaped(letter.detail)}",
            f"replayed    {replay}",
            *_excerpt(letter),
            f"headers     {escaped(json.dumps(headers, ensure_ascii=False))}",
            f"key         {_bytes_text(contents.key)}",
            f"value       {_bytes_text(contents.value)}",
        ]
    )


def _where(letter: Letter) -> str:
    words = f"{letter.topic}[{letter.partition}]@{letter.offset}"
    return words if letter.last_offset is None else f"{words}-{letter.last_offset}"


def _excerpt(letter: Letter) -> Iterator[str]:
    """What was left out of a letter."""
    if letter.last_offset is not None:
        offsets = letter.last_offset - letter.offset + 1
        yield f"not kept    {_many(offsets, 'offset')} that could not be read"
    if letter.record_size is not None:
        size = _many(letter.record_size, "byte")
        if letter.record_size <= KEPT_BYTES and letter.size is not None:
            yield f"kept        all of {size}"
        else:
            yield f"kept        at most the beginning of {size}; it cannot be replayed"
        yield f"SHA-256     {letter.record_sha256 or 'erased'}"
        named = json.dumps(letter.customer_ids or [], ensure_ascii=False)
        yield f"customers   {escaped(named)}"


def letter_json(letter: Letter, contents: Contents) -> str:
    """A letter whole: bytes as a text where they are UTF-8, else as base64."""
    return _json(
        {
            **asdict(letter),
            "headers": contents.headers,
            "key": _bytes_json(contents.key),
            "value": _bytes_json(contents.value),
        }
    )


def replaying(so_far: Replayed) -> str:
    """How far it is."""
    return f"{so_far.done:,} of {_many(so_far.pending, 'letter')}, {_outcomes(so_far)}"


def replayed(result: Replayed, *, dry_run: bool) -> str:
    """What came of it; the last line on standard output."""
    if not result.done:
        return "There is nothing to replay." + _incomplete(result)
    letters = _many(result.done, "dead letter")
    words = f"Replayed {letters}: {_outcomes(result)}."
    if dry_run:
        words = (
            f"A replay of {letters} would give: {_outcomes(result)}. "
            "Nothing was changed."
        )
    if result.elsewhere:
        words += f" Another replay has {result.elsewhere:,} of them in hand."
    return words + _incomplete(result)


def _incomplete(result: Replayed) -> str:
    if not result.incomplete:
        return ""
    return (
        f" {_many(result.incomplete, 'more dead letter')} cannot be replayed: their "
        "records are not kept whole."
    )


def _outcomes(result: Replayed) -> str:
    counts = {STORED: 0, **dict(sorted(result.outcomes.items()))}
    return ", ".join(f"{number:,} {outcome}" for outcome, number in counts.items())


# Bytes and texts that anybody may have sent


def escaped(text: str) -> str:
    """A text on one line, with everything that is not printable written out."""
    return "".join(
        each
        if each.isprintable() and each != "\\"
        else each.encode("unicode_escape").decode()
        for each in text
    )


def _bytes_text(value: bytes | None) -> str:
    if value is None:
        return "none"
    shown = value[:SHOWN_BYTES]
    size = f"{len(value):,} bytes"
    if len(shown) < len(value):
        size += f", the first {len(shown):,} (all: --json)"
    try:
        value.decode()
    except UnicodeDecodeError:
        return f"{size}, not UTF-8\n{_hex(shown)}"
    # A character that was cut in two at the end is left out.
    return f"{size}\n{escaped(shown.decode(errors='ignore'))}"


def _hex(value: bytes) -> str:
    lines = []
    for offset in range(0, len(value), BYTES_A_LINE):
        some = value[offset : offset + BYTES_A_LINE]
        text = "".join(chr(each) if 32 <= each < 127 else "." for each in some)
        lines.append(f"{offset:08x}  {some.hex(' '):<{3 * BYTES_A_LINE}} {text}")
    return "\n".join(lines)


def _bytes_json(value: bytes | None) -> object:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


# Forms


def table(rows: Sequence[Sequence[str]], *, as_json: bool) -> str:
    """A table whose first row has the names of its columns."""
    if as_json:
        return _json([dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
    return _columns(rows)


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _columns(rows: Iterable[Sequence[object]]) -> str:
    """Rows under each other; numbers to the right, texts to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    texts = [[text for text, _ in row] for row in cells]
    right = [
        any(is_number for _, is_number in column) for column in zip(*cells, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in texts
    )


def _cell(value: object) -> tuple[str, bool]:
    if value is None:
        return "?", False
    if isinstance(value, int):
        return f"{value:,}", True
    return printable(str(value)), False


def _instant(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S%z}"


def _json(value: Any) -> str:
    return json.dumps(value, default=_json_default, indent=2)


def _json_default(value: object) -> str:
    if isinstance(value, date):  # and datetimes, which are dates
        return value.isoformat()
    raise TypeError(f"{value!r} has no place in JSON")
