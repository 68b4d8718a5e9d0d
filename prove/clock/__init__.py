"""A clock for workers that can be moved."""
