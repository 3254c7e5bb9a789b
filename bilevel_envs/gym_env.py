"""Entry points of the ids: a problem by its path, and the environment that fits it."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

from bilevel_envs.core.env_base import ConfigurableEnv, ConfigurableVectorEnv
from bilevel_envs.core.mdp import ConfigurableMDP
from bilevel_envs.envs.tax_design import TaxDesign
from bilevel_envs.envs.tax_env import TaxEnv
from bilevel_envs.worlds.declared.env import SimulatedEnv
from bilevel_envs.worlds.linear_quadratic.env import LinearEnv
from bilevel_envs.worlds.tabular.env import TabularEnv


def make_env(problem: str, theta: Any = None, render_mode: str | None = None, **kwargs: Any) -> ConfigurableEnv:
    """Entry point of the scalar ids; arguments in the environment's `face` are its own, the rest the problem's."""
    env_class, made, face = _parts(problem, kwargs)
    return env_class(made, theta=theta, render_mode=render_mode, **face)


make_env.metadata = ConfigurableEnv.metadata  # type: ignore[attr-defined]  # for Gymnasium, which adds "rgb_array_list"


def make_vector_env(
    problem: str,
    num_envs: int = 1,
    theta: Any = None,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    **kwargs: Any,
) -> ConfigurableVectorEnv:
    """Entry point of `gymnasium.make_vec`; arguments as in `make_env`.

    Args:
      problem: path of the problem's class.
      num_envs: how many copies.
      theta: first θ.
      max_episode_steps: time limit; None or, as `gymnasium.make` has it, −1 for none.
      render_mode: "rgb_array" or None.
      kwargs: arguments of the problem, or in the environment's `face`.
    """
    env_class, made, face = _parts(problem, kwargs)
    max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
    how = {"theta": theta, "max_episode_steps": max_episode_steps, "render_mode": render_mode}
    return env_class.vector_class(made, num_envs, **how, **face)


def _parts(path: str, kwargs: dict[str, Any]) -> tuple[type[ConfigurableEnv], ConfigurableMDP, dict[str, Any]]:
    """The environment that fits the problem, the problem, and the arguments that the environment takes itself."""
    module, _, name = path.partition(":")
    try:
        cls = getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(f"`problem` must be MODULE:CLASS that can be imported, got {path!r} ({error})") from error
    allowed = [f.name for f in fields(cls) if f.init]
    env_class = _env_class(cls)
    face = list(env_class.face)
    unknown = sorted(set(kwargs) - set(allowed) - set(face))
    if unknown:
        known = ", ".join([*allowed, "theta", *face, "render_mode"])
        raise TypeError(f"{name} has no argument {', '.join(map(repr, unknown))}; it takes {known}")
    made = cls(**{key: value for key, value in kwargs.items() if key in allowed})
    shown = {"observation": cls.default_observation} if hasattr(cls, "default_observation") else {}
    given = {key: value for key, value in kwargs.items() if key in face}
    if getattr(made, "network", None) is not None:
        return SimulatedEnv, made, {}
    return env_class, made, shown | given


def _env_class(problem: type) -> type[ConfigurableEnv]:
    """The environment that steps problems of this class."""
    if issubclass(problem, TaxDesign):
        return TaxEnv
    return LinearEnv if hasattr(problem, "state_space") else TabularEnv
