"""An environment joined with its follower, from the leader's side."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import ArrayLike

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_choice, check_count, check_instance, check_room, lacking
from bilevel_envs.core.follower import (
    BestResponse,
    Follower,
    FollowerTask,
    LearningFollower,
    check_compatible,
    check_given,
    is_follower,
    response_of,
)
from bilevel_envs.core.foreign import configurable, configure_all
from bilevel_envs.core.mdp import BestKnown, ConfigurableMDP, Model, Numbers, Preferences, recorded_best
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.problems import check_model
from bilevel_envs.core.transparent import check_transparent, shortest_limit
from bilevel_envs.core.vector_rollout import vector_rollout
from bilevel_envs.followers import FOLLOWERS
from bilevel_envs.worlds.responses import check_response
from bilevel_envs.worlds.world import world_of

SAMPLERS = ("fused", "steps")


class BilevelWrapper(gym.Wrapper, RecordConstructorArgs):
    """Joins a configurable environment and its follower.

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
        if not isinstance(env, gym.Env):
            raise TypeError(
                f"`env` must be a Gymnasium environment, got {type(env).__name__}: gymnasium.make makes those that are "
                "registered, TabularEnv(problem) one of a table or a finite game of your own"
            )
        RecordConstructorArgs.__init__(self, follower=follower, **follower_kwargs)
        gym.Wrapper.__init__(self, env)
        self._inside = configurable(env.unwrapped)
        check_transparent(env)
        if follower is None:
            follower = self._inside.default_follower
            check_given(follower, env.spec.id if env.spec else type(env.unwrapped).__name__)
        if isinstance(follower, str):
            check_choice(follower, FOLLOWERS, "follower")
            try:
                follower = FOLLOWERS[follower](**follower_kwargs)
            except TypeError as error:
                raise TypeError(f"`follower_kwargs` must be what {follower!r} takes: {error}") from error
        elif follower_kwargs:
            raise TypeError(f"`follower_kwargs` go with a follower's name only, got {follower_kwargs}")
        check_instance(follower, "follower")
        if not is_follower(follower) or lacking(follower, ["beta"]):
            raise TypeError(
                f"`follower` must be an object with `best_response(model, ...)` (or `respond(task, ...)`) and `beta`, "
                f"got {follower!r}"
            )
        self.follower = follower
        own_beta = self.follower.beta
        if own_beta is not None and self.problem.on_grid and own_beta != self.problem.preferences.beta:
            raise ValueError(
                f"`beta` must be given to {self.problem.title} and not to its follower: the actions of its "
                f"table are lumped at its own β = {self.problem.preferences.beta:g}, got {own_beta:g}"
            )
        self._vector: gym.vector.VectorEnv | None = None
        self._vector_limit: int | None = None

    @property
    def problem(self) -> ConfigurableMDP:
        """The configurable MDP behind the environment."""
        return self._inside.problem

    @property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be."""
        return self._inside.theta_space

    @property
    def theta(self) -> np.ndarray:
        """The θ that was set last, a copy; `configure` changes it."""
        return self._inside.theta

    def configure(self, theta: Numbers, context: ArrayLike | None = None) -> None:
        """Sets θ, ``[*θ.shape]``, and a context, in force from the next reset on; the environment's own `configure`."""
        self._inside.configure(theta, *(() if context is None else (context,)))

    @property
    def context(self) -> np.ndarray | None:
        """The context in force, int [] or [R]; None where the problem has none, or draws one in every episode."""
        return self._inside.context

    def in_context(self, context: ArrayLike | None) -> AbstractContextManager[None]:
        """With `with`: a context in force for models, responses and trajectories.

        Args:
          context: the number of one, or one per run, [R]; None for what is in force already.
        """
        return self._inside.in_context(self.context if context is None else context)

    def in_first_context(self) -> AbstractContextManager[None]:
        """With `with`: the context that is in force in a new environment."""
        return self._inside.in_context(None)

    @property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β; the follower's own β, where it has one."""
        preferences = self.problem.preferences
        return preferences if self.follower.beta is None else replace(preferences, beta=self.follower.beta)

    @property
    def best_known(self) -> BestKnown | None:
        """The best leader value known under `preferences`."""
        return recorded_best(self.problem, self.preferences)

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated, by the shortest TimeLimit inside; None without one."""
        return shortest_limit(self.env, self._inside.step_limit)

    def model(self, theta: Numbers) -> Any:
        """The follower's MDP at θ."""
        model = self._inside.model(theta)
        check_model(model, self.problem)
        return model

    def best_response(
        self, theta: Numbers, init: BestResponse | None = None, *, model: Model | None = None, learn: bool = True
    ) -> BestResponse[Any, Any]:
        """The follower's response at θ.

        Args:
          theta: ``[*θ.shape]``, or ``[R, *θ.shape]`` for R runs at once.
          init: an earlier response to begin from.
          model: `model(theta)` where the caller has it already.
          learn: False lets a learning follower answer with what it has learnt, without learning more.

        Returns:
          The response, its tables with a leading runs axis (1 for a single θ).

        Raises:
          UnsupportedModelError: if the follower cannot answer in this kind of world.
          FollowerError: if what the follower answers is no response to the model.
        """
        task = self.task(theta, model)
        check_compatible(self.follower, task.model)
        best = response_of(self.follower, task, init, learn)
        check_response(best, len(task.theta), task.model)
        return best

    def task(self, theta: Numbers, model: Model | None = None) -> FollowerTask:
        """What a follower that learns is given at θ.

        Args:
          theta: ``[*θ.shape]``, or ``[R, *θ.shape]`` for R runs at once.
          model: `model(theta)` without gradients, where the caller has it already.
        """
        model = self.model(theta).detach() if model is None else model
        theta = np.asarray(theta.detach() if isinstance(theta, torch.Tensor) else theta, dtype=np.float64)
        return FollowerTask(
            theta=theta[None] if theta.ndim == len(self.theta_space.shape) else theta,
            model=model,
            problem=self.problem,
            preferences=self.preferences,
            observation_space=self.observation_space,
            action_space=self.action_space,
            time_limit=self.time_limit,
            copies=self.copies,
            rollout=self.rollout,
            observations=self.observations,
        )

    def check_sampler(self, sampler: str) -> None:
        """Refuses a sampler that does not exist, or that cannot draw from this environment."""
        check_choice(sampler, SAMPLERS, "sampler")
        if sampler == "steps" and self.problem.on_grid:
            raise ValueError(
                f'`sampler` must be "fused" for {self.problem.title}, got "steps": the follower\'s '
                "response is a table on a grid, while the environment steps states of any size"
            )

    def rollout(
        self,
        theta: Numbers,
        best: BestResponse,
        noise: Noise,
        *,
        rows: int,
        horizon: int,
        whole_episodes: bool = False,
        sampler: str = "fused",
        model: Model | None = None,
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
        check_room(noise.runs, rows, horizon)
        if not isinstance(best, BestResponse):
            raise TypeError(
                f"`best` must be a BestResponse, as `best_response(theta)` gives, got {type(best).__name__}"
            )
        runs = 1 if np.ndim(theta) == len(self.theta_space.shape) else np.shape(theta)[0]
        if runs not in (1, noise.runs):
            raise ValueError(f"`noise` must have one stream per run of `theta` ({runs}), got {noise.runs}")
        simulated = self._simulated(theta, model) if sampler == "fused" else None
        if simulated is not None:
            batch = world_of(simulated).rollout(
                simulated,
                best.behavior_policy,
                noise,
                rows=rows,
                horizon=horizon,
                time_limit=None if whole_episodes else self.time_limit,
                whole_episodes=whole_episodes,
            )
            if batch is not None:
                return batch.in_context(self.context)
        envs = self._vector_env(noise.runs * rows, horizon if whole_episodes else self.time_limit)
        configure_all(envs, theta, self.context)
        model = self.model(theta).detach() if model is None else model
        batch = vector_rollout(
            envs,
            best.behavior_policy,
            noise,
            horizon=horizon,
            whole_episodes=whole_episodes,
            model=model,
            world=world_of(model),
        )
        return batch.in_context(self.context)

    def _simulated(self, theta: Numbers, model: Model | None) -> Model | None:
        """The world that `step` simulates at θ, without gradients; None where only steps tell."""
        if model is not None and self._inside.simulates_its_model:
            return model
        world = self._inside.simulator(theta)
        return None if world is None else world.detach()

    def copies(
        self, count: int, theta: Numbers, max_episode_steps: int | None = None, run: int | None = None
    ) -> gym.vector.VectorEnv:
        """So many copies of the environment at θ, in which a follower may learn; autoreset mode SAME_STEP.

        Args:
          count: how many.
          theta: ``[*θ.shape]``.
          max_episode_steps: time limit of the copies; None for the environment's own.
          run: whose context they are in, where one per run is in force; None where all share one.
        """
        context = self.context
        if run is not None and context is not None:
            context = context.flat[run % context.size]
        envs = self._inside.copies(count, self.time_limit if max_episode_steps is None else max_episode_steps)
        configure_all(envs, theta, context)
        return envs

    def observations(self, states: int) -> np.ndarray:
        """What the follower sees in each of the states of a table, [S] or [S, ...]."""
        seen = self._inside.observations()
        return np.arange(states) if seen is None else seen

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Numbers] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; with "theta" or "context" in `options`, `info["best_response"]` is the new response."""
        given: Any = dict(options) if isinstance(options, Mapping) else options
        observation, info = self.env.reset(seed=seed, options=given)
        if options and options.keys() & {"theta", "context"}:
            info = {**info, "best_response": self.best_response(self.theta)}
        return observation, info

    def _vector_env(self, count: int, time_limit: int | None) -> gym.vector.VectorEnv:
        """Copies of the wrapped environment, kept from call to call."""
        kept = self._vector
        if kept is not None and kept.num_envs == count and self._vector_limit == time_limit:
            return kept
        self._close_copies()
        self._vector_limit = time_limit
        self._vector = self._inside.stepped_copies(count, time_limit)
        return self._vector

    def _close_copies(self) -> None:
        """Closes the copies that the sampler "steps" keeps."""
        if self._vector is not None:
            self._vector.close()
            self._vector = None

    def close(self) -> None:
        """Closes the environment and its copies."""
        self._close_copies()
        self._inside.close_copies()
        super().close()
