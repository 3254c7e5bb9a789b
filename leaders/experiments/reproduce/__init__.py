"""The figures of arXiv:2603.14867, one to a file."""
