"""What commands share: standard output, progress, and how they are stopped."""
