"""Queries for people: pages, commands and the audit."""
