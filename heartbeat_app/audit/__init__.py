"""Checks Kafka, the ledger and the rows against each other."""
