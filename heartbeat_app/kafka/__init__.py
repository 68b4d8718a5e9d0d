"""Kafka's own client, and the topic: how it is made, and what its settings must be."""
