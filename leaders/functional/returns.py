"""Returns that followed each step of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.worlds.tabular.kernels.critics import decaying_sum


def returns_to_go(batch: Rollout, gamma: float) -> Tensor:
    """Σ_{j≥k} γ^{j−k} r_L inside each episode and the batch, [R, N, T]."""
    # The same sum as a trace, read from the last step to the first: it begins anew where an episode ends.
    reward = (batch.r_leader * batch.valid).flip(-1)
    begins = (batch.terminated | batch.truncated).flip(-1)
    steps = reward.shape[-1]
    sums = decaying_sum(reward.view(-1, steps).numpy(), gamma, begins.view(-1, steps).numpy())
    return torch.from_numpy(sums).view(reward.shape).flip(-1)
