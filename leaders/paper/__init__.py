"""The published actor-critics of arXiv:2603.14867 for games."""
