"""Stores a group of batches in one transaction."""
