"""Studies of many runs: what is to be run, in which processes, and how far it is."""
