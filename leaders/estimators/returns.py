"""What batches bring: mean discounted returns of their episodes."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout


def mean_return(batch: Rollout, gamma: float) -> Tensor:
    """Mean discounted return of the episodes begun, as far as the batch goes, [R]."""
    discounted = (gamma ** batch.step.double() * batch.r_leader * batch.valid).sum((1, 2))
    return discounted / batch.starts.sum((1, 2)).clamp(min=1)


def uncut_return(batch: Rollout, gamma: float) -> Tensor:
    """J_L as sampled, [R]: by the step t of an episode, the mean discounted reward of the episodes not cut before it.

    These are the episodes that begin t steps or more before the end of their row. The estimate is consistent in the
    number of episodes: of a single row that holds one or two it gives long episodes too much weight. What lies beyond
    the length of a row is left out.
    """
    length = batch.valid.shape[-1]
    at_risk = batch.starts.sum(1).cumsum(-1).flip(-1)  # of each step t: episodes that begin at T - 1 - t or before
    paid = torch.zeros(len(batch.valid), length, dtype=torch.float64)
    paid.scatter_add_(1, batch.step.flatten(1), (batch.r_leader * batch.valid).flatten(1))
    return (gamma ** torch.arange(length).double() * paid / at_risk.clamp(min=1)).sum(1)


def return_errors(batch: Rollout, gamma: float) -> tuple[Tensor, Tensor]:
    """Standard error of `mean_return` and the number of episodes begun, [R] each; NaN of a single episode."""
    discounted = (gamma ** batch.step.double() * batch.r_leader * batch.valid).flatten(1)
    count = batch.starts.flatten(1).sum(1)
    episode = (batch.starts.flatten(1).cumsum(1) - 1).clamp(min=0)
    totals = torch.zeros(len(count), max(1, int(count.max())), dtype=torch.float64).scatter_add(1, episode, discounted)
    begun = torch.arange(totals.shape[1]) < count[:, None]
    spread = ((totals - mean_return(batch, gamma)[:, None]) ** 2 * begun).sum(1) / (count - 1)
    return (spread / count).sqrt(), count
