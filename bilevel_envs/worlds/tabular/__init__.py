"""Worlds of finitely many states and actions."""
