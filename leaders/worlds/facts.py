"""The facts of a world and its follower on which a leader's configuration depends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from bilevel_envs.core.checks import lacking
from bilevel_envs.core.follower import capabilities_of
from bilevel_envs.core.mdp import ConfigurableMDP, Model
from bilevel_envs.worlds.world import world_of as kind_called
from bilevel_envs.wrapper import BilevelWrapper
from leaders.config import EstimatorConfig, LeaderConfig
from leaders.critics.least_squares import feature_count
from leaders.worlds.declared import DECLARED_WORLD
from leaders.worlds.linear_quadratic import LINEAR_QUADRATIC
from leaders.worlds.tabular import TABULAR
from leaders.worlds.world import Facts, LeaderWorld

LEADER_WORLDS = {world.name: world for world in (TABULAR, LINEAR_QUADRATIC, DECLARED_WORLD)}


def model_of(env: BilevelWrapper) -> Any:
    """The model at some θ, whose kind says what sort of world it is."""
    with env.in_first_context():  # whichever is in force
        return env.model(env.problem.default_theta)


def world_of(model: Model) -> LeaderWorld:
    """The kind of world that a model describes."""
    return LEADER_WORLDS[kind_called(model).name]


def _advice(problem: ConfigurableMDP) -> Mapping[str, object]:
    """What a problem recommends.

    Raises:
      TypeError: if it is no mapping.
      ValueError: if no leader has such a setting.
    """
    advised, name = problem.advised, problem.title
    if not isinstance(advised, Mapping):
        raise TypeError(f"`advised` of {name} must map names of leaders' arguments to values, got {advised!r}")
    known = [one.name for config in (EstimatorConfig, LeaderConfig) for one in fields(config)]
    unknown = [key for key in advised if key not in known]
    if unknown:
        raise ValueError(f"`advised` of {name} must have names among {', '.join(known)}, got {unknown[0]!r}")
    return advised


def facts_of(env: BilevelWrapper) -> Facts:
    """What a leader's configuration depends on in an environment with its follower."""
    model, follower = model_of(env), capabilities_of(env.follower)
    problem = env.problem
    world = world_of(model)
    hides = not lacking(model, ["hides_moves"]) and model.hides_moves  # of declared models alone
    linear = world == LINEAR_QUADRATIC
    return Facts(
        world=world,
        problem=problem.title,
        gamma=env.preferences.gamma_leader,
        advised=_advice(problem),
        blocks=problem.blocks,
        features=feature_count(model.state_size + model.action_size) if linear else 0,
        quadratic_reward=model.is_quadratic or not linear,
        leader_actions=problem.stage_actions,
        theta_size=int(np.prod(problem.theta_space.shape)),
        actions=problem.discrete_actions,
        hides_moves=hides,
        moves_start=hides and model.moves_start,
        reads_components=kind_called(model).reads_components(model),
        learns=follower.learns,
        optimal=follower.optimal,
    )
