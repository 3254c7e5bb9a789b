"""Followers that solve a known model."""
