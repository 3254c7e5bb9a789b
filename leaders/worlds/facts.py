"""The facts of a world and its follower on which a leader's configuration depends."""

from __future__ import annotations

from typing import Any

import numpy as np

from bilevel_envs.followers import Riccati, SoftValueIteration
from bilevel_envs.worlds.declared.model import SimulatedModel
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.wrapper import BilevelWrapper
from leaders.critics.least_squares import feature_count
from leaders.worlds.declared import DECLARED_WORLD
from leaders.worlds.linear_quadratic import LINEAR_QUADRATIC
from leaders.worlds.tabular import TABULAR
from leaders.worlds.world import Facts, LeaderWorld


def model_of(env: BilevelWrapper) -> Any:
    """The model at some θ, whose kind says what sort of world it is."""
    space = env.theta_space
    return env.model(getattr(env.problem, "default_theta", np.clip(np.zeros(space.shape), space.low, space.high)))


def world_of(model: Any) -> LeaderWorld:
    """The kind of world that a model describes."""
    if isinstance(model, LinearQuadraticModel):
        return LINEAR_QUADRATIC
    return DECLARED_WORLD if isinstance(model, SimulatedModel) else TABULAR


def facts_of(env: BilevelWrapper) -> Facts:
    """What a leader's configuration depends on in an environment with its follower."""
    model, follower = model_of(env), env.follower
    problem: Any = env.problem
    world = world_of(model)
    linear = world is LINEAR_QUADRATIC
    sees = getattr(problem, "sees_leader", False) and hasattr(problem, "tables")
    return Facts(
        world=world,
        problem=type(problem).__name__,
        gamma=env.preferences.gamma_leader,
        advised=getattr(problem, "advised", {}),
        blocks=getattr(problem, "blocks", None),
        features=feature_count(model.state_size + model.action_size) if linear else 0,
        quadratic_reward=getattr(model, "bump", None) is None,
        leader_actions=problem.tables.r_leader.shape[1] if sees else 0,
        learns=hasattr(follower, "respond"),
        optimal=isinstance(follower, (SoftValueIteration, Riccati)),
    )
