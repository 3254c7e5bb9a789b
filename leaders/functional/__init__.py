"""The estimators' mathematics, as functions of tensors."""
