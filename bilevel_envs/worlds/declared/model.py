r"""Worlds without a model, sampled by stepping alone: of s̄ = (s, a), only the leader's policy f_θ(a | s) is given.

The arrival law of such a game is p(s' | s, a, b) f_θ(a' | s'). Its first factor is unknown and free of θ, so all that
a leader needs to differentiate is log f_θ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.checks import check_finite, check_shape
from bilevel_envs.core.follower import Policy
from bilevel_envs.core.noise import Noise


class LeaderNetwork(Protocol):
    """A leader's policy as a function of flat weights; see `bilevel_envs.networks.leader_policies`."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of s first, of a last."""

    @property
    def count(self) -> int:
        """Entries of θ, P."""

    def start(self, noise: Noise) -> np.ndarray:
        """First weights, [R, P]."""

    def log_prob(self, theta: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """log f_θ(a | s), [R, ...]."""

    def sample(self, theta: np.ndarray, state: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Actions at states, [R, N, m]."""


@dataclass(frozen=True)
class SimulatedModel:
    """The follower's MDP over s̄ = (s, a), of which log f_θ(a | s) is known and nothing else.

    Attributes:
      network: f.
      theta: its weights, [R, P].

    Raises:
      ValueError: if `theta` does not fit the network or is not finite.
    """

    kind: ClassVar[str] = "declared"
    horizon: ClassVar[int | None] = None
    is_quadratic: ClassVar[bool] = False
    reads_components: ClassVar[bool] = False
    hides_moves: ClassVar[bool] = False
    network: LeaderNetwork
    theta: Tensor

    def __post_init__(self) -> None:
        if len(self.theta.shape) != 2:
            raise ValueError(f"`theta` must have shape [runs, {self.network.count}], got {list(self.theta.shape)}")
        check_shape(self.theta, (self.network.count,), "theta", "[weights]")
        check_finite(self.theta, "theta")

    @property
    def runs(self) -> int:
        """R, or 1 where every run shares the model."""
        return len(self.theta)

    def detach(self) -> SimulatedModel:
        """The same model without gradients."""
        return replace(self, theta=self.theta.detach())

    def log_lead(self, state: Tensor) -> Tensor:
        """log f_θ(a | s) at s̄ = (s, a), [R, ..., n + m]; the result is [R, ...]."""
        n = self.network.sizes[0]
        theta = self.theta.expand(len(state), -1)
        state = state.to(theta.dtype)
        return self.network.log_prob(theta, state[..., :n], state[..., n:])

    def terms(self, rollout: Rollout, policy: Policy | None = None) -> Terms:
        """The differentiable terms at the visited steps; both rewards and the first s are free of θ.

        Args:
          rollout: the steps, states s̄ [R, N, T, n + m].
          policy: of no consequence here.
        """
        return Terms(
            r_leader=None,
            r_follower=None,
            log_start=self.log_lead(rollout.state),
            log_arrival=self.log_lead(rollout.next_state),
        )
