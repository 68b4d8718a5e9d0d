"""Recordings are read line by line, and what is no beat is named."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat_app.cli import recordings
from heartbeat_app.cli.recordings import (
    BYTE_ORDER_MARK,
    MAX_LINE_CHARACTERS,
    BadLine,
    read,
)
from heartbeat_app.domain.models import Heartbeat
from heartbeat_app.exceptions import CommandError

FOLDER = Path(__file__).parents[1] / "recordings"
HEADER = b"customer_id,timestamp,heart_rate\n"
LINE = b"anna,2026-01-01T00:00:00Z,72\n"
ANNA = Heartbeat("anna", datetime(2026, 1, 1, tzinfo=UTC), 72)
START = datetime(2026, 6, 1, 12, tzinfo=UTC)


def read_bytes(content: bytes, **options: object) -> list[Heartbeat | BadLine]:
    return list(read(io.BytesIO(content), "walk.csv", **options))  # type: ignore[arg-type]


def only_bad(content: bytes, **options: object) -> BadLine:
    """The one thing found, a bad line."""
    (found,) = read_bytes(content, **options)
    assert isinstance(found, BadLine), found
    return found


@pytest.mark.parametrize(
    ("name", "rows", "first", "last"),
    [
        ("rec-4801048867", 5159, "2020-04-18T11:10:44", "2020-04-18T12:36:42"),
        ("rec-3173437224", 3507, "2019-01-29T10:25:13", "2019-01-29T11:30:16.719"),
        ("rec-nni-short", 337, "2026-01-01T00:00:00.859", "2026-01-01T00:04:59.578"),
    ],
)
def test_reads_the_recordings_exactly(
    name: str, rows: int, first: str, last: str
) -> None:
    with (FOLDER / f"{name}.csv").open("rb") as file:
        beats = list(read(file, name))
        assert not file.closed  # the caller's to close
    timestamps = [beat.timestamp for beat in beats_of(beats)]
    assert len(timestamps) == rows
    assert timestamps[0] == instant(first)
    assert timestamps[-1] == instant(last)
    with (FOLDER / f"{name}.csv").open(newline="") as text:
        for beat, row in zip(beats, csv.DictReader(text), strict=True):
            assert isinstance(beat, Heartbeat)
            assert beat.customer_id == row["customer_id"]
            assert beat.timestamp == datetime.fromisoformat(row["timestamp"])
            assert beat.heart_rate == int(row["heart_rate"])


def instant(written: str) -> datetime:
    return datetime.fromisoformat(written).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "content",
    [
        HEADER + LINE,
        HEADER + LINE.rstrip(),
        (HEADER + LINE).replace(b"\n", b"\r\n"),
        (HEADER + LINE).replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + HEADER + LINE,
        b"\n\n" + HEADER + b"\n" + LINE + b"\n\n",
        HEADER + b'"anna","2026-01-01T00:00:00Z","72"\n',
        HEADER + b"anna,2026-01-01T05:30:00+05:30,72\n",
        HEADER + HEADER + LINE + HEADER,
        b'"customer_id","timestamp","heart_rate"\n' + LINE,
    ],
)
def test_reads_every_form_of_the_same(content: bytes) -> None:
    assert read_bytes(content) == [ANNA]


def test_files_put_one_after_the_other_are_one_recording() -> None:
    assert read_bytes((HEADER + LINE) * 3) == [ANNA] * 3


@pytest.mark.parametrize(
    ("written", "customer_id"),
    [
        ('"a,b"', "a,b"),
        ('"say ""hi"""', 'say "hi"'),
        ('"two\nlines"', "two\nlines"),
        ('"two\r\nlines"', "two\r\nlines"),
        (" blanks ", " blanks "),
        ("back\\slash", "back\\slash"),
        ("NULL", "NULL"),
        ("\U0001f493", "\U0001f493"),
        ("é" * 255, "é" * 255),
    ],
)
def test_keeps_customer_ids_as_they_are(written: str, customer_id: str) -> None:
    line = f"{written},2026-01-01T00:00:00Z,72\n".encode()
    (found,) = read_bytes(HEADER + line)
    assert isinstance(found, Heartbeat)
    assert found.customer_id == customer_id


