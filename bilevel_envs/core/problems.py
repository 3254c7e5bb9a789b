"""Whether a problem, and the model that it gives, are what an environment takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_instance, lacking
from bilevel_envs.core.mdp import BestKnown, ConfigurableMDP, Preferences

NEEDED = ("theta_space", "default_theta", "preferences", "model", "simulator", "check_theta")
OF_A_MODEL = ("runs", "terms", "detach")
STEPPED_BY = {"TabularModel": "TabularEnv", "LinearQuadraticModel": "LinearEnv", "SimulatedModel": "SimulatedEnv"}


def check_problem(problem: Any, *further: str) -> None:
    """Refuses what is no `ConfigurableMDP`, and one whose default θ is none of its space.

    Args:
      problem: what an environment was given.
      further: parts that this kind of environment needs beside those of every problem.

    Raises:
      TypeError: if it is a class, lacks a part, or has a part of the wrong kind.
      ValueError: if `default_theta` has another shape than `theta_space`, or is refused by `check_theta`.
    """
    check_instance(problem, "problem")
    name = type(problem).__name__ if lacking(problem, ["title"]) else problem.title
    missing = lacking(problem, (*NEEDED, *further))
    if missing:
        raise TypeError(
            f"`problem` must be a ConfigurableMDP that this environment can step, got {name}, which lacks "
            f"{', '.join(missing)}: derive its class from bilevel_envs.ConfigurableMDP, write what is missing, or take "
            f"the environment that goes with its model ({', '.join(STEPPED_BY.values())})"
        )
    space, preferences = problem.theta_space, problem.preferences
    check_theta_space(space, name)
    if not isinstance(preferences, Preferences):
        raise TypeError(
            f"`preferences` of {name} must be a Preferences, got {preferences!r}: write "
            "Preferences(gamma_leader, gamma_follower, beta)"
        )
    default = np.asarray(problem.default_theta)
    if default.dtype.kind not in "fiu" or default.shape != space.shape:
        raise ValueError(
            f"`default_theta` of {name} must be numbers of the shape {list(space.shape)} of its `theta_space`, got "
            f"{problem.default_theta!r}: give it as many numbers, inside the space, or change the space"
        )
    try:
        problem.check_theta(default.astype(np.float64))
    except ValueError as error:
        raise ValueError(
            f"`default_theta` of {name} must be a θ that its `check_theta` allows: {error}. Change it, or `theta_space`"
        ) from error


def completed(problem: Any) -> ConfigurableMDP:
    """A problem with the defaults of `ConfigurableMDP` for every hook that it lacks.

    What derives from `ConfigurableMDP` is returned as it is. Of another object, such as a foreign environment that is
    its own problem, a second view is returned: of a class derived from its own, with the same attributes.
    """
    kind = type(problem)
    if ConfigurableMDP in kind.__mro__:
        return problem
    hooks = {name for name in vars(ConfigurableMDP) if not name.startswith("_")}
    own: dict[str, object] = {name: _attribute(name) for name in hooks & set(vars(problem))}
    if lacking(problem, ["default_theta"]):
        own["default_theta"] = property(lambda self: np.clip(0.0, self.theta_space.low, self.theta_space.high))
    known = None if lacking(problem, ["best_known"]) else problem.best_known
    if not callable(known):  # a value, as environments tell it
        value = known if known is None or isinstance(known, BestKnown) else BestKnown(known, "told by the environment")
        own["best_known"] = lambda self, preferences: value
    own |= {"__module__": kind.__module__, "__reduce__": lambda self: (completed, (problem,))}
    view: ConfigurableMDP = object.__new__(type(kind.__name__, (kind, ConfigurableMDP), own))
    view.__dict__ = problem.__dict__
    return view


def _attribute(name: str) -> property:
    """A property that reads an object's own attribute of that name."""
    return property(lambda self: vars(self)[name])


def check_theta_space(space: object, name: str) -> None:
    """Refuses what is no box with a TypeError, and an empty one with a ValueError; `name` is whose it is."""
    if not isinstance(space, gym.spaces.Box):
        raise TypeError(
            f"`theta_space` of {name} must be a gymnasium.spaces.Box, got {space!r}: θ is an array of numbers between "
            "bounds, Box(low, high, shape, np.float64)"
        )
    if 0 in space.shape:
        raise ValueError(
            f"`theta_space` of {name} must have at least one entry, got shape {list(space.shape)}: without θ there is "
            "nothing to lead"
        )


def simulated(problem: ConfigurableMDP, theta: Tensor, *context: np.ndarray) -> Any:
    """The world that `step` simulates at θ ``[R, *θ.shape]``, in each run's context where the problem has some."""
    own = type(problem).simulator is not ConfigurableMDP.simulator
    return modelled(problem, problem.simulator if own else problem.model, theta, *context)


def modelled(problem: ConfigurableMDP, method: Callable[..., object], theta: Tensor, *context: np.ndarray) -> Any:
    """What a problem's `model` or `simulator` makes of θ ``[R, *θ.shape]``.

    Raises:
      TypeError: if it takes a θ that needs a gradient to NumPy.
    """
    try:
        return method(theta, *context)
    except RuntimeError as error:
        if "numpy()" not in str(error):
            raise
        raise TypeError(
            f"`{method.__name__}(theta)` of {problem.title} must keep to torch operations on θ, whose gradient leaders "
            f"need; it took θ {list(theta.shape)} to NumPy: write torch.exp(theta) for np.exp(theta)"
        ) from error


def simulated_at_first(problem: ConfigurableMDP) -> Any:
    """The world that `step` simulates at the default θ, in the first context where every model is of one."""
    theta = torch.tensor(np.asarray(problem.default_theta), dtype=torch.float64)[None]
    contexts = problem.contexts
    return simulated(problem, theta, *(() if contexts is None or contexts.within else (np.zeros(1, np.int64),)))


def check_model(model: object, problem: ConfigurableMDP, method: str = "model", kind: type | None = None) -> None:
    """Refuses what a problem returned as a model, with a TypeError, unless it is one.

    Args:
      model: what it returned.
      problem: whose method was called.
      method: "model" or "simulator".
      kind: the class of models that the environment steps; None for any object with the methods of a model.
    """
    if isinstance(model, kind) if kind else not lacking(model, OF_A_MODEL):
        return
    if method == "simulator" and type(problem).simulator is ConfigurableMDP.simulator:
        method = "model"  # which it calls, and which the problem's author wrote
    wanted = f"a {kind.__name__}" if kind else f"a model ({', '.join(STEPPED_BY)})"
    if model is None:
        remedy = "did you forget `return`?"
    elif type(model).__name__ in STEPPED_BY:
        remedy = f"put the problem into a {STEPPED_BY[type(model).__name__]}"
    else:
        remedy = "build one from your tables or matrices"
    got = repr(model) if model is None or isinstance(model, type) else type(model).__name__
    raise TypeError(f"`{method}(theta)` of {problem.title} must return {wanted}, got {got}: {remedy}")
