"""An environment that is none of ours, with the defaults of ours for what it does not offer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike

from bilevel_envs.core.checks import lacking
from bilevel_envs.core.env_base import ConfigurableEnv, Face, runs_first
from bilevel_envs.core.mdp import ConfigurableMDP, Model, Numbers
from bilevel_envs.core.problems import check_theta_space, completed, modelled

NEEDED = ("theta_space", "preferences", "configure", "model")


class Configurable(Protocol):
    """What a wrapper asks of the environment inside: a `ConfigurableEnv`, or what `configurable` makes of another."""

    @property
    def problem(self) -> ConfigurableMDP:
        """The configurable MDP."""

    @property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be."""

    @property
    def theta(self) -> np.ndarray:
        """The θ that was set last."""

    @property
    def default_follower(self) -> str | None:
        """The exact follower's name; None where one has to learn."""

    @property
    def simulates_its_model(self) -> bool:
        """Whether `step` simulates `model(θ)`."""

    @property
    def step_limit(self) -> int | None:
        """A time limit inside, in no wrapper."""

    @property
    def context(self) -> np.ndarray | None:
        """The context in force."""

    def in_context(self, context: ArrayLike | None) -> AbstractContextManager[None]:
        """Puts a context in force for a while."""

    def configure(self, theta: Numbers, context: ArrayLike | None = None) -> None:
        """Sets θ, and a context."""

    def model(self, theta: Numbers) -> Model:
        """The follower's MDP at θ."""

    def simulator(self, theta: Numbers) -> Model | None:
        """The world that `step` simulates; None where only steps tell."""

    def copies(self, count: int, max_episode_steps: int | None = None) -> gym.vector.VectorEnv:
        """Copies in which a follower may learn."""

    def stepped_copies(self, count: int, max_episode_steps: int | None) -> gym.vector.VectorEnv:
        """Copies from which leaders draw by steps."""

    def close_copies(self) -> None:
        """Closes copies that are kept for later."""

    def observations(self) -> np.ndarray | None:
        """What the follower sees in each state of a table; None for the state's number."""


class LentCopies(gym.vector.SyncVectorEnv):
    """Scalar environments stepped one after another, autoreset mode SAME_STEP; `close` gives them back.

    Args:
      lent: the environments, without a time limit.
      limit: the time limit; None for none.
      idle: where they are kept for the next response.
    """

    def __init__(self, lent: list[gym.Env], limit: int | None, idle: list[gym.Env]) -> None:
        self._lent, self._idle = lent, idle
        envs = lent if limit is None else [gym.wrappers.TimeLimit(env, limit) for env in lent]
        given = iter(envs)
        super().__init__([given.__next__] * len(envs), autoreset_mode=AutoresetMode.SAME_STEP)

    def close_extras(self, **kwargs: Any) -> None:
        """Gives the environments back."""
        self._idle.extend(self._lent)
        self._lent, self.envs = [], []


