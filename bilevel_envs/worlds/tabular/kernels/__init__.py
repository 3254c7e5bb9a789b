"""Inner loops as machine code: everything that walks through tables or trajectories one entry at a time.

Plain loops over NumPy arrays, compiled by Numba on first use and kept on disk from then on. They know shapes and
numbers only, no model and no leader; `function.py_func` is the same loop in Python. R runs lead; tables with a
leading 1 are shared by all runs.
"""
