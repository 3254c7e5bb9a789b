"""Worlds without a known model, of which only the θ-dependent terms are declared."""
