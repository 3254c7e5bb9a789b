"""Entry points of the ids: a problem by its path, and the environment that fits it."""

from __future__ import annotations

from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from bilevel_envs.core.checks import unknown_names
from bilevel_envs.core.env_base import ConfigurableEnv, ConfigurableVectorEnv
from bilevel_envs.core.mdp import ConfigurableMDP, Numbers
from bilevel_envs.core.problems import check_model, check_problem, completed, simulated_at_first
from bilevel_envs.worlds.world import world_of


def make_env(
    problem: str, theta: Numbers | None = None, render_mode: str | None = None, **kwargs: object
) -> ConfigurableEnv:
    """Entry point of the scalar ids; arguments in the environment's `face` are its own, the rest the problem's."""
    env_class, made, face = _parts(problem, kwargs)
    return env_class(made, theta=theta, render_mode=render_mode, **face)


vars(make_env)["metadata"] = ConfigurableEnv.metadata  # for Gymnasium, which adds "rgb_array_list"


def make_vector_env(
    problem: str,
    num_envs: int = 1,
    theta: Numbers | None = None,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    copy: bool = True,
    **kwargs: object,
) -> ConfigurableVectorEnv:
    """Entry point of `gymnasium.make_vec`; arguments as in `make_env`.

    Args:
      problem: path of the problem's class.
      num_envs: how many copies.
      theta: first θ.
      max_episode_steps: time limit; None or, as `gymnasium.make` has it, −1 for none.
      render_mode: "rgb_array" or None.
      copy: False for observations that the next call overwrites; tables only.
      kwargs: arguments of the problem, or in the environment's `face`.
    """
    env_class, made, face = _parts(problem, kwargs)
    max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
    how: dict[str, object] = {"theta": theta, "max_episode_steps": max_episode_steps, "render_mode": render_mode}
    how |= {} if copy else {"copy": False}
    return env_class.vector_class(made, num_envs, **how, **face)


def _parts(path: str, kwargs: dict[str, object]) -> tuple[type[ConfigurableEnv], ConfigurableMDP, dict[str, object]]:
    """The environment that steps the problem, the problem, and the arguments that the environment takes itself."""
    cls = _named(path, "problem")
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    allowed = [name for name, one in signature(cls).parameters.items() if one.kind in named]
    problem = completed(cls(**{key: value for key, value in kwargs.items() if key in allowed}))
    env_class = environment_of(problem)
    face = list(env_class.face)
    unknown = sorted(set(kwargs) - set(allowed) - set(face))
    if unknown:
        known = [*allowed, "theta", *face, "render_mode"]
        raise TypeError(f"{cls.__name__} has no argument {unknown_names(unknown, known)}; it takes {', '.join(known)}")
    default = {"observation": problem.default_observation} if "observation" in face else {}
    return env_class, problem, default | {key: value for key, value in kwargs.items() if key in face}


def environment_of(problem: ConfigurableMDP) -> type[ConfigurableEnv]:
    """The environment that a problem declares; without one, that of its model's kind."""
    if problem.environment is not None:
        return _named(problem.environment, "environment")
    check_problem(problem)
    model = simulated_at_first(problem)
    check_model(model, problem, "simulator")
    return _named(world_of(model).environment, "environment")


def _named(path: str, name: str) -> Any:
    """The class at MODULE:CLASS."""
    module, _, cls = path.partition(":")
    try:
        return getattr(import_module(module), cls)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(f"`{name}` must be MODULE:CLASS that can be imported, got {path!r} ({error})") from error