class ForeignEnv:
    """What an environment that is none of ours offers by attributes of its own, and defaults for the rest.

    Attributes:
      env: the environment, unwrapped.
      problem: its `problem`, or the environment itself, with every hook of `ConfigurableMDP`.
      default_follower: its own, or the planner of tables.
    """

    def __init__(self, env: Any) -> None:
        missing = lacking(env, NEEDED)
        if missing:
            raise TypeError(
                f"`env` must be configurable by a leader; {type(env).__name__} lacks {', '.join(missing)}: "
                "ConfigurableRewards(env, ...) puts θ into the rewards of any environment, ConfigurableDynamics "
                "into its physics, too; of a game take the follower's side, TabularEnv(game), LinearEnv(game) or "
                "SimulatedEnv(game)"
            )
        check_theta_space(env.theta_space, type(env).__name__)
        self.env = env
        problem = self._own("problem", env)
        self.problem = completed(env if lacking(problem, ["preferences"]) else problem)
        self.default_follower: str | None = self._own("default_follower", "soft_value_iteration")
        self._idle: list[gym.Env] = []  # copies without a time limit

    @property
    def theta_space(self) -> gym.spaces.Box:
        """The environment's own."""
        return self.env.theta_space

    @property
    def theta(self) -> np.ndarray:
        """The environment's own."""
        return self.env.theta

    @property
    def simulates_its_model(self) -> bool:
        """False unless it has a `simulator`, and its problem says so."""
        return self._own("simulator") is not None and self.problem.simulates_its_model

    @property
    def step_limit(self) -> None:
        """None: Gymnasium's limits are wrappers."""
        return None

    @property
    def context(self) -> None:
        """None: contexts are for environments of our own classes."""
        return None

    def in_context(self, context: ArrayLike | None) -> AbstractContextManager[None]:
        """Refuses all contexts but None."""
        if context is not None:
            raise TypeError(
                f"`context` must be None for {type(self.env).__name__}, whose class is none of bilevel_envs', got "
                f"{context!r}: put its problem into TabularEnv, LinearEnv or SimulatedEnv"
            )
        return nullcontext()

    def configure(self, theta: Numbers, context: ArrayLike | None = None) -> None:
        """The environment's own; refuses contexts."""
        with self.in_context(context):
            self.env.configure(theta)

    def model(self, theta: Numbers) -> Model:
        """The environment's own, which is given θ as a tensor ``[R, *θ.shape]``."""
        return modelled(self.problem, self.env.model, runs_first(self.problem, theta))

    def simulator(self, theta: Numbers) -> Model | None:
        """The environment's own, if it has one; it is given θ as `model` is."""
        own = self._own("simulator")
        return None if own is None else modelled(self.problem, own, runs_first(self.problem, theta))

    def copies(self, count: int, max_episode_steps: int | None = None) -> gym.vector.VectorEnv:
        """The environment's own, or copies that Gymnasium makes."""
        own = self._own("copies")
        return self.stepped_copies(count, max_episode_steps) if own is None else own(count, max_episode_steps)

    def stepped_copies(self, count: int, max_episode_steps: int | None) -> gym.vector.VectorEnv:
        """Copies that Gymnasium makes, kept from one response to the next where they are stepped one by one."""
        spec = self.env.spec
        if spec is None:
            raise ValueError("`env` must come from gymnasium.make, so that it can be made many times")
        if spec.vector_entry_point is not None:
            kwargs: dict[str, Any] = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
            return gym.make_vec(spec, num_envs=count, **kwargs)
        while len(self._idle) < count:
            self._idle.append(gym.make(spec, max_episode_steps=-1))  # Gymnasium's word for no limit
        lent, self._idle[:count] = self._idle[:count], []
        return LentCopies(lent, spec.max_episode_steps if max_episode_steps is None else max_episode_steps, self._idle)

    def close_copies(self) -> None:
        """Closes the copies that are kept."""
        while self._idle:
            self._idle.pop().close()

    def observations(self) -> np.ndarray | None:
        """The environment's own, if it has them."""
        own = self._own("observations")
        return None if own is None else own()

    def _own(self, name: str, default: object = None) -> Any:
        return getattr(self.env, name, default)


def configurable(env: gym.Env) -> Configurable:
    """An unwrapped environment as a wrapper asks it; see `ForeignEnv` for those that are none of ours.

    Raises:
      TypeError: if it lacks what a leader needs, or its `theta_space` is no box.
    """
    return env if isinstance(env, ConfigurableEnv) else ForeignEnv(env)


def configure_all(envs: Any, theta: Numbers, context: np.ndarray | None = None) -> None:
    """Hands θ and the context in force to an array-stepped vector environment, or θ to each of a stack of scalar ones.

    Args:
      envs: the copies.
      theta: ``[*θ.shape]``, or ``[R, *θ.shape]``.
      context: int [] or [R]; only of environments of our own classes.
    """
    if not lacking(envs, ["configure"]):
        if isinstance(envs, Face):
            envs.enter(context)  # None too: copies that are kept may still be in an earlier one
        envs.configure(theta)
        return
    theta = np.asarray(theta.detach() if isinstance(theta, torch.Tensor) else theta)
    extra = theta.ndim - len(envs.get_attr("theta_space")[0].shape)
    each = np.repeat(theta, envs.num_envs // len(theta), axis=0) if extra else [theta] * envs.num_envs
    for env, own in zip(envs.envs, each, strict=True):
        env.unwrapped.configure(own)
