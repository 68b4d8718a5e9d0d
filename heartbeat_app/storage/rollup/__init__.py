"""Dirty ranges, and the counts by minute and hour recomputed from the rows."""
