"""The kinds of worlds: tables, linear-quadratic models, and worlds of which only θ-dependent terms are declared."""
