"""Two-player Markov games as configurable decision problems."""
