"""An environment and a follower, seen from the leader's chair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_choice, check_count, check_instance
from bilevel_envs.core.env_base import ConfigurableEnv
from bilevel_envs.core.follower import BestResponse, Follower, LearningFollower, check_given, response_of
from bilevel_envs.core.mdp import BestKnown, ConfigurableMDP, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.problems import check_model, check_theta_space
from bilevel_envs.core.transparent import check_transparent
from bilevel_envs.followers import FOLLOWERS
from bilevel_envs.worlds.declared.model import SimulatedModel
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.responses import check_response
from bilevel_envs.worlds.rollout import linear_rollout, table_rollout, vector_rollout

SAMPLERS = ("fused", "steps")
NEEDED = ("theta_space", "preferences", "configure", "model")


class BilevelWrapper(gym.Wrapper, RecordConstructorArgs):
    """Joins a configurable environment and the follower that lives in it.

    It stays an environment of the follower's; beside `reset` and `step` it answers what a leader asks:
    how the follower responds to θ, and what that looks like in trajectories. Both are asked of the unwrapped
    environment: of the wrappers in between, leaders heed TimeLimit; others are refused unless they leave rewards,
    actions and observations alone (see `bilevel_envs.core.transparent`).

    Args:
      env: a `BiLevel/*` environment, or any whose `unwrapped` offers `theta_space`, `preferences`, `configure` and
        `model`; a leader needs a `policy` there, or `parameterization(runs, noise)` of the environment's own.
      follower: a follower, or its name with its arguments in `follower_kwargs`; None for the exact solver of the
        environment's model, where there is one.
      follower_kwargs: only with a name.

    Raises:
      TypeError: if `env` is not configurable, or has a wrapper that may change rewards, actions or observations.
      ValueError: if the follower's name is unknown, or none is given where none can be solved for.
    """

    def __init__(
        self, env: gym.Env, follower: Follower | LearningFollower | str | None = None, **follower_kwargs: Any
    ) -> None:
        check_instance(env, "env")
        RecordConstructorArgs.__init__(self, follower=follower, **follower_kwargs)
        gym.Wrapper.__init__(self, env)
        missing = [name for name in NEEDED if not hasattr(env.unwrapped, name)]
        if missing:
            raise TypeError(
                f"`env` must be configurable by a leader; {type(env.unwrapped).__name__} lacks {', '.join(missing)}"
            )
        check_theta_space(self.theta_space, type(env.unwrapped).__name__)
        check_transparent(env)
        if follower is None:
            follower = getattr(env.unwrapped, "default_follower", "soft_value_iteration")
            check_given(follower, env.spec.id if env.spec else type(env.unwrapped).__name__)
        if isinstance(follower, str):
            check_choice(follower, FOLLOWERS, "follower")
            try:
                follower = FOLLOWERS[follower](**follower_kwargs)
            except TypeError as error:
                raise TypeError(f"`follower_kwargs` must be what {follower!r} takes: {error}") from error
        elif follower_kwargs:
            raise TypeError(f"`follower_kwargs` go with a follower's name only, got {follower_kwargs}")
        answers = hasattr(follower, "best_response") or hasattr(follower, "respond")
        if isinstance(follower, type) or not answers or not hasattr(follower, "beta"):
            raise TypeError(
                f"`follower` must be an object with `best_response(model, ...)` (or `respond(env, ...)`) and `beta`, "
                f"got {follower!r}"
            )
        self.follower = cast(Any, follower)
        own_beta = self.follower.beta
        if (
            own_beta is not None
            and getattr(self.problem, "on_grid", False)
            and own_beta != self.problem.preferences.beta
        ):
            raise ValueError(
                f"`beta` must be given to {type(self.problem).__name__} and not to its follower: the actions of its "
                f"table are lumped at its own β = {self.problem.preferences.beta:g}, got {own_beta:g}"
            )
        self._vector: gym.vector.VectorEnv | None = None
        self._vector_limit: int | None = None

    @property
    def problem(self) -> ConfigurableMDP:
        """The configurable MDP behind the environment."""
        return getattr(self.unwrapped, "problem", cast(ConfigurableMDP, self.unwrapped))

    @property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be."""
        return self.unwrapped.theta_space  # type: ignore[attr-defined]

    @property
    def theta(self) -> np.ndarray:
        """The θ that was set last, a copy; `configure` changes it."""
        return self.unwrapped.theta  # type: ignore[attr-defined]

    def configure(self, theta: Any) -> None:
        """Sets θ, ``[*θ.shape]``, in force from the next reset on; the environment's own `configure`."""
        self.unwrapped.configure(theta)  # type: ignore[attr-defined]

    @property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β; the follower's own β, where it has one."""
        preferences = self.problem.preferences
        return preferences if self.follower.beta is None else replace(preferences, beta=self.follower.beta)

    @property
    def best_known(self) -> BestKnown | None:
        """The best leader value known under `preferences`."""
        known = getattr(self.problem, "best_known", None)
        return known(self.preferences) if callable(known) else known

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated, by the shortest TimeLimit inside; None without one."""
        limits, env = [], self.env
        while isinstance(env, gym.Wrapper):
            if isinstance(env, gym.wrappers.TimeLimit):
                limits.append(env._max_episode_steps)
            env = env.env
        return min(limits, default=None)

    def model(self, theta: Any) -> Any:
        """The follower's MDP at θ."""
        model = self.unwrapped.model(theta)  # type: ignore[attr-defined]
        check_model(model, self.problem)
        return model

    def best_response(
        self, theta: Any, start: BestResponse | None = None, *, model: Any = None, learn: bool = True
    ) -> BestResponse:
        """How the follower lives at θ.

        Args:
          theta: ``[*θ.shape]``, or ``[R, *θ.shape]`` for R runs at once.
          start: an earlier response to begin from.
          model: `model(theta)` where the caller has it already.
          learn: False lets a learning follower answer with what it has learnt, without learning more.

        Returns:
          The response, its tables with a leading runs axis (1 for a single θ).

        Raises:
          FollowerError: if what the follower answers is no response to the model.
        """
        model = self.model(theta).detach() if model is None else model
        theta = np.asarray(theta.detach() if isinstance(theta, torch.Tensor) else theta, dtype=np.float64)
        theta = theta[None] if theta.ndim == len(self.theta_space.shape) else theta
        best = response_of(self.follower, self, theta, model, start, learn)
        check_response(best, len(theta), model)
        return best

    def check_sampler(self, sampler: Any) -> None:
        """Refuses a sampler that does not exist, or that cannot draw from this environment."""
        check_choice(sampler, SAMPLERS, "sampler")
        if sampler == "steps" and getattr(self.problem, "on_grid", False):
            raise ValueError(
                f'`sampler` must be "fused" for {type(self.problem).__name__}, got "steps": the follower\'s '
                "response is a table on a grid, while the environment steps states of any size"
            )

    def rollout(
        self,
        theta: Any,
        best: BestResponse,
        noise: Noise,
        *,
        rows: int,
        horizon: int,
        whole_episodes: bool = False,
        sampler: str = "fused",
        model: Any = None,
    ) -> Rollout:
        """Trajectories of the follower at θ.

        Args:
          theta: ``[*θ.shape]``, or ``[R, *θ.shape]``.
          best: the follower's response at θ.
          noise: one stream per run, R in all.
          rows: N, trajectories side by side for each run.
          horizon: T, steps of each row.
          whole_episodes: one episode per row, without the time limit.
          sampler: "fused" draws from the model's tables; "steps" drives `reset` and `step` of a vector environment, as
            is always done where there are none.
          model: `model(theta)` where the caller has it already.

        Returns:
          A batch [R, N, T].

        Raises:
          TypeError: if `best` is no response, or one in another kind of world.
          ValueError: if its policy does not fit this world or the runs, or if states, actions or rewards that the
            environment gives do not fit the model.
        """
        self.check_sampler(sampler)
        rows, horizon = check_count(rows, "rows"), check_count(horizon, "horizon")
        if not isinstance(best, BestResponse):
            raise TypeError(
                f"`best` must be a BestResponse, as `best_response(theta)` gives, got {type(best).__name__}"
            )
        runs = 1 if np.ndim(theta) == len(self.theta_space.shape) else len(theta)
        if runs not in (1, noise.runs):
            raise ValueError(f"`noise` must have one stream per run of `theta` ({runs}), got {noise.runs}")
        time_limit = self.time_limit
        limit = None if whole_episodes else time_limit
        if sampler == "fused" and hasattr(self.unwrapped, "simulator"):
            same = model is not None and getattr(self.problem, "simulates_its_model", False)
            world = model if same else self.unwrapped.simulator(theta).detach()
            how: dict[str, Any] = {"rows": rows, "horizon": horizon, "time_limit": limit}
            if isinstance(world, LinearQuadraticModel):
                return linear_rollout(world, best.behavior_policy, noise, **how)
            if not isinstance(world, SimulatedModel):  # which nobody can draw from but by steps
                return table_rollout(world, best.behavior_policy, noise, whole_episodes=whole_episodes, **how)
        envs = self._vector_env(noise.runs * rows, horizon if whole_episodes else time_limit)
        _configure(envs, theta)
        model = self.model(theta).detach() if model is None else model
        return vector_rollout(
            envs, best.behavior_policy, noise, horizon=horizon, whole_episodes=whole_episodes, model=model
        )

    def copies(self, count: int, theta: Any, max_episode_steps: int | None = None) -> gym.vector.VectorEnv:
        """So many copies of the environment at θ, in which a follower may learn; autoreset mode SAME_STEP.

        Args:
          count: how many.
          theta: ``[*θ.shape]``.
          max_episode_steps: time limit of the copies; None for the environment's own.
        """
        mine = getattr(self.unwrapped, "copies", None)
        limit = self.time_limit if max_episode_steps is None else max_episode_steps
        envs = self._made_again(count, limit) if mine is None else mine(count, limit)
        _configure(envs, theta)
        return envs

    def observations(self, states: int) -> np.ndarray:
        """What the follower sees in each of the states of a table, [S] or [S, ...]."""
        mine = getattr(self.unwrapped, "observations", None)
        return np.arange(states) if mine is None else mine()

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; with `options={"theta": θ}`, `info["best_response"]` is the follower's new response."""
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        if options and "theta" in options:
            info = {**info, "best_response": self.best_response(self.unwrapped.theta)}  # type: ignore[attr-defined]
        return observation, info

    def _vector_env(self, count: int, time_limit: int | None) -> gym.vector.VectorEnv:
        """Copies of the wrapped environment, kept from call to call."""
        kept = self._vector
        if kept is not None and kept.num_envs == count and self._vector_limit == time_limit:
            return kept
        self._close_copies()
        self._vector_limit = time_limit
        if isinstance(self.unwrapped, ConfigurableEnv):
            self._vector = self.unwrapped.vector_class(self.unwrapped.problem, count, max_episode_steps=time_limit)
        else:
            self._vector = self._made_again(count, time_limit)
        return self._vector

    def _made_again(self, count: int, time_limit: int | None) -> gym.vector.VectorEnv:
        """Copies of an environment that is none of ours."""
        spec = self.unwrapped.spec
        if spec is None:
            raise ValueError("`env` must come from gymnasium.make, so that it can be made many times")
        kwargs: dict[str, Any] = {"max_episode_steps": time_limit} if time_limit is not None else {}
        if spec.vector_entry_point is None:
            kwargs |= {
                "vectorization_mode": "sync",
                "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP},
            }
        return gym.make_vec(spec, num_envs=count, **kwargs)

    def _close_copies(self) -> None:
        """Closes the copies that the sampler "steps" keeps."""
        if self._vector is not None:
            self._vector.close()
            self._vector = None

    def close(self) -> None:
        """Closes the environment and its copies."""
        self._close_copies()
        super().close()


def _configure(envs: Any, theta: Any) -> None:
    """Hands θ to an array-stepped vector environment, or to each copy of a stack of scalar ones."""
    if hasattr(envs, "configure"):
        envs.configure(theta)
        return
    theta = np.asarray(theta.detach() if isinstance(theta, torch.Tensor) else theta)
    extra = theta.ndim - len(envs.get_attr("theta_space")[0].shape)
    each = np.repeat(theta, envs.num_envs // len(theta), axis=0) if extra else [theta] * envs.num_envs
    for env, own in zip(envs.envs, each, strict=True):
        env.unwrapped.configure(own)
