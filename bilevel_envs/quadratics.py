"""Linear functions of quadratic features, fitted to temporal differences by least squares."""

from __future__ import annotations

import torch
from torch import Tensor


def products(x: Tensor) -> Tensor:
    """x_i x_j for i ≤ j, in the order of `torch.triu_indices`, [..., d (d + 1) / 2]."""
    row, column = torch.triu_indices(x.shape[-1], x.shape[-1])
    return x[..., row] * x[..., column]


def symmetric(entries: Tensor, size: int) -> Tensor:
    """The matrix M with xᵀMx = Σ entries · `products(x)`, [..., d, d]."""
    matrix = torch.zeros(*entries.shape[:-1], size, size, dtype=entries.dtype)
    row, column = torch.triu_indices(size, size)
    matrix[..., row, column] = entries
    return (matrix + matrix.mT) / 2


def lstd(phi: Tensor, later: Tensor, reward: Tensor, gamma: float) -> Tensor:
    """The w that solves Σ φ (φ − γ φ')ᵀ w = Σ φ r: the fixed point of temporal differences within the features.

    Args:
      phi: φ of each transition, 0 where it does not count, [R, K, F].
      later: E[φ'] after it, 0 where nothing follows, [R, K, F].
      reward: [R, K, D].
      gamma: γ.

    Returns:
      w, [R, F, D].

    Source: Bradtke, Barto, Linear least-squares algorithms for temporal difference learning,
    Machine Learning 22 (1996).
    """
    # Features range over many powers of ten: each is scaled to its own size in the batch.
    size = phi.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    phi, later = phi / size, later / size
    system = phi.mT @ (phi - gamma * later)
    return torch.linalg.lstsq(system, phi.mT @ reward, driver="gelsd").solution / size.mT