BAD_LINES = [
    (b"anna,2026-01-01T00:00:00Z,0", "heart_rate is 0; allowed is 1 to 300."),
    (b"anna,2026-01-01T00:00:00Z,301", "heart_rate is 301"),
    (b"anna,2026-01-01T00:00:00Z,72.5", "72.5 is not written as a whole number"),
    (b"anna,2026-01-01T00:00:00Z,fast", "heart_rate is a text"),
    (b"anna,2026-01-01T00:00:00Z,072", "heart_rate is a text"),
    (b"anna,2026-01-01T00:00:00Z, 72", "heart_rate is a text"),
    (b"anna,2026-01-01T00:00:00Z,1_0", "heart_rate is a text"),
    (b"anna,2026-01-01T00:00:00Z,NaN", "heart_rate is a text"),
    ("anna,2026-01-01T00:00:00Z,\uff17\uff12".encode(), "heart_rate is a text"),
    (b"anna,2026-01-01T00:00:00Z,", "heart_rate is empty."),
    (b",2026-01-01T00:00:00Z,72", "customer_id is empty."),
    (b"anna,,72", "timestamp is empty."),
    (b"anna,2026-01-01T00:00:00,72", "has no offset from UTC"),
    (b"anna,yesterday,72", "'yesterday' is no instant"),
    (b"anna,1767225600,72", "'1767225600' is no instant"),
    (b"anna,1999-12-31T23:59:59Z,72", "lies before 2000"),
    (b"a" * 256 + b",2026-01-01T00:00:00Z,72", "256 characters"),
    (b"a\x00b,2026-01-01T00:00:00Z,72", "U+0000"),
    (b"a\xffb,2026-01-01T00:00:00Z,72", "It is not UTF-8."),
    (b"anna,\xff,72", "It is not UTF-8."),
    (b"anna,2026-01-01T00:00:00Z,\xff", "It is not UTF-8."),
    (b"anna,2026-01-01T00:00:00Z", "It has 2 fields instead of 3."),
    (b"anna,2026-01-01T00:00:00Z,72,73", "It has 4 fields instead of 3."),
    (b"anna;2026-01-01T00:00:00Z;72", "It has 1 fields instead of 3."),
    (b'"anna"x,2026-01-01T00:00:00Z,72', "This is not CSV"),
    (b"Customer_ID,Timestamp,Heart_Rate", "'Timestamp' is no instant"),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
def test_names_a_bad_line_and_goes_on_after_it(line: bytes, why: str) -> None:
    found = read_bytes(HEADER + LINE + line + b"\n" + LINE)
    assert [found[0], found[2]] == [ANNA, ANNA]
    assert isinstance(found[1], BadLine)
    assert str(found[1]).startswith("walk.csv, line 3: ")
    assert why in str(found[1])


def test_counts_lines_as_an_editor_does() -> None:
    content = HEADER + b"\n" + b'"two\nlines",2026-01-01T00:00:00Z,72\n' + b"x\n"
    assert str(read_bytes(content)[1]).startswith("walk.csv, line 5: ")
    content = HEADER + b'"two\nlines",2026-01-01T00:00:00Z,0\n'
    assert str(only_bad(content)).startswith("walk.csv, lines 2 to 3: ")


def test_an_open_quote_is_one_bad_line_that_says_how_far_it_reaches() -> None:
    found = only_bad(HEADER + b'"anna,2026-01-01T00:00:00Z,72\n' + LINE * 3)
    assert (found.first_line, found.last_line) == (2, 5)
    assert "not CSV" in found.why


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (LINE, "its first line is 'anna,2026-01-01T00:00:00Z,72'"),
        (b"timestamp,customer_id,heart_rate\n", "its first line is 'timestamp,"),
        (b"customer_id,timestamp\n", "its first line is 'customer_id,timestamp'"),
        (b"customer_id;timestamp;heart_rate\n", "its first line is"),
        (b'"customer_id\n', "unexpected end of data"),
        (b"\x1b[31m\n", r"'\x1b[31m'"),
    ],
)
def test_refuses_what_is_no_recording(content: bytes, why: str) -> None:
    with pytest.raises(CommandError) as caught:
        read_bytes(content)
    words = str(caught.value)
    assert words.startswith(
        "walk.csv is no recording: it must begin with the line "
        "customer_id,timestamp,heart_rate, but "
    )
    assert why in words
    assert words.isprintable()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            gzip.compress(HEADER + LINE * 99, mtime=0),
            "compressed by gzip; unpack it first",
        ),
        (bz2.compress(HEADER), "compressed by bzip2; unpack it first"),
        (lzma.compress(HEADER), "compressed by xz; unpack it first"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed by zstd; unpack it first"),
        (b"PK\x03\x04\x14\x00", "a ZIP archive; unpack it first"),
        (HEADER.decode().encode("utf-16"), "in UTF-16; convert it first"),
        (HEADER.decode().encode("utf-16-le"), "in UTF-16; convert it first"),
        (HEADER.decode().encode("utf-16-be"), "in UTF-16; convert it first"),
    ],
)
def test_names_what_is_not_read_yet(content: bytes, why: str) -> None:
    with pytest.raises(CommandError) as caught:
        read_bytes(content)
    assert str(caught.value).startswith(f"walk.csv is {why}: ")
    assert str(caught.value).isprintable()


