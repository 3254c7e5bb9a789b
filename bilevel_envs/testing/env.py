"""Checks an environment: all checks in order, and what may be given."""

from __future__ import annotations

from types import FunctionType
from typing import TypeAlias, cast

import gymnasium as gym
from pettingzoo import AECEnv, ParallelEnv

from bilevel_envs.core.checks import check_count, check_instance, check_seed, lacking
from bilevel_envs.core.mdp import ConfigurableMDP
from bilevel_envs.core.problems import completed
from bilevel_envs.gym_env import environment_of
from bilevel_envs.leader_env import game_of
from bilevel_envs.testing import components, dynamics, episodes, games, model, theta
from bilevel_envs.testing.follower import follower_results
from bilevel_envs.testing.report import Check, Report, finish, results_of
from bilevel_envs.testing.subject import Nobody, Subject
from bilevel_envs.testing.vector import vector

Given: TypeAlias = str | gym.Env | ConfigurableMDP | AECEnv | ParallelEnv

RUNS = "episodes can be stepped"
TWICE = "components: the same when logged twice"
ALIKE = "configure: the same θ makes the same world"
SEEDS = "seeds: the same one repeats an episode"
REFUSED = "θ: refused outside its space"
STICKY = "θ: kept over resets"
FINITE = "rewards: finite, the leader's in `info`"
SPACES = "spaces: observations are members"
OBSERVATIONS = "shared objects: observations stay as they were"
ACTIONS = "shared objects: actions are not written into"
ALONE = "components: of the step alone"
COPIES = "shared objects: copies are independent"
ENDS = "ends: limits truncate, ends terminate"
GRADIENTS = "model: gradients are those of differences"
REWARDS = "steps: rewards are the model's"
STARTS = "steps: first states are the model's"
MOVES = "steps: transitions are the model's"
ACCEPTED = "θ: accepted inside its space"
FORMS = "game: both PettingZoo forms agree"
VARIED = "seeds: another one is another episode"

BASE = (RUNS, ACCEPTED, TWICE)
STEPPED = (*BASE, OBSERVATIONS, ACTIONS, ALIKE, SEEDS, STICKY)
MODELLED = (*STEPPED, SPACES, REWARDS, MOVES, STARTS, ENDS)

CHECKS: tuple[Check[Subject], ...] = (
    Check(RUNS, episodes.run),
    Check("θ: its parameterisation stays in its space", theta.parameterised),
    Check(ACCEPTED, theta.accepted),
    Check(TWICE, components.twice, (RUNS,)),
    Check(FINITE, episodes.finite, BASE),
    Check(OBSERVATIONS, episodes.shared_observations, BASE),
    Check(ACTIONS, episodes.shared_actions, BASE),
    Check(SPACES, episodes.spaces, (*BASE, OBSERVATIONS)),
    Check(ALIKE, dynamics.alike, (*BASE, OBSERVATIONS, ACTIONS)),
    Check(SEEDS, episodes.repeated, (*BASE, OBSERVATIONS, ACTIONS, ALIKE)),
    Check(REFUSED, theta.refused, BASE),
    Check(STICKY, theta.sticky, (*BASE, ALIKE, SEEDS)),
    Check("θ: kept when another is refused", theta.kept, (*STEPPED, REFUSED)),
    Check("θ: `reset` options and `configure` agree", theta.agreed, STEPPED),
    Check("θ: an array of its own", theta.owned, STEPPED),
    Check("θ: changes rewards or dynamics", theta.matters, STEPPED),
    Check("configure: θ moves the steps", dynamics.effective, STEPPED),
    Check("model: several θ at once", model.runs, BASE),
    Check(GRADIENTS, model.gradients, BASE),
    Check("model: no jumps in θ", model.jumps, (*BASE, GRADIENTS)),
    Check(REWARDS, model.rewards, (*STEPPED, FINITE, SPACES)),
    Check(VARIED, episodes.varied, (*STEPPED, SPACES)),
    Check(MOVES, model.moves, (*STEPPED, SPACES, VARIED)),
    Check(STARTS, model.starts, (*STEPPED, SPACES, VARIED, MOVES)),
    Check(ENDS, episodes.ends, (*STEPPED, SPACES)),
    Check(ALONE, components.alone, STEPPED),
    Check(COPIES, episodes.independent, STEPPED),
    Check("vector form: copies are scalar environments", vector, (*MODELLED, FINITE, ALONE, COPIES)),
    Check("Gymnasium: check_env", episodes.gymnasium, (*STEPPED, SPACES, VARIED)),
    Check("game: moves are the model's", games.model, (RUNS,)),
    Check(FORMS, games.agree, (RUNS,)),
    Check("PettingZoo: api_test and seed_test", games.turns, (FORMS,)),
    Check("PettingZoo: parallel_api_test and parallel_seed_test", games.together, (FORMS,)),
    Check("Gymnasium: check_env of the leader's side", games.leader_side, (FORMS,)),
)


def env_of(given: Given) -> gym.Env:
    """The follower's environment of what was given."""
    check_instance(given, "env")
    if isinstance(given, str):
        return gym.make(given, disable_env_checker=True)
    if given is None or isinstance(given, (int, float, list, tuple, dict, FunctionType)):
        raise TypeError(
            "`env` must be the id of an environment, a configurable environment, a problem, a game or a "
            f"BilevelWrapper, got {given!r}"
        )
    inner = given if lacking(given, ["unwrapped"]) else cast(gym.Env, given).unwrapped
    if lacking(inner, ["theta_space", "game"]) == ["theta_space"]:  # of two players, or of the leader's side
        given = game_of(given)
    if isinstance(given, gym.Env):
        return given
    problem = completed(given)
    return environment_of(problem)(problem)


def check_bilevel_env(env: Given, *, steps: int = 4_000, seed: int = 0, raises: bool = True) -> Report:
    """Checks that an environment keeps the contract that leaders and followers rely on.

    Transitions and first states are tested at a level at which a conforming environment is told of a fault once in
    10,000 seeds; all else is exact, or to rounding. The environment is stepped and configured, and in the end has
    its θ again; render modes are not tried.

    Args:
      env: the id of a registered environment; a configurable environment, with or without a time limit; a problem or a
        game; one of a game's other forms; or a `BilevelWrapper`, whose follower is checked, too, as by
        `check_follower`.
      steps: how many are compared with the model.
      seed: of all that is drawn.
      raises: False to return a report with findings instead of raising.

    Returns:
      What was looked at, with what was found.

    Raises:
      ConformanceError: an `AssertionError` that lists all findings, unless `raises` is False.
      TypeError: if `env` is not configurable, or has a wrapper that may change rewards, actions or observations.
    """
    subject = Subject(env_of(env), check_seed(seed), check_count(steps, "steps", at_least=100))
    with subject.borrowed():
        report = Report(subject.name, results_of(CHECKS, subject))
        if not isinstance(subject.held.follower, Nobody):
            report += Report("", follower_results(subject.held.follower, subject))
    return finish(report, raises)
