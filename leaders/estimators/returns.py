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
    """J_L as sampled, [R]: by the step of an episode, the mean discounted reward of the episodes not cut before it.

    What a row's end leaves out of its last episode is estimated by the others, so that batches of different sizes
    agree. When an episode begins, and hence when it is cut, says nothing of what it will bring: up to the ratio the
    estimate is unbiased as far as the longest row goes. Behind that nothing is known, and nothing is counted.
    """
    valid, length = batch.valid, batch.valid.shape[-1]
    last = (valid * torch.arange(1, length + 1)).amax(-1)  # steps of each row, [R, N]
    ended = (valid & (batch.terminated | batch.truncated)).gather(-1, (last - 1).clamp(min=0)[..., None])[..., 0]
    sight = torch.where(ended, length, last)  # a row that ended early would have seen no more, and goes on with 0
    until_cut = (sight[..., None] - torch.arange(length)).clamp(min=0)  # steps seen of an episode that begins there
    begun = torch.zeros(len(valid), length + 1, dtype=torch.float64)
    begun.scatter_add_(1, until_cut.flatten(1), batch.starts.flatten(1).double())
    at_risk = begun.flip(1).cumsum(1).flip(1)[:, 1:]  # episodes that the batch shows for more than t steps, [R, T]
    paid = torch.zeros(len(valid), length, dtype=torch.float64)
    paid.scatter_add_(1, batch.step.flatten(1).clamp(max=length - 1), (batch.r_leader * valid).flatten(1))
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
