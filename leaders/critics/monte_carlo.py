"""Q_L and V_L as mean returns of the present batch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse
from bilevel_envs.worlds.tabular.transitions import look_up
from leaders.functional.returns import returns_to_go
from leaders.functional.visits import mean_table


class MonteCarlo:
    """Mean discounted return after each visited pair, and after each visited state; forgets between batches.

    A return that the batch cuts off is summed as far as it goes.

    Args:
      gamma: γ_L.
    """

    keeps: ClassVar[bool] = False

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.q = self.v = torch.zeros(1, 0)

    def fit(self, batch: Rollout, best: TabularResponse, model: Model | None, noise: Noise) -> None:
        """Means over visits; nothing is kept from batch to batch."""
        returns = returns_to_go(batch, self.gamma)
        states, actions = best.policy.log_probs.shape[-2:]
        pair = batch.state * actions + batch.action
        self.q = mean_table(returns, pair, batch.valid, states * actions).view(-1, states, actions)
        self.v = mean_table(returns, batch.state, batch.valid, states)

    def values(self, batch: Rollout, policy: BoltzmannPolicy) -> tuple[Tensor, Tensor, Tensor]:
        """Means over visits of the pair, of the state, and of the next state (0 where it was never visited)."""
        v, v_next = (look_up(self.v, state) for state in (batch.state, batch.next_state))
        return look_up(self.q, batch.state, batch.action), v, v_next

    def copies(self, count: int) -> MonteCarlo:
        """Another one: nothing is kept."""
        return MonteCarlo(self.gamma)

    def state_dict(self) -> dict[str, object]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to put back."""
