"""Worlds with linear dynamics and quadratic rewards."""
