"""One environment that somebody else wrote, stepped: observations as vectors, components of each step as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np

from bilevel_envs.worlds.declared.global_streams import GlobalStreams
from bilevel_envs.worlds.declared.masks import mask_of
from bilevel_envs.worlds.declared.problem import RewardProblem
from bilevel_envs.worlds.declared.spaces import Actions

STEP = ("observation", "reward", "terminated", "truncated", "info")


class Inside:
    """One environment that somebody else wrote: observations as vectors, components of each step as numbers.

    Args:
      env: the environment.
      problem: how components are logged, and how θ is set.
      size: how many components there are; None for as many as the first step logs.
      streams: its own states of the global random streams; None where it draws from none of them.
    """

    def __init__(
        self,
        env: gym.Env,
        problem: RewardProblem,
        size: int | None = None,
        streams: GlobalStreams | None = None,
    ) -> None:
        self.env, self.components, self.sets, self.size = env, problem.logs, problem.sets, size
        self.streams = streams
        self._name, self._actions = problem.env, Actions(env.action_space, problem.env)
        self._masked = problem.discrete_actions if problem.masks_actions else 0
        self._observation: Any = None

    def set_theta(self, theta: np.ndarray) -> None:
        """Puts θ into the environment, if it is to be there; what `configure` raises becomes a ValueError."""
        if self.sets is None:
            return
        try:
            self.sets(self.env, theta.copy())
        except Exception as error:
            raise ValueError(
                f"`configure` must set every θ of `theta_space` in the environment, but raised "
                f"{type(error).__name__} ({error}) at θ = {theta.tolist()}"
            ) from error

    def reset(
        self, theta: np.ndarray, seed: int | None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A first observation at θ, flat, and what `info` says."""
        if self.streams is not None and seed is not None:
            self.streams.seed(seed)
        with self.streams or nullcontext():
            self.set_theta(theta)
            first = self.env.reset(seed=seed, options=options)
        told = self._told("reset", first, ("observation", "info"))
        self._observation, info = told
        return self._seen(self._flat(self._observation, "reset"), info), dict(info)

    def step(self, action: Any) -> tuple[np.ndarray, np.ndarray, bool, bool, dict[str, Any]]:
        """The observation, flat, the components [C], whether the episode ends or is cut, and what `info` says."""
        before = deepcopy(self._observation)  # some environments write the next one into the same array
        with self.streams or nullcontext():
            taken = self.env.step(self._actions.of(action))
        told = self._told("step", taken, STEP)
        self._observation, reward, terminated, truncated, info = told
        logged = self._logged(before, self._actions.of(action), reward, self._observation, info)
        over = self._flag(terminated, "terminated")
        seen = self._seen(self._flat(self._observation, "step"), info, over)
        return seen, logged, over, self._flag(truncated, "truncated"), dict(info)

    def _seen(self, flat: np.ndarray, info: Mapping[str, Any], over: bool = False) -> np.ndarray:
        """An observation with the mask of actions behind it, where there is one."""
        return np.append(flat, mask_of(info, self._masked, self._name, over)) if self._masked else flat

    def drawn(self, space: gym.Space, seen: np.ndarray) -> Any:
        """An action that is possible, drawn from the follower's space."""
        return space.sample(mask=seen[-self._masked :].astype(np.int8)) if self._masked else space.sample()

    def trace(self, theta: np.ndarray, space: gym.Space, steps: int) -> list[np.ndarray]:
        """Observations and components of the first steps of an episode at θ, from seed 0, up to one that fails."""
        space.seed(0)
        seen, _ = self.reset(theta, 0)
        told = [seen]
        for _ in range(steps):
            try:
                seen, logged, terminated, truncated, _ = self.step(self.drawn(space, seen))
            except Exception:  # which is raised where the step is taken in earnest
                break
            told += [seen, logged]
            if terminated or truncated:
                break
        return told

    def _flag(self, value: Any, name: str) -> bool:
        """Whether an episode ends or is cut."""
        if not isinstance(value, (bool, np.bool_, int)):
            raise ValueError(f"`env` must return a bool as `{name}` from `step`; {self._name} returned {value!r}")
        return bool(value)

    def _told(self, call: str, told: Any, wanted: tuple[str, ...]) -> Any:
        """What `reset` or `step` returned, if it is what Gymnasium's do."""
        count = len(told) if isinstance(told, tuple) else 1
        if count != len(wanted):
            raise ValueError(
                f"`env` must return ({', '.join(wanted)}) from `{call}`, as environments of Gymnasium do; "
                f"{self._name} returned {count} value{'s' * (count != 1)}: put a wrapper around it that returns these"
            )
        return told

    def _logged(self, before: Any, action: Any, reward: Any, after: Any, info: Mapping[str, Any]) -> np.ndarray:
        found = self._given(before, action, reward, after, info)
        named = self.components is not None and not callable(self.components)
        try:
            parts = found.values() if named else [found]
            array = np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"`components` must give a flat list of numbers at every step, got {found!r} ({error}): take entries "
                "one by one, as in [reward, *observation]"
            ) from error
        if not array.size or not np.isfinite(array).all():
            raise ValueError(f"`components` must give finite numbers at every step, got {found!r}")
        self.size = self.size or array.size
        if array.size != self.size:
            raise ValueError(
                f"`components` must give as many numbers at every step, {self.size} as at the first, got {array.size}, "
                f"{array.tolist()}: give 0 where one does not apply"
            )
        return array

    def _given(self, before: Any, action: Any, reward: Any, after: Any, info: Mapping[str, Any]) -> Any:
        """What a step logs, as it is: the reward, what a function of the step gives, or entries of `info` by name."""
        if self.components is None:
            return reward
        if callable(self.components):
            try:
                return self.components(before, action, reward, after, info)
            except Exception as error:
                raise ValueError(
                    "`components` must be a function (observation, action, reward, next observation, info), which "
                    f"raised {type(error).__name__} ({error}) at a step of {self._name}"
                ) from error
        missing = [name for name in self.components if name not in info]
        if missing:
            raise ValueError(
                f"`components` must be entries of `info` at every step; {missing} are not among {sorted(info)}"
            )
        return {name: info[name] for name in self.components}

    def _flat(self, observation: Any, call: str) -> np.ndarray:
        flat = np.asarray(gym.spaces.flatten(self.env.observation_space, observation), np.float64)
        wanted = gym.spaces.flatdim(self.env.observation_space)
        if flat.shape != (wanted,):
            raise ValueError(
                f"`env` must show what its observation space says; `{call}` of {self._name} returned {observation!r}, "
                f"of {flat.size} numbers instead of {wanted}: mend the environment, or its `observation_space`"
            )
        if not np.isfinite(flat).all():
            raise ValueError(
                f"`env` must show finite numbers, but `{call}` of {self._name} returned {observation}: end the episode "
                "before its numbers overflow, or put a wrapper around it that replaces what is missing"
            )
        return flat


