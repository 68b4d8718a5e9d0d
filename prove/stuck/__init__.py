"""Makes parts of a worker stand still, from inside of its process."""
