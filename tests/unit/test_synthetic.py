"""The invented customers."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from heartbeat_app.simulator.synthetic import SyntheticCustomers

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_everybody_has_one_beat_at_that_moment() -> None:
    beats = list(SyntheticCustomers(1_000).beats(NOW))
    assert len({beat.customer_id for beat in beats}) == 1_000
    assert {beat.timestamp for beat in beats} == {NOW}


def test_rates_are_from_50_to_120_and_nine_of_ten_from_60_to_100() -> None:
    rates = Counter(
        beat.heart_rate
        for _ in range(100)
        for beat in SyntheticCustomers(1_000).beats(NOW)
    )
    assert (min(rates), max(rates)) == (50, 120)
    normal = sum(count for rate, count in rates.items() if 60 <= rate <= 100)
    # 100,000 draws: five standard deviations are 0.5 %.
    assert 0.895 < normal / rates.total() < 0.905
    assert len(rates) == 71  # every rate comes


def test_the_same_seed_gives_the_same_rates() -> None:
    def rates(seed: int) -> list[int]:
        return [beat.heart_rate for beat in SyntheticCustomers(100, seed).beats(NOW)]

    assert rates(7) == rates(7)
    assert rates(7) != rates(8)


def test_nobody_is_invented_by_default() -> None:
    assert list(SyntheticCustomers(0).beats(NOW)) == []
