"""What commands share with a person: output, progress, and how they are stopped."""
