"""The commands beside Faust's own, and their words."""
