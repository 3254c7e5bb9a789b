"""Comparisons, plots, videos, and the paper's figures."""