def test_each_file_of_several_may_begin_with_a_byte_order_mark() -> None:
    one = BYTE_ORDER_MARK.encode() + HEADER + LINE
    assert len(read_bytes(one + one + one)) == 3
    # In front of anything else it is a part of the customer's id.
    [beat] = read_bytes(HEADER + BYTE_ORDER_MARK.encode() + LINE)
    assert isinstance(beat, Heartbeat)
    assert beat.customer_id == f"{BYTE_ORDER_MARK}anna"


def test_a_rate_is_shown_as_it_is_written() -> None:
    found = only_bad(HEADER + b"anna,2026-01-01T00:00:00Z,72e0\n")
    assert found.why == "heart_rate 72e0 is not written as a whole number."


def test_refuses_a_line_without_an_end_before_it_fills_the_memory() -> None:
    with pytest.raises(CommandError, match="line 2, has 65,536 characters or more"):
        read_bytes(HEADER + b"a" * 10 * MAX_LINE_CHARACTERS)


def test_reads_no_further_than_it_is_asked() -> None:
    """A recording of a hundred million lines takes no more memory than a short one."""
    stream = EndlessStream()
    beats = read(stream, "endless")
    for _ in range(1000):
        assert isinstance(next(beats), Heartbeat)
    assert stream.given < 1000 * len(LINE) + 3 * io.DEFAULT_BUFFER_SIZE


class EndlessStream(io.BytesIO):
    """The same line again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0
        self._pending = HEADER

    def readable(self) -> bool:
        return True

    def read1(self, size: int | None = -1) -> bytes:
        size = io.DEFAULT_BUFFER_SIZE if size is None or size < 0 else size
        while len(self._pending) < size:
            self._pending += LINE
        given, self._pending = self._pending[:size], self._pending[size:]
        self.given += len(given)
        return given

    read = read1


def test_all_beats_can_be_sent_as_one_customer() -> None:
    lines = b"anna,2026-01-01T00:00:00Z,72\n,2026-01-01T00:00:01Z,73\n"
    found = read_bytes(HEADER + lines, customer_id="bert")
    assert [beat.customer_id for beat in beats_of(found)] == ["bert", "bert"]
    assert "U+0000" in str(only_bad(HEADER + LINE, customer_id="\x00"))


def beats_of(found: list[Heartbeat | BadLine]) -> Iterator[Heartbeat]:
    for each in found:
        assert isinstance(each, Heartbeat), each
        yield each


def test_a_shift_keeps_the_gaps() -> None:
    lines = (
        b"a,2019-01-01T00:00:00.250Z,70\n"
        b"b,2019-01-01T00:00:03Z,71\n"
        b"a,2018-12-31T23:59:59Z,72\n"  # out of order
    )
    found = list(beats_of(read_bytes(HEADER + lines, start=START)))
    assert [beat.timestamp - START for beat in found] == [
        timedelta(0),
        timedelta(seconds=2.75),
        timedelta(seconds=-1.25),
    ]


def test_a_shift_begins_at_the_first_good_line() -> None:
    lines = b"a,2019-01-01T00:00:00Z,0\na,2019-01-01T00:00:01Z,70\n"
    bad, good = read_bytes(HEADER + lines, start=START)
    assert isinstance(bad, BadLine)
    assert good == Heartbeat("a", START, 70)


def test_a_shift_makes_old_recordings_valid() -> None:
    line = b"a,1970-01-01T00:00:01Z,70\n"
    assert "before 2000" in str(only_bad(HEADER + line))
    assert read_bytes(HEADER + line, start=START) == [Heartbeat("a", START, 70)]


def test_a_shift_beyond_the_calendar_is_a_bad_line() -> None:
    lines = b"a,2000-01-01T00:00:00Z,70\na,9999-01-01T00:00:00Z,70\n"
    _, bad = read_bytes(HEADER + lines, start=START)
    assert isinstance(bad, BadLine)
    assert "9999" in bad.why


def test_leaves_the_clock_to_the_worker() -> None:
    (found,) = read_bytes(HEADER + b"a,2999-01-01T00:00:00Z,70\n")
    assert isinstance(found, Heartbeat)


@given(st.binary(max_size=2000))
def test_any_bytes_are_beats_bad_lines_or_no_recording(content: bytes) -> None:
    for found in read_bytes(HEADER + content):
        assert str(found).encode()  # can be printed
    with suppress(CommandError):
        read_bytes(content)


@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(codec="utf-8", exclude_characters="\x00"),
                min_size=1,
                max_size=255,
            ),
            st.datetimes(datetime(2000, 1, 2), timezones=st.just(UTC)),
            st.integers(1, 300),
        )
    )
)
def test_reads_back_whatever_a_csv_writer_wrote(
    rows: list[tuple[str, datetime, int]],
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(recordings.HEADER)
    writer.writerows((c, t.isoformat(), h) for c, t, h in rows)
    found = read_bytes(text.getvalue().encode())
    assert found == [Heartbeat(c, t, h) for c, t, h in rows]
