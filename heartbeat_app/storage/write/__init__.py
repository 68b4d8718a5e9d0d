"""Stores a batch: one transaction with its ledger, rows and dead letters."""
