"""V_L of states, and Q_L from it: critics that do not take the follower's policy at its word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.follower import BestResponse
from bilevel_envs.kernels import expected_sarsa, sarsa
from bilevel_envs.linear_quadratic import Quadratic
from bilevel_envs.model import Model, Rollout
from bilevel_envs.noise import Noise
from bilevel_envs.policies import GaussianPolicy
from bilevel_envs.quadratics import lstd, products, symmetric
from bilevel_envs.tabular import Table
from leaders.critics.sarsa import LearnedTable


class StateTable(LearnedTable):
    """V_L(s) += η (r_L + γ_L V_L(s') − V_L(s)), and Q_L(s, b) += η (r_L + γ_L V_L(s') − Q_L(s, b)) after it.

    Both go from the last step of the batch back to the first.

    Args:
      gamma: γ_L.
      learning_rate: η in (0, 1], a number or one per run.
      start: first tables: "zeros" or "normal".
    """

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
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

    def values(self, batch: Rollout, policy: Any) -> tuple[Tensor, Tensor, Tensor]:
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
    """LSTD of V_L on 1 and the products of the state's entries; Q_L is V_L and an advantage fitted to one step.

    The advantage is linear in u_i, u_i s_j and u_i u_j − E[u_i u_j], with u = b − E[b|s] under the policy that is known
    or estimated. These features have mean 0 at every state, so that what a quadratic of the state cannot tell of V_L is
    noise to their fit and no bias; and so has the benefit. Larger states count for less in it, 1 / (1 + |s|²)²,
    because what they leave unexplained grows with |s|². Nothing is kept from batch to batch.

    Args:
      gamma: γ_L.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.v: Quadratic | None = None
        self.advantage: Tensor | None = None

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """Two linear solves per run."""
        if batch.action.ndim == batch.r_leader.ndim:
            raise ValueError('`critic` must be "td" for discrete actions where states are vectors, got "state_values"')
        s, following = (part.flatten(1, 2).double() for part in (batch.state, batch.next_state))
        used = batch.valid.flatten(1)[..., None].double()
        goes_on = (batch.valid & ~batch.terminated).flatten(1)[..., None]
        psi = _centred(batch.state.double(), batch.action, best.policy).flatten(1, 2)
        needed, fewest = max(1 + s.shape[-1] * (s.shape[-1] + 1) // 2, psi.shape[-1]), int(used.sum(1).min())
        if fewest < needed:
            raise ValueError(
                f'critic="state_values" fits {needed} numbers here and needs at least as many transitions in a batch, '
                f"got {fewest}: raise `batch_size`"
            )
        reward = batch.r_leader.flatten(1)[..., None] * used
        v = lstd(_features(s) * used, _features(following) * goes_on, reward, self.gamma)[..., 0]
        self.v = Quadratic(symmetric(v[:, 1:], s.shape[-1]), v[:, 0])
        brought = reward + self.gamma * self.v(following)[..., None] * goes_on - self.v(s)[..., None] * used
        share = used / (1 + (s**2).sum(-1, keepdim=True))
        phi = psi * share
        self.advantage = lstd(phi, torch.zeros_like(phi), brought * share, 0.0)[..., 0]

    def leader_gradient(self, policy: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """∇V_L as a function of states; the step has no influence."""
        v = self.v
        assert v is not None, "fit first"
        return lambda state, k: v.gradient(state)

    def values(self, batch: Rollout, policy: Any) -> tuple[Tensor, Tensor, Tensor]:
        """At the visited steps."""
        assert self.v is not None, "fit first"
        assert self.advantage is not None
        v = self.v(batch.state)
        psi = _centred(batch.state.double(), batch.action, policy)
        advantage = (psi * self.advantage.view(len(v), *[1] * (v.ndim - 1), -1)).sum(-1)
        return v + advantage, v, self.v(batch.next_state)

    def copies(self, count: int) -> QuadraticState:
        """Another one: nothing is kept."""
        return QuadraticState(self.gamma)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it is fitted anew to each batch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""


def _centred(state: Tensor, action: Tensor, policy: Any) -> Tensor:
    """u_i, u_i s_j and u_i u_j − E[u_i u_j] of u = b − E[b|s], [R, N, T, F]."""
    if isinstance(policy, GaussianPolicy):
        mean, covariance = policy.mean(state), policy.covariance[:, None, None]
    else:
        mean, variance = policy.moments(state)
        covariance = torch.diag_embed(variance)
    u = action - mean
    row, column = torch.triu_indices(u.shape[-1], u.shape[-1])
    across = (u[..., :, None] * state[..., None, :]).flatten(-2)
    return torch.cat([u, across, products(u) - covariance[..., row, column]], -1)


def _features(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[..., :1]), products(x)], -1)
