"""Q_L without sampling, for models whose tables are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import kind_of
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.tabular.transitions import look_up
from leaders.exact.linear_quadratic import BumpValues, leader_values


class ExactCritic:
    """Solves the leader's Bellman equation under g: Q_L = r_L + γ_L E[V_L(s') if the episode goes on].

    For tables and for linear-quadratic worlds.

    Args:
      gamma: γ_L.
    """

    learns: ClassVar[bool] = False  # from batches
    is_quadratic: ClassVar[bool] = True
    gives_gradient: ClassVar[bool] = True

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.table = torch.zeros(1, 0, 0, dtype=torch.float64)
        self.q: Quadratic | None = None
        self.bumps: BumpValues | None = None

    def fit(self, batch: Rollout, best: BestResponse[Any, Any], model: Any, noise: Noise) -> None:
        """Solves anew; the batch is not looked at."""
        if kind_of(model) == "linear_quadratic":
            if kind_of(best.policy) != "linear_quadratic":
                other = "state_values" if model.bump is None else "td"
                raise TypeError(
                    f'critic="exact" needs a follower with a GaussianPolicy, got {type(best.policy).__name__}; '
                    f'choose "{other}"'
                )
            if model.bump is not None:
                self.bumps = BumpValues(model, best.policy, self.gamma)
            else:
                self.q = leader_values(model, best.policy, self.gamma)[0]
            return
        if kind_of(model) != "tabular":
            raise TypeError(
                f'critic="exact" needs a TabularModel or a LinearQuadraticModel, got {type(model).__name__}; '
                "choose one that learns"
            )
        probs = best.policy.probs.expand(max(model.runs, best.policy.probs.shape[0]), -1, -1)
        v = model.resolvent(probs, self.gamma, (probs * model.r_leader).sum(-1))
        self.table = model.r_leader + self.gamma * model.expected_next(v)

    def values(self, batch: Rollout, policy: Any) -> tuple[Tensor, Tensor, Tensor]:
        """At the visited steps."""
        if self.bumps is not None:
            at = self.bumps
            k = batch.step
            return at.q(batch.state, batch.action, k), at.v(batch.state, k), at.v(batch.next_state, k + 1)
        if self.q is not None:
            return quadratic_values(self.q, batch, policy)
        return table_values(self.table, batch, policy)

    def leader_gradient(self, policy: GaussianPolicy) -> Callable[[Tensor, Tensor], Tensor]:
        """∇V_L as a function of states and steps, in linear-quadratic worlds."""
        if self.bumps is not None:
            return self.bumps.gradient
        v = policy.averaged(self.quadratic())
        return lambda state, k: v.gradient(state)

    def quadratic(self) -> Quadratic:
        """Q_L as a function of (s, b), in linear-quadratic worlds."""
        assert self.q is not None, "fit to a LinearQuadraticModel first"
        return self.q

    def copies(self, count: int) -> ExactCritic:
        """Another one: there is nothing to copy."""
        return ExactCritic(self.gamma)

    def state_dict(self) -> dict[str, object]:
        """Nothing: it is solved anew each time."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to put back."""


def quadratic_values(q: Quadratic, batch: Rollout, policy: GaussianPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """Q_L, V_L = E_b[Q_L] and V_L at the next state from a quadratic of (s, b)."""
    v = policy.averaged(q)
    return q(batch.state, batch.action), v(batch.state), v(batch.next_state)


def table_values(q: Tensor, batch: Rollout, policy: BoltzmannPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """Q_L, V_L = E_b[Q_L] and V_L at the next state from a table [R|1, S, B]."""
    v = (policy.probs * q).sum(-1)
    return look_up(q, batch.state, batch.action), look_up(v, batch.state), look_up(v, batch.next_state)
