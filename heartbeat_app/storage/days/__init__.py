"""Daily partitions: made, checked and dropped."""
