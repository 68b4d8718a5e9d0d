"""Kafka Connect with Debezium's JDBC sink: its program files and its settings."""
