"""Means over repeat visits, per run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def visit_mean(x: Tensor, key: Tensor, valid: Tensor) -> Tensor:
    """Replaces each entry by the mean over all visits with the same key in the same run.

    Args:
      x: what to average, [R, N, T].
      key: what counts as the same place, non-negative ints [R, N, T].
      valid: which entries count, bool [R, N, T].

    Returns:
      The means at each entry, 0 where not valid, [R, N, T].
    """
    means, flat = _means(x, key, valid, int(key.max()) + 1)
    return torch.from_numpy(means[flat].reshape(x.shape)) * valid


def mean_table(x: Tensor, key: Tensor, valid: Tensor, keys: int) -> Tensor:
    """The mean of `x` for each key, 0 for keys that never occur, [R, keys]."""
    means, _ = _means(x, key, valid, keys)
    return torch.from_numpy(means.reshape(x.shape[0], keys))


def sum_table(x: Tensor, key: Tensor, keys: int) -> Tensor:
    """The sum of `x` [R, N, T] for each key, per run, [R, keys]."""
    return torch.zeros(len(x), keys, dtype=x.dtype).scatter_add_(1, key.flatten(1), x.flatten(1))


def number(mark: Tensor) -> Tensor:
    """How many steps of each run are marked, at least 1, float64 [R, 1, 1]."""
    return mark.sum((1, 2), keepdim=True).clamp(min=1).double()


def start_share(starts: Tensor) -> Tensor:
    """1 over the number of episodes where one starts, else 0, [R, N, T]."""
    return starts / number(starts)


def _means(x: Tensor, key: Tensor, valid: Tensor, keys: int) -> tuple[np.ndarray, np.ndarray]:
    runs = x.shape[0]
    flat = (key + keys * torch.arange(runs).view(-1, 1, 1)).flatten().numpy()
    counted = valid.flatten().numpy().astype(float)
    visits = np.bincount(flat, counted, minlength=runs * keys)
    total = np.bincount(flat, counted * x.flatten().numpy(), minlength=runs * keys)
    return total / np.maximum(visits, 1.0), flat
