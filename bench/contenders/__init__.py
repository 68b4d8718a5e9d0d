"""All contenders, by the names that the command line knows."""

from __future__ import annotations

from bench.contender import Contender
from bench.contenders.debezium import debezium_best, debezium_default
from bench.contenders.faust import faust_each, faust_take
from bench.contenders.loops import hand_written, seed
from bench.contenders.ours import Ours
from bench.contenders.raw_copy import BATCH_SIZES, BinaryCopy, RawCopy
from bench.contenders.streams import bytewax, pathway, quix

# The two that many measurements compare.
LIMIT = "copy"
OURS = "ours"


def all_contenders() -> dict[str, list[Contender]]:
    """By name; raw COPY is one for each batch size."""
    singles: list[Contender] = [
        BinaryCopy(),
        Ours(),
        hand_written(),
        debezium_best(),
        debezium_default(),
        quix(),
        bytewax(),
        pathway(),
        faust_take(),
        faust_each(),
        seed(),
    ]
    copies: list[Contender] = [RawCopy(size) for size in BATCH_SIZES]
    return {LIMIT: copies, **{each.name: [each] for each in singles}}
