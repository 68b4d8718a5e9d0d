"""What a person orders: to erase a customer, to replay dead letters."""
