"""Q_L and V_L as mean returns of the present batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel_envs.follower import BestResponse
from bilevel_envs.kernels import decaying_sum
from bilevel_envs.model import Model, Rollout
from bilevel_envs.noise import Noise
from bilevel_envs.policies import BoltzmannPolicy
from bilevel_envs.tabular import Table
from leaders.visits import mean_table, visit_mean


class MonteCarlo:
    """Mean discounted return after each visited pair, and after each visited state; forgets between batches.

    A return that the batch cuts off is summed as far as it goes.

    Args:
      gamma: γ_L.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """Nothing is kept: `values` reads the batch itself."""

    def values(self, batch: Rollout, policy: BoltzmannPolicy) -> tuple[Tensor, Tensor, Tensor]:
        """Means over visits of the pair, of the state, and of the next state (0 where it was never visited)."""
        returns = returns_to_go(batch, self.gamma)
        states, actions = policy.log_probs.shape[-2:]
        pair = batch.state * actions + batch.action
        v = Table(mean_table(returns, batch.state, batch.valid, states))
        return visit_mean(returns, pair, batch.valid), v(batch.state), v(batch.next_state)

    def copies(self, count: int) -> MonteCarlo:
        """Itself: it holds nothing."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""


def returns_to_go(batch: Rollout, gamma: float) -> Tensor:
    """Σ_{j≥k} γ^{j−k} r_L inside each episode and the batch, [R, N, T]."""
    # The same sum as a trace, read from the last step to the first: it begins anew where an episode ends.
    reward = (batch.r_leader * batch.valid).flip(-1)
    begins = (batch.terminated | batch.truncated).flip(-1)
    steps = reward.shape[-1]
    sums = decaying_sum(reward.view(-1, steps).numpy(), gamma, begins.view(-1, steps).numpy())
    return torch.from_numpy(sums).view(reward.shape).flip(-1)
