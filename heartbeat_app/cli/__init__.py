"""The commands beside Faust's own."""
