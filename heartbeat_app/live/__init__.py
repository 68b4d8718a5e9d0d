"""The live page's data: one snapshot of the latest beats a second."""
