"""What a leader's configuration is, given what the user said, and what the world and the follower are."""

from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import Riccati, Truncated
from leaders import BCHG, HPGD, LEADERS, NaivePGD, ZerothOrder
from leaders.config import (
    DECLARED,
    LINEAR,
    PUBLISHED_LINEAR,
    PUBLISHED_TABLES,
    EstimatorConfig,
    Forms,
    LeaderConfig,
    PublishedGame,
)
from leaders.keywords import NOT_GIVEN, EstimatorKeywords, LeaderKeywords, options_of, parameters_of
from leaders.worlds.declared import DECLARED_WORLD
from leaders.worlds.linear_quadratic import LINEAR_QUADRATIC
from leaders.worlds.resolve import resolve
from leaders.worlds.tabular import TABULAR
from leaders.worlds.world import Facts

FORMS = Forms(
    {None: EstimatorConfig("bc_hg"), "paper": PUBLISHED_TABLES}, {None: LINEAR, "paper": PUBLISHED_LINEAR}, DECLARED
)
TABLES = Facts(TABULAR, "Rooms", 0.9)
MATRICES = Facts(LINEAR_QUADRATIC, "Building", 0.9, features=22, blocks={"a": slice(0, 1)})
GAUSSIAN = Facts(LINEAR_QUADRATIC, "Target", 0.9, features=10, quadratic_reward=False)
UNKNOWN = Facts(DECLARED_WORLD, "Pendulum", 0.9, learns=True, optimal=False)


def learning(facts):
    return Facts(**{**vars(facts), "learns": True, "optimal": False})


def cut_short(facts):
    return Facts(**{**vars(facts), "optimal": False})


def advised(facts, **settings):
    return Facts(**{**vars(facts), "advised": settings})


@pytest.mark.parametrize(
    ("facts", "given", "expected"),
    [
        # tables: the recommended form, whatever the follower, but for critics that read a follower's policy
        (TABLES, {}, {"critic": "empirical", "tail": "continue", "gradient": "score", "guiding": "sampled"}),
        (cut_short(TABLES), {}, {"critic": "empirical"}),
        (learning(TABLES), {}, {"critic": "state_values"}),
        (learning(TABLES), {"critic": "expected_sarsa"}, {"critic": "expected_sarsa"}),
        (TABLES, {"critic": "sarsa", "batch_size": 500}, {"critic": "sarsa", "batch_size": 500}),
        (TABLES, {"preset": "paper"}, {"critic": "sarsa", "tail": "reference", "cross_fit": False}),
        (TABLES, {"preset": "paper", "tail": "keep"}, {"critic": "sarsa", "tail": "keep"}),
        # matrices: the closed form belongs to an optimal follower
        (MATRICES, {}, {"gradient": "analytic", "guiding": "sampled", "critic": "lstd", "batch_size": 1_000}),
        (cut_short(MATRICES), {}, {"gradient": "pathwise", "guiding": "fitted", "critic": "lstd"}),
        (learning(MATRICES), {}, {"gradient": "pathwise", "guiding": "fitted", "critic": "state_values"}),
        (MATRICES, {"guiding": "fitted"}, {"gradient": "pathwise", "guiding": "fitted"}),
        (MATRICES, {"gradient": "score"}, {"gradient": "score", "guiding": "fitted"}),
        (MATRICES, {"critic": "td"}, {"gradient": "score", "guiding": "sampled"}),
        (MATRICES, {"preset": "paper"}, {"critic": "td", "guiding": "sampled", "gradient": "score", "rows": 10}),
        (Facts(**{**vars(MATRICES), "features": 301}), {}, {"batch_size": 2_000}),
        # a leader's reward that is not quadratic
        (GAUSSIAN, {"critic": "exact"}, {"gradient": "analytic", "guiding": "sampled"}),
        (learning(GAUSSIAN), {}, {"critic": "td", "network_of": "both", "gradient": "score"}),
        # no model
        (UNKNOWN, {}, {"critic": "td", "sampler": "steps", "gradient": "score", "batch_size": 2_000}),
        # what the problem advises wins over the form, and the user over that
        (advised(TABLES, batch_size=450, rows=3), {}, {"batch_size": 450, "rows": 3}),
        (advised(TABLES, batch_size=450, rows=3), {"batch_size": 100}, {"batch_size": 100, "rows": None}),
        (advised(TABLES, batch_size=450, rows=3), {"preset": "paper"}, {"batch_size": 100, "rows": None}),
        (advised(MATRICES, critic="exact"), {}, {"critic": "exact", "batch_size": 1_000}),
    ],
)
def test_a_configuration_follows_from_world_follower_and_user(facts, given, expected):
    _, config = resolve("BCHG", FORMS, given, facts)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("facts", "given", "expected"),
    [
        (TABLES, {}, {"learning_rate": 0.05, "optimizer": "adam", "blocks": None}),
        (TABLES, {"preset": "paper"}, {"learning_rate": 0.1, "optimizer": "sgd", "blocks": None}),
        (MATRICES, {"preset": "paper"}, {"learning_rate": 0.1, "optimizer": "sgd", "blocks": {"a": slice(0, 1)}}),
        (advised(TABLES, learning_rate=0.02), {}, {"learning_rate": 0.02}),
        (advised(TABLES, learning_rate=0.02), {"learning_rate": 0.3}, {"learning_rate": 0.3}),
    ],
)
def test_the_steps_follow_from_world_and_user(facts, given, expected):
    config, _ = resolve("BCHG", FORMS, given, facts)
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_published_game_brings_its_own_settings():
    game = PublishedGame({"learning_rate": 1e-4}, "mlp", 450, 3)
    config, estimator = resolve("BCHG", FORMS, {"preset": "paper"}, TABLES, game)
    assert (config.learning_rate, config.policy) == (1e-4, "mlp")
    assert (estimator.batch_size, estimator.rows, estimator.tail, estimator.cross_fit) == (450, 3, "keep", False)


