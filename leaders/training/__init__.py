"""What surrounds the estimate in training: optimiser, history, checkpoints, callbacks."""
