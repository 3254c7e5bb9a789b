"""Configurable MDPs."""
