"""Records that were sent before, or that are none: ours against COPY of new rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from sqlalchemy import Engine, text

from bench.beats import (
    ONE_IN,
    WHOLE_DAY,
    lately_sent_again,
    make_beats,
    sent_again_from_anywhere,
    some_bad,
)
from bench.contender import Contender, Task
from bench.formats import plain
from bench.judge import Spread, best, noise_words, ratios
from bench.measures.setting import Setting
from bench.run import (
    SEQUENCE,
    RunFailedError,
    Summary,
    Watch,
    copy_beats,
    expect,
    run,
    summary,
)
from heartbeat_app.domain.models import Heartbeat

OURS = "ours"

LEDGER = text(
    "SELECT coalesce(sum(consumed), 0), coalesce(sum(stored), 0),"
    " coalesce(sum(duplicate), 0), coalesce(sum(dead), 0) FROM partition_ledger"
)
LAST_COMMIT = text("SELECT max(pg_xact_commit_timestamp(xmin)) FROM partition_ledger")


@dataclass(frozen=True)
class Kind:
    """One mixture of records.

    Attributes:
        records: The key and value of so many records.
        rest: The books that so many records must give: stored, duplicate, dead.
        before: Beats that are in the table already.
    """

    name: str
    title: str
    records: Callable[[int], Iterable[tuple[bytes, bytes]]]
    rest: Callable[[int], tuple[int, int, int]]
    before: Callable[[int], Iterable[Heartbeat]] = lambda count: ()


def _plain(
    beats: Callable[[int], Iterator[Heartbeat]],
) -> Callable[[int], Iterable[tuple[bytes, bytes]]]:
    return lambda count: map(plain, beats(count))


KINDS = (
    Kind(
        "lately",
        "1 % sent again within 1,000 records",
        _plain(lately_sent_again),
        lambda count: (count - count // ONE_IN, count // ONE_IN, 0),
    ),
    Kind(
        "anywhere",
        "1 % sent again from anywhere",
        _plain(sent_again_from_anywhere),
        lambda count: (count - count // ONE_IN, count // ONE_IN, 0),
    ),
    Kind(
        "replay",
        "all sent before",
        _plain(make_beats),
        lambda count: (0, count, 0),
        make_beats,
    ),
    Kind(
        "bad",
        "1 % are no heartbeats",
        some_bad,
        lambda count: (count - count // ONE_IN, 0, count // ONE_IN),
    ),
)


def measure(setting: Setting) -> dict[str, Any]:
    """Rounds of COPY and of ours on each kind."""
    stage, count = setting.stage, setting.records
    ours = setting.contenders[OURS][0]
    expected = expect(stage, make_beats(count))
    # What the rows of each kind are when it is done.
    rows = {kind.name: expect(stage, _rows(kind, count)) for kind in KINDS}
    for kind in KINDS:
        stage.load(f"{kind.name}-{count}", kind.records(count), count)
    rounds: list[dict[str, float]] = []
    for number in range(1, setting.rounds + 1):
        rates: dict[str, float] = {}
        for each in setting.in_order_of(number):
            setting.progress.tell(f"Round {number}: {each.title}")
            if each.is_limit:
                name = stage.new_name(each.name)
                engine = stage.new_database(name)
                task = Task(stage, name, "none", count, name)
                rates[each.name] = round(run(each, task, engine, expected).rate)
                stage.drop_database(engine)
                continue
            for kind in KINDS:
                rates[kind.name] = round(_run(setting, ours, kind, rows[kind.name]))
                setting.progress.tell(
                    f"  {kind.title}: {rates[kind.name]:,.0f} records/s"
                )
        rounds.append(rates)
    return {
        "records": count,
        "limits": [each.name for each in setting.contenders["copy"]],
        "rounds": rounds,
    }


def _rows(kind: Kind, count: int) -> Iterable[Heartbeat]:
    """The beats that are in the table when all is consumed."""
    stored, _, _ = kind.rest(count)
    if kind.name == "bad":
        for number, beat in enumerate(make_beats(count)):
            if number % ONE_IN != ONE_IN - 1:
                yield beat
    else:
        yield from make_beats(count) if stored == 0 else _first(count, stored)


def _first(count: int, stored: int) -> Iterator[Heartbeat]:
    for beat, _ in zip(make_beats(count), range(stored), strict=False):
        yield beat


def _run(setting: Setting, ours: Contender, kind: Kind, rows: Summary) -> float:
    """Records a second, from the first row that is tried to the last commit."""
    stage, count = setting.stage, setting.records
    name = stage.new_name(kind.name)
    engine = stage.new_database(name)
    try:
        copy_beats(engine, kind.before(count))
        return _timed(Task(stage, name, f"{kind.name}-{count}", count, name),
                      ours, engine, kind, rows)  # fmt: skip
    finally:
        stage.drop_database(engine)


def _timed(
    task: Task, ours: Contender, engine: Engine, kind: Kind, rows: Summary
) -> float:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        before = connection.scalar(SEQUENCE) or 0
        ours.start(task)
        try:
            watch = Watch(ours, connection, before)
            began = watch.wait_for_first_row()
            watch.wait_until(lambda: connection.execute(LEDGER).one()[0] >= task.count)
        except psutil.NoSuchProcess:
            raise RunFailedError(f"{ours.title} ended:\n{ours.log()}") from None
        finally:
            ours.stop()
        _, *books = connection.execute(LEDGER).one()
        if tuple(books) != kind.rest(task.count):
            raise RunFailedError(
                f"{kind.title}: stored, duplicate and dead are {books}, not "
                f"{kind.rest(task.count)}"
            )
        if summary(connection, WHOLE_DAY) != rows:
            raise RunFailedError(f"{kind.title}: the table holds other rows")
        last = connection.scalar(LAST_COMMIT)
        assert last is not None
    seconds: float = last.timestamp() - began
    return task.count / seconds


def markdown(figures: dict[str, Any]) -> Sequence[str]:
    """A table of the kinds."""
    rounds, limits = figures["rounds"], figures["limits"]
    return [
        "## Duplicates and bad records",
        "",
        f"{figures['records']:,} records of each kind, against raw COPY of as many new "
        "rows in the same round. The books and the rows were right in every run.",
        "",
        noise_words([rate for each in rounds if (rate := best(each, limits))]),
        "",
        "| records | records/s | against raw COPY |",
        "|---|---|---|",
        *(
            f"| {kind.title} "
            f"| {Spread.of([each[kind.name] for each in rounds]).words(0)} "
            f"| {Spread.of(ratios(rounds, kind.name, limits)).words()} |"
            for kind in KINDS
        ),
        "",
    ]
