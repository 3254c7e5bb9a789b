"""Û(s) ≈ ∇V_F(s), fitted as the expected discounted sum of what each step adds to ∇Q_F: HPGD's centre."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse, Policy
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.temporal_differences import Fit, TemporalDifference
from bilevel_envs.worlds.linear_quadratic.polynomials import lstd, products
from leaders.critics.critic import Critic, capabilities_of


class Baseline(Protocol):
    """A vector-valued function of the state."""

    def fit(self, batch: Rollout, added: Tensor, used: Tensor, noise: Noise) -> None:
        """Learns from what each step of a batch adds to ∇Q_F, [R, N, T, dim θ], where `used` [R, N, T]."""

    def __call__(self, state: Tensor) -> Tensor:
        """Û at states [R, N, T, n], [R, N, T, dim θ]."""

    def copies(self, count: int) -> Baseline:
        """A baseline for `count` times as many runs, copy j of run i at j·R + i."""

    def state_dict(self) -> dict[str, object]:
        """What it has learnt, as tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


class QuadraticBaseline:
    """Least squares on 1 and s_i s_j, which hold ∇V_F of every linear-quadratic world; fitted anew to each batch.

    Args:
      gamma: γ_F.
    """

    keeps: ClassVar[bool] = False

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.weight = torch.zeros(0)

    def fit(self, batch: Rollout, added: Tensor, used: Tensor, noise: Noise) -> None:
        """One linear solve per run."""
        counts = used.flatten(1)[..., None]
        goes_on = (used & ~batch.terminated).flatten(1)[..., None]
        phi, later = (_features(state).flatten(1, 2) for state in (batch.state, batch.next_state))
        self.weight = lstd(phi * counts, later * goes_on, added.flatten(1, 2), self.gamma)

    def __call__(self, state: Tensor) -> Tensor:
        """At states [R, N, T, n]."""
        return torch.einsum("rntf,rfp->rntp", _features(state), self.weight)

    def copies(self, count: int) -> QuadraticBaseline:
        """Another one: nothing is kept."""
        return QuadraticBaseline(self.gamma)

    def state_dict(self) -> dict[str, object]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to put back."""


class NetworkBaseline:
    """A network on the state with one output per entry of θ.

    Args:
      gamma: γ_F.
      how: how it is fitted.
    """

    def __init__(self, gamma: float, how: Fit | None = None) -> None:
        self.gamma, self.how = gamma, how or Fit()
        self.network = TemporalDifference(gamma, self.how)

    def fit(self, batch: Rollout, added: Tensor, used: Tensor, noise: Noise) -> None:
        """Some Adam steps, from where the last fit ended."""
        goes_on = (used & ~batch.terminated).flatten(1)
        if self.how.on_sample:
            used = used & ~(batch.truncated | batch.terminated | batch.cut)
        state, following = batch.state.flatten(1, 2), batch.next_state.flatten(1, 2)
        self.network.fit(
            state, added.flatten(1, 2), used.flatten(1), lambda f: f(following) * goes_on[..., None], noise
        )

    def __call__(self, state: Tensor) -> Tensor:
        """At states [R, N, T, n]."""
        return self.network(state)

    def copies(self, count: int) -> NetworkBaseline:
        """With the weights as they are now."""
        other = NetworkBaseline(self.gamma, self.how)
        other.network = self.network.copies(count)
        return other

    def state_dict(self) -> dict[str, object]:
        """The network's."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Puts back what `state_dict` gave."""
        self.network.load_state_dict(state)


class WithBaseline:
    """A critic that carries a baseline along, so that both are copied, saved and loaded together.

    Attributes:
      critic: estimates Q_L and V_L.
      baseline: estimates ∇V_F.
    """

    def __init__(self, critic: Critic, baseline: Baseline) -> None:
        self.critic, self.baseline = critic, baseline

    @property
    def keeps(self) -> bool:
        """Whether both keep what earlier batches taught them."""
        return capabilities_of(self.critic).keeps and capabilities_of(self.baseline).keeps

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """The critic's; the baseline is fitted where ∇Q_F is known step by step."""
        self.critic.fit(batch, best, model, noise)

    def values(self, batch: Rollout, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
        """The critic's."""
        return self.critic.values(batch, policy)

    def copies(self, count: int) -> WithBaseline:
        """Of both."""
        return WithBaseline(self.critic.copies(count), self.baseline.copies(count))

    def state_dict(self) -> dict[str, object]:
        """Of both."""
        return {"critic": self.critic.state_dict(), "baseline": self.baseline.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.critic.load_state_dict(state["critic"])
        self.baseline.load_state_dict(state["baseline"])


def _features(state: Tensor) -> Tensor:
    """1 and s_i s_j, [..., F]."""
    return torch.cat([torch.ones_like(state[..., :1]), products(state)], -1)
