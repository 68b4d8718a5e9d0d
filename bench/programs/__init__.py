"""What the contenders run; each a program of its own, apart from this package."""