@pytest.mark.parametrize(
    ("forms", "given", "facts", "message"),
    [
        (FORMS, {"preset": "best"}, TABLES, "`preset` must be one of None, 'paper', got 'best'"),
        (FORMS, {"critic": "lstd"}, TABLES, "`critic` must be one of 'empirical'"),
        (Forms({None: EstimatorConfig("sobirl")}), {}, MATRICES, "`env` must be a table for BCHG: .*Building is none"),
        (Forms(FORMS.tables, FORMS.linear), {}, UNKNOWN, "`env` must have a known model for BCHG"),
    ],
)
def test_keywords_that_contradict_the_world_are_refused_by_name(forms, given, facts, message):
    with pytest.raises(ValueError, match=message):
        resolve("BCHG", forms, given, facts)


def test_a_planner_that_is_cut_short_does_not_get_the_closed_form_of_an_optimal_one():
    env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), Truncated(Riccati(), rounds=3))
    assert BCHG(env).estimator_config.gradient == "pathwise"
    assert BCHG(BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))).estimator_config.gradient == "analytic"


@pytest.mark.parametrize(("keywords", "configs"), [(LeaderKeywords, [LeaderConfig])])
def test_the_keywords_are_the_fields_of_the_configuration(keywords, configs):
    given = {one.name for config in configs for one in fields(config)} - set(NOT_GIVEN)
    assert set(keywords.__annotations__) == given
    assert set(EstimatorKeywords.__annotations__) == given | {one.name for one in fields(EstimatorConfig)} - set(
        NOT_GIVEN
    )


@pytest.mark.parametrize("leader", LEADERS.values(), ids=list(LEADERS))
def test_every_keyword_of_a_leader_is_documented(leader):
    import inspect

    assert list(inspect.signature(leader).parameters) == [one.name for one in parameters_of(leader)][1:]
    for name in options_of(leader):
        assert f"        {name}: " in leader.__doc__, name


@pytest.mark.parametrize(
    ("leader", "keyword"),
    [(NaivePGD, "control_variate"), (HPGD, "guiding"), (ZerothOrder, "critic"), (LEADERS["cmaes"], "learning_rate")],
)
def test_keywords_that_do_not_apply_are_refused(make, leader, keyword):
    with pytest.raises(TypeError, match=f"{leader.__name__} has no argument '{keyword}'; it takes"):
        leader(make("RandomMDP"), **{keyword: "constant"})


def test_an_array_is_no_choice(make):
    with pytest.raises(ValueError, match=r"`exploration` must be one of 'none', 'restarts', got array\("):
        BCHG(make("TollBridge"), exploration=np.array(["restarts", "none"]))
