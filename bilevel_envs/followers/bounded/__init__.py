"""Followers whose rationality or planning is bounded."""
