"""Followers that learn, and followers that are only observed."""
