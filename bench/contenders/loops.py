"""Loops that somebody wrote by hand: a good one, and the usual first one."""

from __future__ import annotations

from bench.contender import PythonContender


def hand_written() -> PythonContender:
    """What a good engineer writes in an afternoon."""
    return PythonContender(
        "hand-written",
        "hand-written loop",
        "confluent_loop.py",
        "confluent-kafka, msgspec and COPY in one loop: up to 20,000 records a batch, "
        "200,000 fetched ahead, offsets committed after the database. No guards.",
    )


def seed() -> PythonContender:
    """The design that this project replaces."""
    return PythonContender(
        "seed",
        "kafka-python, a record at a time",
        "kafka_python_loop.py",
        "kafka-python and psycopg2, INSERT and COMMIT for each record: the design that "
        "this project replaces.",
        requirements="kafka-python",
        most_records=20_000,
    )
