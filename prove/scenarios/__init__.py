"""What is done to the parts, a module for each group."""
