"""The leaders, one to a file."""
