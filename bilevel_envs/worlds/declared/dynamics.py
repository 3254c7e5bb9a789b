r"""Environments that somebody else wrote, with a leader's θ in their physics.

Of such a world log p is not known, while θ moves it: leaders search, or learn the dynamics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Unpack

import gymnasium as gym
from torch import Tensor

from bilevel_envs.core.checks import check_shape
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.worlds.declared.problem import Reward, RewardModel, RewardProblem, SetTheta
from bilevel_envs.worlds.declared.rewards import BlackBoxEnv, Options


@dataclass(frozen=True)
class DynamicsModel(RewardModel):
    """The follower's MDP at one θ, of which both rewards are known; θ moves p, too, in a way that is not known.

    Attributes:
      moves_start: whether θ moves the first states, too.
    """

    hides_moves: ClassVar[bool] = True
    moves_start: bool = False


class DynamicsProblem(RewardProblem):
    """What `ConfigurableDynamics` was told."""

    declared_by: ClassVar[str] = "ConfigurableDynamics"

    def model(self, theta: Tensor) -> DynamicsModel:
        """Both rewards at θ ``[R, *θ.shape]``."""
        check_shape(theta, self.theta_space.shape, "theta")
        return DynamicsModel(theta, self.r_follower, self.r_leader, self.moves_start)


def first_component(theta: Tensor, components: Tensor) -> Tensor:
    """r_F where none is given: the environment's own reward, where no other components are named."""
    return components[..., 0]


class ConfigurableDynamics(BlackBoxEnv):
    r"""Any Gymnasium environment, led through its physics: `configure(env, θ)` sets θ in it before every reset.

    All else is as in `ConfigurableRewards`. Searches (``CMAES``, ``RandomSearch``, ``ZerothOrder``) lead it as it is.
    ``BCHG`` needs to know how θ moves the next state: with ``dynamics="learnt"`` it learns that from transitions.
    First states are taken as free of θ there; components may move with θ, too.

    Args:
      env: the id of a registered environment, or an environment, as ``gym.make(id, render_mode="rgb_array")`` gives it;
        copies are made from its spec, or by `deepcopy` where that does not tell all.
      theta_space: what θ may be.
      configure: a function (env, θ) that sets θ ``[*θ.shape]`` in a copy, as in ``env.unwrapped.g = theta[0]``; it is
        called before every reset of that copy, and sets all that depends on θ.
      r_leader: r_L(θ, c), made of torch operations: from θ ``[..., *θ.shape]`` and c [..., C] to [...].
      preferences: γ_L, γ_F and β.
      r_follower: r_F(θ, c), likewise; None for the first component, which is the environment's reward unless others are
        named.
      components: what c is: None for the environment's reward, a number or a vector as in MO-Gymnasium; names of
        entries of `info`; or a function (observation, action, reward, next observation, info) → C numbers.
      default_theta: first θ; None for the middle of `theta_space`, or 0 where it has no bounds.
      parameterization: function (runs, noise) → module, see `Parameterization`; None for `Box` between the bounds, or
        `Free`.

    Raises:
      TypeError: if `env` is no environment, or has actions that no follower takes, or `configure` is no function.
      ValueError: if an argument does not fit a step that was tried, or `configure` raises, by name.
    """

    def __init__(
        self,
        env: str | gym.Env,
        theta_space: gym.spaces.Box,
        configure: SetTheta,
        r_leader: Reward,
        preferences: Preferences,
        r_follower: Reward | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not callable(configure):
            raise TypeError(f"`configure` must be a function (env, theta), got {configure!r}")
        own = first_component if r_follower is None else r_follower
        super().__init__(env, DynamicsProblem, theta_space, (own, r_leader), preferences, configure, **options)
