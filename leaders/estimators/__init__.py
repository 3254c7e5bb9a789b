"""How an outer iteration's hypergradient is estimated."""