def made(env: str | gym.Env) -> gym.Env:
    """The environment of an id, or as given."""
    if isinstance(env, str):
        return gym.make(env, disable_env_checker=True)
    if not isinstance(env, gym.Env):
        raise TypeError(f"`env` must be a gymnasium.Env or the id of one, got {type(env).__name__}")
    return env


def from_spec(env: gym.Env) -> gym.Env | None:
    """Another one made from its spec; None where it has none, or one that does not tell all."""
    if env.spec is None:
        return None
    try:
        drawn = {} if env.render_mode is None else {"render_mode": None}  # which not every constructor takes
        return gym.make(env.spec, disable_env_checker=True, **drawn)
    except (ValueError, gym.error.Error):  # wrappers that do not record their arguments
        return None


def deep_copy(env: gym.Env, name: str) -> gym.Env:
    """Another one like it.

    Raises:
      ValueError: if it holds what cannot be copied, such as an open window.
    """
    try:
        return deepcopy(env)
    except Exception as error:
        raise ValueError(
            f"`env` must be one that can be copied, but `deepcopy` of {name} raised {type(error).__name__} ({error}): "
            "hand over its id, or what gymnasium.make gives with all that you set as keywords, before it is drawn"
        ) from error


def same_trace(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether two episodes told the same."""
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
