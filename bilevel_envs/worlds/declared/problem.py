"""What is known of an environment that somebody else wrote: both rewards, functions of θ and logged components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.checks import check_shape
from bilevel_envs.core.follower import Policy
from bilevel_envs.core.mdp import ConfigurableMDP, Parameterization, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import around

Reward: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # θ [..., *θ.shape] and c [..., C] to [...]
Step: TypeAlias = Callable[[Any, Any, Any, Any, Mapping[str, Any]], ArrayLike]
SetTheta: TypeAlias = Callable[[Any, np.ndarray], object]  # an environment and θ


@dataclass(frozen=True)
class RewardModel:
    """The follower's MDP at one θ, of which both rewards are known as functions of θ, and nothing else.

    Attributes:
      theta: ``[R, *θ.shape]``.
      reward_follower, reward_leader: see `ConfigurableRewards`.
    """

    kind: ClassVar[str] = "declared"
    horizon: ClassVar[int | None] = None
    is_quadratic: ClassVar[bool] = False
    reads_components: ClassVar[bool] = True
    hides_moves: ClassVar[bool] = False
    theta: Tensor
    reward_follower: Reward
    reward_leader: Reward

    @property
    def runs(self) -> int:
        """R."""
        return len(self.theta)

    def detach(self) -> RewardModel:
        """The same model without gradients."""
        return replace(self, theta=self.theta.detach())

    def rewards(self, components: Tensor) -> tuple[Tensor, Tensor]:
        """r_F and r_L at components [R, ..., C], [R, ...].

        Raises:
          TypeError: if a reward is no tensor of real numbers.
          ValueError: if it has another shape, or is not finite.
        """
        between = (1,) * (components.ndim - 2)
        theta = self.theta.view(self.runs, *between, *self.theta.shape[1:])
        found = []
        for name, reward in (("r_follower", self.reward_follower), ("r_leader", self.reward_leader)):
            try:
                value = reward(theta, components.clone())  # which it may write into
            except Exception as error:
                raise ValueError(
                    f"`{name}(theta, components)` raised {type(error).__name__} ({error}) at θ {list(theta.shape)} and "
                    f"components {list(components.shape)}. Take torch's functions, not NumPy's, and index last axes: "
                    "theta[..., 0], components[..., 1]"
                ) from error
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"`{name}(theta, components)` must return a tensor of floating-point numbers, got {got}: make it "
                    "of θ and components by torch operations"
                )
            if value.shape != components.shape[:-1]:
                raise ValueError(
                    f"`{name}(theta, components)` must keep the leading axes of components and sum out the last: "
                    f"{list(components.shape[:-1])} from components {list(components.shape)} and θ "
                    f"{list(theta.shape)}, got {list(value.shape)}. Index last axes: theta[..., 0], components[..., 1]"
                )
            if not value.isfinite().all():
                first = (~value.isfinite()).nonzero()[0].tolist()
                raise ValueError(
                    f"`{name}(theta, components)` must be finite; it is {value[tuple(first)].item()} at θ = "
                    f"{self.theta[first[0]].tolist()} and components {components[tuple(first)].tolist()}: keep "
                    "logarithms, roots and quotients away from where they have no value, or narrow `theta_space`"
                )
            found.append(value)
        return found[0], found[1]

    def terms(self, rollout: Rollout, policy: Policy | None = None) -> Terms:
        """Both rewards at the visited steps; transitions and first states are free of θ.

        Args:
          rollout: the steps, with their `components`.
          policy: of no consequence here.

        Raises:
          ValueError: if the steps have no components.
        """
        if rollout.components is None:
            raise ValueError("`rollout` must come from the copies of a black box, which log components")
        r_follower, r_leader = self.rewards(rollout.components)
        return Terms(r_leader=r_leader, r_follower=r_follower, log_start=None, log_arrival=None)


@dataclass(frozen=True, kw_only=True)
class RewardProblem(ConfigurableMDP):
    """What `ConfigurableRewards` or `ConfigurableDynamics` was told; see there.

    Attributes:
      env: the environment, by its id or class.
      space: what θ may be.
      first: the default θ.
      wants: the preferences.
      r_follower, r_leader: the rewards.
      discrete_actions: how many there are; 0 for vectors.
      logs: how components are logged.
      masks_actions: whether a mask of actions follows each observation.
      start: makes the parameterisation; None for the usual one.
      sets: puts θ into an environment before each reset; None where θ is in the rewards alone.
      moves_start: whether the first observation of a seed depends on θ.
    """

    simulates_its_model: ClassVar[bool] = False
    declared_by: ClassVar[str] = "ConfigurableRewards"
    env: str
    space: gym.spaces.Box
    first: np.ndarray
    wants: Preferences
    r_follower: Reward
    r_leader: Reward
    discrete_actions: int = 0
    masks_actions: bool = False
    logs: Sequence[str] | Step | None = None
    start: Callable[[int, Noise], Parameterization] | None = None
    sets: SetTheta | None = None
    moves_start: bool = False

    @property
    def title(self) -> str:
        """The class that a user called, and the environment inside."""
        return f"{self.declared_by}({self.env})"

    @property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be."""
        return self.space

    @property
    def default_theta(self) -> np.ndarray:
        """The first θ."""
        return self.first

    @property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return self.wants

    def model(self, theta: Tensor) -> RewardModel:
        """Both rewards at θ ``[R, *θ.shape]``."""
        check_shape(theta, self.theta_space.shape, "theta")
        return RewardModel(theta, self.r_follower, self.r_leader)

    def parameterization(self, runs: int, noise: Noise) -> Parameterization:
        """θ = low + (high − low) · sigmoid(raw) where θ is bounded, else raw; begun at the default θ."""
        if self.start is not None:
            return self.start(runs, noise)
        made = around(self.default_theta, self.theta_space, runs)
        if made is None:
            raise ValueError(
                "`parameterization` must be given where some bounds of `theta_space` are finite and others not: "
                f"without one θ would leave it; got {self.theta_space}"
            )
        return made
