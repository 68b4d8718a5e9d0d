"""What a person orders: erase a customer, replay dead letters."""
