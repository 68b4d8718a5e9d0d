"""The daily partitions: made, checked and dropped."""
