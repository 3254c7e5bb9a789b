"""V_L of states, and Q_L from it: critics that do not take the follower's policy at its word."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse, Policy, PolicyWithMoments
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.linear_quadratic.polynomials import Polynomial, lstd, symmetric
from bilevel_envs.worlds.tabular.kernels.critics import expected_sarsa, sarsa
from bilevel_envs.worlds.tabular.model import Table
from bilevel_envs.worlds.tabular.policy import TabularResponse
from leaders.critics.sarsa import LearnedTable
from leaders.functional.monomials import Monomials


class StateTable(LearnedTable):
    """V_L(s) += η (r_L + γ_L V_L(s') − V_L(s)), and Q_L(s, b) += η (r_L + γ_L V_L(s') − Q_L(s, b)) after it.

    Both go from the last step of the batch back to the first.

    Args:
      gamma: γ_L.
      learning_rate: η in (0, 1], a number or one per run.
      start: first tables: "zeros" or "normal".
    """

    def fit(self, batch: Rollout, best: TabularResponse, model: Model | None, noise: Noise) -> None:
        """One backward pass over the batch for each table; of the policy only the size is read."""
        states, actions = best.policy.log_probs.shape[-2:]
        shape = (states, 1 + actions)  # V_L stands in the first column
        if self.table.shape != (noise.runs, *shape):
            self.table = noise.normal(*shape) if self.start == "normal" else np.zeros((noise.runs, *shape))
        state, action, following = (part.numpy() for part in (batch.state, batch.action, batch.next_state))
        reward, valid, decay = batch.r_leader.numpy(), batch.valid.numpy(), (self.gamma * ~batch.terminated).numpy()
        v, q = (np.ascontiguousarray(part) for part in (self.table[..., :1], self.table[..., 1:]))
        nothing, certain = np.zeros_like(state), np.ones((1, states, 1))
        expected_sarsa(v, state, nothing, following, reward, decay, valid, certain, self.rates())
        brought = reward + decay * v[np.arange(noise.runs)[:, None, None], following, 0]
        order = np.broadcast_to(np.arange(state[0].size)[::-1], (noise.runs, state[0].size)).copy()
        sarsa(q, state, action, brought, np.zeros_like(brought), valid, order, self.rates())
        self.table = np.concatenate([v, q], -1)

    def values(self, batch: Rollout, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
        """Look-ups."""
        table = Table(torch.from_numpy(self.table))
        return (
            table(batch.state, batch.action + 1),
            table(batch.state)[..., 0],
            table(batch.next_state)[..., 0],
        )

    def copies(self, count: int) -> StateTable:
        """`count` tables for each run."""
        return self.copied(StateTable(self.gamma, self.copied_rate(count), self.start), count)


class QuadraticState:
    """V_L as a polynomial of the state by LSTD, and Q_L as one of (s, b), fitted to r_L + γ_L V_L(s').

    Both of degree 2. Where rewards are quadratic and moves linear, what one step brings is such a polynomial of (s, b)
    whatever the follower does, so that a policy that bends costs V_L some accuracy, and the benefit next to none.
    E_b[Q_L] takes mean and covariance of the policy that is known or estimated. Larger states count for less in the fit
    of Q_L (`relative`), because what is left unexplained grows with ‖s‖². Nothing is kept from batch to batch.

    Args:
      gamma: γ_L.
    """

    keeps: ClassVar[bool] = False
    is_quadratic: ClassVar[bool] = True
    gives_gradient: ClassVar[bool] = True

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.v: Polynomial | None = None
        self.q: Polynomial | None = None

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """Two linear solves per run."""
        if batch.action.ndim == batch.r_leader.ndim:
            raise ValueError('`critic` must be "td" for discrete actions where states are vectors, got "state_values"')
        seen = Monomials.of(batch, 'critic="state_values"')
        reward = batch.r_leader.flatten(1)[..., None].double()
        size = 1 + batch.state.shape[-1]
        v = lstd(seen.phi, seen.later, reward, self.gamma)[..., 0]
        self.v = Polynomial(symmetric(v, size))
        brought = reward + self.gamma * self.v(seen.following)[..., None] * seen.goes_on
        q = lstd(seen.z, None, brought * seen.share, 0.0)[..., 0]
        self.q = Polynomial(symmetric(q, size + batch.action.shape[-1]))

    def leader_gradient(self, policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
        """∇V_L as a function of states; the step has no influence."""
        v = self.v
        assert v is not None, "fit first"
        return lambda state, k: v.gradient(state)

    def quadratic(self) -> Polynomial:
        """Q_L as a function of (s, b)."""
        assert self.q is not None, "fit first"
        return self.q

    def values(self, batch: Rollout, policy: PolicyWithMoments) -> tuple[Tensor, Tensor, Tensor]:
        """At the visited steps."""
        assert self.v is not None, "fit first"
        q, m = self.quadratic(), batch.action.shape[-1]
        s, b, following = (part.double() for part in (batch.state, batch.action, batch.next_state))
        mean, covariance = policy.moments(s)
        curvature = q.matrix[:, None, None, -m:, -m:]
        expected = q(s, mean) + (curvature * covariance).sum((-2, -1))
        return q(s, b), expected, self.v(following)

    def copies(self, count: int) -> QuadraticState:
        """Another one: nothing is kept."""
        return QuadraticState(self.gamma)

    def state_dict(self) -> dict[str, object]:
        """Nothing: it is fitted anew to each batch."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to put back."""
