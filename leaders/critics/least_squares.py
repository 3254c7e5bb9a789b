"""Q_L as a quadratic by least-squares temporal differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.mdp import Model, kind_of
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy, LinearResponse
from bilevel_envs.worlds.linear_quadratic.polynomials import lstd, products, symmetric
from leaders.critics.exact import quadratic_values
from leaders.functional.errors import TooFewTransitions


class LeastSquares:
    r"""LSTD on the even quadratic features of z = (s, b), which hold the Q_L of every linear-quadratic world.

    Solves Σ φ(z) [φ(z) − γ E_b'[φ(s', b')]]ᵀ x = Σ φ(z) r_L over the batch, the expectation under g in closed form, so
    that V_L = E_b[Q_L] exactly. Nothing is kept from batch to batch.

    Args:
      gamma: γ_L.
    """

    keeps: ClassVar[bool] = False
    is_quadratic: ClassVar[bool] = True
    gives_gradient: ClassVar[bool] = True

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.q: Quadratic | None = None

    def fit(self, batch: Rollout, best: LinearResponse, model: Model | None, noise: Noise) -> None:
        """One linear solve per run."""
        if kind_of(best.policy) != "linear_quadratic":
            raise TypeError(
                f'critic="lstd" needs a follower with a GaussianPolicy, got {type(best.policy).__name__}; '
                'choose "expected_sarsa" for tables, "state_values" for followers that learn'
            )
        policy, m = best.policy, batch.action.shape[-1]
        z = torch.cat([batch.state, batch.action], -1).flatten(1, 2)
        following = torch.cat([batch.next_state, policy.mean(batch.next_state)], -1).flatten(1, 2)
        spread = torch.zeros(len(policy.covariance), *[z.shape[-1]] * 2, dtype=z.dtype)
        spread[:, -m:, -m:] = policy.covariance
        row, column = torch.triu_indices(z.shape[-1], z.shape[-1])
        one = torch.ones_like(z[..., :1])
        counts = batch.valid.flatten(1)[..., None]
        goes_on = (batch.valid & ~batch.terminated).flatten(1)[..., None]
        fewest, needed = int(counts.sum(1).min()), feature_count(z.shape[-1])
        if fewest < needed:
            raise TooFewTransitions('critic="lstd"', needed, fewest)
        phi = torch.cat([one, products(z)], -1) * counts
        expected = torch.cat([one, products(following) + spread[:, None, row, column]], -1) * goes_on
        x = lstd(phi, expected, batch.r_leader.flatten(1)[..., None], self.gamma)[..., 0]
        self.q = Quadratic(symmetric(x[:, 1:], z.shape[-1]), x[:, 0])

    def leader_gradient(self, policy: GaussianPolicy) -> Callable[[Tensor, Tensor], Tensor]:
        """∇V_L as a function of states; the step has no influence."""
        v = policy.averaged(self.quadratic())
        return lambda state, k: v.gradient(state)

    def quadratic(self) -> Quadratic:
        """Q_L as a function of (s, b)."""
        assert self.q is not None, "fit first"
        return self.q

    def values(self, batch: Rollout, policy: GaussianPolicy) -> tuple[Tensor, Tensor, Tensor]:
        """At the visited steps."""
        return quadratic_values(self.quadratic(), batch, policy)

    def copies(self, count: int) -> LeastSquares:
        """Another one: nothing is kept."""
        return LeastSquares(self.gamma)

    def state_dict(self) -> dict[str, object]:
        """Nothing: it is fitted anew to each batch."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to put back."""


def feature_count(size: int) -> int:
    """How many even monomials of degree at most two there are in `size` variables."""
    return 1 + size * (size + 1) // 2
