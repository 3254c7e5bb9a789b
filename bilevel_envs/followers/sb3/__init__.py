"""Agents of Stable-Baselines3 as followers."""
