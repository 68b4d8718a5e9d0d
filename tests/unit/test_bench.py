"""What the benchmark concludes from its figures, and what it writes."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from bench import results
from bench.beats import (
    BAD_VALUES,
    LATELY,
    ONE_IN,
    lately_sent_again,
    make_beats,
    sent_again_from_anywhere,
    some_bad,
)
from bench.contenders import all_contenders
from bench.formats import SCHEMA, with_schema
from bench.judge import Spread, best, is_too_noisy, noise_words, percentile, ratios
from bench.measures import MEASURES, backlog, memory
from bench.pictures import Bar, bars, line


def test_a_ratio_compares_within_its_round_with_the_best_batch_size() -> None:
    rounds = [
        {"ours": 90.0, "copy-1": 50.0, "copy-2": 100.0},
        {"ours": 30.0, "copy-1": 40.0, "copy-2": 20.0},
        {"copy-1": 40.0, "copy-2": 20.0},
        {"ours": 1.0},
    ]
    assert ratios(rounds, "ours", ["copy-1", "copy-2"]) == [0.9, 0.75]
    assert best(rounds[3], ["copy-1"]) is None


def test_a_spread_is_told_from_the_lowest_to_the_highest() -> None:
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.median, spread.low, spread.high, spread.share) == (2, 1, 3, 1)
    assert spread.words(1) == "2.0 (1.0 to 3.0)"


@pytest.mark.parametrize(
    ("limits", "noisy", "words"),
    [
        ([100.0], False, "ran once"),
        ([100.0, 110.0, 120.0], False, "18% of its median"),
        ([100.0, 110.0, 140.0], True, "**Too noisy to judge**"),
    ],
)
def test_a_noisy_machine_is_called_one(
    limits: list[float], noisy: bool, words: str
) -> None:
    assert is_too_noisy(limits) is noisy
    assert words in noise_words(limits)


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7


def test_memory_is_compared_between_the_thirds_of_the_run() -> None:
    assert memory.thirds([0.0, *[5.0] * 3, *[9.0] * 3, *[6.0] * 3]) == (5.0, 6.0)


def test_one_in_a_hundred_was_sent_before() -> None:
    for mixture, farthest in (
        (lately_sent_again, LATELY),
        (sent_again_from_anywhere, 5000),
    ):
        seen: dict[object, int] = {}
        again = []
        for number, beat in enumerate(mixture(5000)):
            if beat in seen:
                again.append(number - seen[beat])
            else:
                seen[beat] = number
        assert len(again) == 5000 // ONE_IN
        # A few of the records between were sent again themselves.
        assert max(again) <= farthest * (1 + 2 / ONE_IN)
        fresh = itertools.islice(make_beats(5000), len(seen))
        assert list(seen) == list(fresh)


def test_one_in_a_hundred_is_bad() -> None:
    values = [value for _, value in some_bad(1000)]
    assert sum(value in BAD_VALUES for value in values) == 10


def test_connect_gets_every_field_with_its_type() -> None:
    beat = next(make_beats(1))
    key, value = with_schema(beat)
    assert key == b"customer-0000"
    assert value.startswith(b'{"schema":{"type":"struct"')
    assert value.endswith(b'"heart_rate":60}}')
    assert isinstance(SCHEMA["fields"], list)


def test_contenders_have_names_of_their_own_and_named_settings() -> None:
    everybody = [each for some in all_contenders().values() for each in some]
    assert len({each.name for each in everybody}) == len(everybody)
    assert all(each.settings and each.title for each in everybody)
    assert [each.is_limit for each in all_contenders()["copy"]] == [True] * 4


def test_bars_are_a_picture_with_the_values_in_words() -> None:
    picture = ElementTree.fromstring(
        bars("A <title>", "s", [Bar("us & them", 2.0, 1.5, 2.5, True)])
    )
    words = [each.text for each in picture.iter() if each.text and each.text.strip()]
    assert words == ["A <title> (s)", "us & them", "2.00"]
    (rectangle,) = [each for each in picture if each.tag.endswith("rect")]
    assert float(rectangle.get("width") or 0) > 0


def test_bars_of_nothing_are_a_picture() -> None:
    ElementTree.fromstring(bars("None", "s", []))
    ElementTree.fromstring(line("None", [], "s", "MB"))


def test_a_line_goes_through_all_points() -> None:
    picture = ElementTree.fromstring(line("L", [(0, 1), (1, 2), (2, 1)], "s", "MB"))
    (path,) = [each for each in picture if each.tag.endswith("polyline")]
    assert len((path.get("points") or "").split()) == 3


FIGURES = {
    "records": 1000,
    "contenders": [
        {
            "name": "copy-5",
            "title": "raw COPY",
            "settings": "a",
            "is_limit": True,
            "is_consumer": False,
        },
        {
            "name": "ours",
            "title": "heartbeat_app",
            "settings": "b",
            "is_limit": False,
            "is_consumer": True,
        },
        {
            "name": "slow",
            "title": "slow one",
            "settings": "c",
            "is_limit": False,
            "is_consumer": True,
        },
        {
            "name": "broken",
            "title": "broken",
            "settings": "d",
            "is_limit": False,
            "is_consumer": True,
        },
    ],
    "rounds": [
        {
            name: {
                "records": 1000,
                "records_per_second": rate,
                "seconds": 1.0,
                "start_seconds": 1.0,
                "cpu_seconds": 0.005,
                "peak_mb": 100,
            }
            for name, rate in (("copy-5", copied), ("ours", 190), ("slow", 19))
        }
        for copied in (200, 210)
    ],
    "failed": {"broken": "it stored other rows"},
}


def test_the_backlog_table_has_the_fastest_first_and_names_who_failed() -> None:
    rows = [line for line in backlog.markdown(FIGURES) if line.startswith("|")][2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| raw COPY",
        "| **heartbeat_app**",
        "| slow one",
    ]
    assert "0.93 (0.90 to 0.95)" in rows[1]
    assert "5.0 (5.0 to 5.0)" in rows[1]  # CPU seconds a million
    assert "10.0 (10.0 to 10.0)" in rows[2]  # so much faster is ours
    assert "- broken: it stored other rows" in backlog.markdown(FIGURES)
    ElementTree.fromstring(backlog.pictures(FIGURES)[backlog.PICTURE])


def test_what_is_written_by_hand_stays() -> None:
    document = f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    once = results.insert(document, "new")
    assert once == f"before\n{results.BEGIN}\n\nnew\n{results.END}\nafter\n"
    assert results.insert(once, "new") == once


@pytest.mark.parametrize(
    "document",
    [
        "nothing",
        results.BEGIN,
        f"{results.END}{results.BEGIN}",
        f"{results.BEGIN}{results.BEGIN}{results.END}",
        f"{results.BEGIN}{results.END}{results.END}",
    ],
)
def test_a_document_without_its_marks_is_not_written(document: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        results.insert(document, "new")


def test_the_document_has_a_place_for_the_results() -> None:
    document = results.DOCUMENT.read_text()
    assert "What was tried" in results.insert(document, "new")


def test_each_result_says_what_it_was_measured_on() -> None:
    measured = {
        "command": "scripts/bench",
        "at": "2026-01-01T00:00+00:00",
        "commit": "abc",
        "machine": {"processor": "P", "cores": 2, "memory_gb": 8, "system": "Linux"},
        "versions": {"Kafka": "4"},
    }
    text = results.render({"backlog": {"measured": measured, "figures": FIGURES}})
    assert "`scripts/bench` at 2026-01-01T00:00+00:00, commit `abc`" in text
    assert "Kafka 4" in text
    assert set(MEASURES) >= {"backlog", "duplicates", "delay", "memory"}
