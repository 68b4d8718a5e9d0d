"""The Faust app, and what runs in its process."""
