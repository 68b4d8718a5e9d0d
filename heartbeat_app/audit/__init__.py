"""Checks PostgreSQL against Kafka's log: lag, missing offsets, every record."""
