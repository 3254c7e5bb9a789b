"""V_L of states alone: a critic that needs no policy of the follower's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.follower import BestResponse
from bilevel_envs.kernels import expected_sarsa
from bilevel_envs.linear_quadratic import Quadratic
from bilevel_envs.model import Model, Rollout
from bilevel_envs.noise import Noise
from bilevel_envs.quadratics import lstd, products, symmetric
from bilevel_envs.tabular import Table
from leaders.critics.sarsa import LearnedTable


class StateTable(LearnedTable):
    """V_L(s) += η (r_L + γ_L V_L(s') − V_L(s)), from the last step back to the first; Q_L is what one step brought.

    Args:
      gamma: γ_L.
      learning_rate: η in (0, 1], a number or one per run.
      start: first table: "zeros" or "normal".
    """

    of = "state"

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """One backward pass over the batch."""
        states = best.policy.log_probs.shape[-2]
        if self.table.shape != (noise.runs, states, 1):
            shape = (states, 1)
            self.table = noise.normal(*shape) if self.start == "normal" else np.zeros((noise.runs, *shape))
        decay = self.gamma * (~batch.terminated).double()
        state, following, reward = batch.state.numpy(), batch.next_state.numpy(), batch.r_leader.numpy()
        nothing, certain = np.zeros_like(state), np.ones((1, states, 1))
        valid = batch.valid.numpy()
        expected_sarsa(self.table, state, nothing, following, reward, decay.numpy(), valid, certain, self.rates())

    def values(self, batch: Rollout, policy: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Look-ups of V_L, and r_L + γ_L V_L(s')."""
        table = Table(torch.from_numpy(self.table[..., 0]))
        v, v_next = table(batch.state), table(batch.next_state)
        return batch.r_leader + self.gamma * v_next * ~batch.terminated, v, v_next

    def copies(self, count: int) -> StateTable:
        """`count` tables for each run."""
        return self.copied(StateTable(self.gamma, self.copied_rate(count), self.start), count)


class QuadraticState:
    """LSTD of V_L on 1 and the products of the state's entries; nothing is kept from batch to batch.

    Args:
      gamma: γ_L.
    """

    of = "state"

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.v: Quadratic | None = None

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """One linear solve per run."""
        s, following = (part.flatten(1, 2) for part in (batch.state, batch.next_state))
        one, used = torch.ones_like(s[..., :1]), batch.valid.flatten(1)[..., None].double()
        goes_on = (batch.valid & ~batch.terminated).flatten(1)[..., None]
        needed = 1 + s.shape[-1] * (s.shape[-1] + 1) // 2
        if int(used.sum(1).min()) < needed:
            raise ValueError(
                f'critic="state_values" fits {needed} numbers here and needs at least as many transitions in a batch, '
                f"got {int(used.sum(1).min())}: raise `batch_size`"
            )
        phi, later = (torch.cat([one, products(x)], -1) for x in (s, following))
        w = lstd(phi * used, later * goes_on, batch.r_leader.flatten(1)[..., None] * used, self.gamma)[..., 0]
        self.v = Quadratic(symmetric(w[:, 1:], s.shape[-1]), w[:, 0])

    def leader_gradient(self, policy: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """∇V_L as a function of states; the step has no influence."""
        v = self.v
        assert v is not None, "fit first"
        return lambda state, k: v.gradient(state)

    def values(self, batch: Rollout, policy: Any) -> tuple[Tensor, Tensor, Tensor]:
        """V_L at the visited steps, and r_L + γ_L V_L(s')."""
        assert self.v is not None, "fit first"
        v, v_next = self.v(batch.state), self.v(batch.next_state)
        return batch.r_leader + self.gamma * v_next * ~batch.terminated, v, v_next

    def copies(self, count: int) -> QuadraticState:
        """Another one: nothing is kept."""
        return QuadraticState(self.gamma)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it is fitted anew to each batch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""
