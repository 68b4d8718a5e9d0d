"""Simulated customers and their heart rates."""
