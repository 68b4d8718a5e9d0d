"""PostgreSQL: tables, one transaction per batch, ledger, days, dead letters, reads."""
