"""The speed, measured side by side: `scripts/bench`."""
