"""Q_L as a quadratic by least-squares temporal differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel_envs.follower import BestResponse
from bilevel_envs.linear_quadratic import Quadratic
from bilevel_envs.model import Model, Rollout
from bilevel_envs.noise import Noise
from bilevel_envs.policies import GaussianPolicy
from leaders.critics.exact import quadratic_values


class LeastSquares:
    r"""LSTD on the even quadratic features of z = (s, b), which hold the Q_L of every linear-quadratic world.

    Solves Σ φ(z) [φ(z) − γ E_b'[φ(s', b')]]ᵀ x = Σ φ(z) r_L over the batch, the expectation under g in closed form, so
    that V_L = E_b[Q_L] exactly. Nothing is kept from batch to batch.

    Args:
      gamma: γ_L.

    Source: Bradtke, Barto, Linear least-squares algorithms for temporal difference learning,
    Machine Learning 22 (1996).
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.q: Quadratic | None = None

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """One linear solve per run."""
        if not isinstance(best.policy, GaussianPolicy):
            raise TypeError(
                f'critic="lstd" needs a follower with a GaussianPolicy, got {type(best.policy).__name__}; '
                'for tables choose "expected_sarsa"'
            )
        policy, runs = best.policy, batch.state.shape[0]
        z = torch.cat([batch.state, batch.action], -1).flatten(1, 2)
        d, m = z.shape[-1], batch.action.shape[-1]
        row, column = torch.triu_indices(d, d)

        def features(x: Tensor) -> Tensor:
            """1 and x_i x_j for i ≤ j, [R, K, F]."""
            return torch.cat([torch.ones_like(x[..., :1]), x[..., row] * x[..., column]], -1)

        following = torch.cat([batch.next_state, policy.mean(batch.next_state)], -1).flatten(1, 2)
        spread = torch.zeros(runs, d, d, dtype=z.dtype)
        spread[:, -m:, -m:] = policy.covariance
        expected = features(following)
        expected[..., 1:] += spread[:, None, row, column]
        goes_on = (batch.valid & ~batch.terminated).flatten(1)[..., None]
        # Features range over many powers of ten: each is scaled to its own size in the batch.
        phi = features(z) * batch.valid.flatten(1)[..., None]
        size = phi.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
        phi, later = phi / size, expected * goes_on / size
        system = phi.mT @ (phi - self.gamma * later)
        target = phi.mT @ (batch.r_leader * batch.valid).flatten(1)[..., None]
        x = torch.linalg.lstsq(system, target, driver="gelsd").solution[..., 0] / size[:, 0]
        matrix = torch.zeros(runs, d, d, dtype=z.dtype)
        matrix[:, row, column] = x[:, 1:]
        self.q = Quadratic((matrix + matrix.mT) / 2, x[:, 0])

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

    def state_dict(self) -> dict[str, Any]:
        """Nothing: it is fitted anew to each batch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""
