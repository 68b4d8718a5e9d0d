"""How PostgreSQL is reached: sessions, transactions, errors, tables and roles."""
