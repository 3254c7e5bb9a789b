"""Entry points of the ids: a problem by its path, and the environment that fits it."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

from bilevel_envs.env_base import ConfigurableEnv, ConfigurableVectorEnv
from bilevel_envs.model import ConfigurableMDP
from bilevel_envs.tabular_env import TabularEnv


def make_env(
    problem: str,
    theta: Any = None,
    observation: str = "index",
    render_mode: str | None = None,
    **kwargs: Any,
) -> ConfigurableEnv:
    """Entry point of the scalar ids; `kwargs` go to the problem's class."""
    return TabularEnv(_problem(problem, kwargs), theta, observation, render_mode)


def make_vector_env(
    problem: str,
    num_envs: int = 1,
    theta: Any = None,
    observation: str = "index",
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    **kwargs: Any,
) -> ConfigurableVectorEnv:
    """Entry point of `gymnasium.make_vec`; `kwargs` go to the problem's class."""
    made = _problem(problem, kwargs)
    return TabularEnv.vector_class(made, num_envs, theta, observation, max_episode_steps, render_mode)


def _problem(path: str, kwargs: dict[str, Any]) -> ConfigurableMDP:
    module, name = path.split(":")
    cls = getattr(import_module(module), name)
    allowed = [f.name for f in fields(cls) if f.init]
    unknown = sorted(set(kwargs) - set(allowed))
    if unknown:
        face = ["theta", "observation", "render_mode"]
        raise TypeError(f"{name} has no argument {', '.join(map(repr, unknown))}; it takes {', '.join(allowed + face)}")
    return cls(**kwargs)
