"""Kafka's own client: the brokers, the topic and its settings."""
