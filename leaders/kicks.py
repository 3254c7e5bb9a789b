"""Every estimator's kick, side by side: what each step adds to the eligibility trace of ∇r_F.

`weights.py` explains the trace. `occupancy` is how much a step counts for the leader, γ_L^k divided by the number of
episodes, [R, N, T]; it is 0 where a step does not count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bilevel_envs.model import Preferences, Rollout
from leaders.values import Values
from leaders.visits import visit_mean

Kick = Callable[[Rollout, Values, Tensor, Preferences], Tensor]


def kick_naive_pgd(batch: Rollout, values: Values, occupancy: Tensor, preferences: Preferences) -> Tensor:
    """No kick: the follower is treated as if it would not react."""
    return torch.zeros_like(occupancy)


def kick_bc_hg(batch: Rollout, values: Values, occupancy: Tensor, preferences: Preferences) -> Tensor:
    """γ_L^k B_L / β, with the benefit B_L = Q_L − E_b[Q_L] (arXiv:2603.14867, eq. 5)."""
    return occupancy * values.benefit / preferences.beta


def kick_bc_hg_shared(batch: Rollout, values: Values, occupancy: Tensor, preferences: Preferences) -> Tensor:
    """The same, shared among all visits of (s, b) (arXiv:2603.14867, Algorithm 1, line 12)."""
    pair = batch.state * (int(batch.action.max()) + 1) + batch.action
    return visit_mean(kick_bc_hg(batch, values, occupancy, preferences), pair, batch.valid)


KICKS: dict[str, Kick] = {
    "naive_pgd": kick_naive_pgd,
    "bc_hg": kick_bc_hg,
    "bc_hg_shared": kick_bc_hg_shared,
}
