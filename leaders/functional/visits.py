"""Means over repeat visits, per run."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_envs.worlds.tabular.kernels.critics import mean_by_key


def visit_mean(x: Tensor, key: Tensor, valid: Tensor) -> Tensor:
    """Replaces each entry by the mean over all visits with the same key in the same run.

    Args:
      x: what to average, [R, N, T].
      key: what counts as the same place, non-negative ints [R, N, T].
      valid: which entries count, bool [R, N, T].

    Returns:
      The means at each entry, 0 where not valid, [R, N, T].
    """
    return _means(x, key, valid, int(key.max()) + 1).gather(1, key.flatten(1)).view(x.shape) * valid


def mean_table(x: Tensor, key: Tensor, valid: Tensor, keys: int) -> Tensor:
    """The mean of `x` for each key, 0 for keys that never occur, [R, keys]."""
    assert int(key.max()) < keys, "keys must lie below `keys`"
    return _means(x, key, valid, keys)


def _means(x: Tensor, key: Tensor, valid: Tensor, keys: int) -> Tensor:
    means = mean_by_key(x.flatten(1).numpy(), key.flatten(1).numpy(), valid.flatten(1).numpy(), keys)
    return torch.from_numpy(means)


def sum_table(x: Tensor, key: Tensor, keys: int) -> Tensor:
    """The sum of `x` [R, N, T] for each key, per run, [R, keys]."""
    return torch.zeros(len(x), keys, dtype=x.dtype).scatter_add_(1, key.flatten(1), x.flatten(1))


def number(mark: Tensor) -> Tensor:
    """How many steps of each run are marked, at least 1, float64 [R, 1, 1]."""
    return mark.sum((1, 2), keepdim=True).clamp(min=1).double()


def start_share(starts: Tensor) -> Tensor:
    """1 over the number of episodes where one starts, else 0, [R, N, T]."""
    return starts / number(starts)
