"""Simulated customers."""
