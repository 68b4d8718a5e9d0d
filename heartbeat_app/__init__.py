"""Real-time heartbeat monitoring: every beat from Kafka into PostgreSQL, once."""
