"""Connections, sessions, transactions, errors, tables and roles."""
