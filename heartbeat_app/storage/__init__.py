"""PostgreSQL: everything that reads or writes it."""
