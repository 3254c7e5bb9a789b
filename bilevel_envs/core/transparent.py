"""Wrappers that models, tables and fresh copies of an environment may look through, for they change nothing in it."""

from __future__ import annotations

import gymnasium as gym
from gymnasium import wrappers

HARMLESS = (
    gym.Wrapper,
    wrappers.Autoreset,
    wrappers.HumanRendering,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.RenderCollection,
    wrappers.TimeLimit,  # which leaders heed
)
BY_NAME = ("bilevel_envs.wrapper.BilevelWrapper", "stable_baselines3.common.monitor.Monitor")  # not loaded here


def shortest_limit(env: gym.Env, *further: int | None) -> int | None:
    """The fewest steps after which a TimeLimit around an environment truncates, or one of `further`; None for none."""
    limits = [limit for limit in further if limit is not None]
    while isinstance(env, gym.Wrapper):
        if isinstance(env, wrappers.TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    return min(limits, default=None)


def check_transparent(env: object) -> None:
    """Refuses wrappers that may change rewards, actions or observations, with a TypeError.

    A wrapper's `step` and `reset` must be those of `gymnasium.Wrapper`, or of a wrapper known to leave all of that
    alone, and its spaces those of the environment inside.

    Args:
      env: an environment, wrapped or not.
    """
    while isinstance(env, gym.Wrapper):
        if _changes(env):
            raise TypeError(
                "`env` must have no wrapper inside that may change rewards, actions or observations, got "
                f"{type(env).__name__}: models, tables and fresh copies of the environment do not have it. Put what it "
                "does into the problem (its `model`, and its `step`)"
            )
        env = env.env


def _changes(wrapper: gym.Wrapper) -> bool:
    """Whether a wrapper has a `step` or a `reset` of its own, or other spaces."""
    inner = wrapper.env
    if wrapper.observation_space != inner.observation_space or wrapper.action_space != inner.action_space:
        return True
    for name in ("step", "reset"):
        owner = next((owner for owner in type(wrapper).__mro__ if name in vars(owner)), gym.Wrapper)
        if owner not in HARMLESS and f"{owner.__module__}.{owner.__qualname__}" not in BY_NAME:
            return True
    return False
