"""The pages of the worker."""
