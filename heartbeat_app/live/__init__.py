"""Everybody's last beats, kept in memory for those who watch the live page."""
