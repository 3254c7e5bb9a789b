"""What batches bring: mean discounted returns of their episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout


def mean_return(batch: Rollout, gamma: float) -> Tensor:
    """Mean discounted return of the episodes begun, as far as the batch goes, [R]."""
    discounted = (gamma ** batch.step.double() * batch.r_leader * batch.valid).sum((1, 2))
    return discounted / batch.starts.sum((1, 2)).clamp(min=1)


def return_errors(batch: Rollout, gamma: float) -> tuple[Tensor, Tensor]:
    """Standard error of `mean_return` and the number of episodes begun, [R] each; NaN of a single episode."""
    discounted = (gamma ** batch.step.double() * batch.r_leader * batch.valid).flatten(1)
    count = batch.starts.flatten(1).sum(1)
    episode = (batch.starts.flatten(1).cumsum(1) - 1).clamp(min=0)
    totals = torch.zeros(len(count), max(1, int(count.max())), dtype=torch.float64).scatter_add(1, episode, discounted)
    begun = torch.arange(totals.shape[1]) < count[:, None]
    spread = ((totals - mean_return(batch, gamma)[:, None]) ** 2 * begun).sum(1) / (count - 1)
    return (spread / count).sqrt(), count
