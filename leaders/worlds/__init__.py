"""What leaders add to each kind of world: critics, defaults, checks."""
