import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_envs import Preferences, TabularModel
from bilevel_envs.envs.four_rooms import GOAL_STATE, START_STATE, FourRooms
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.followers import SoftValueIteration

PREFS = Preferences(0.9, 0.9, 0.2)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    beta=st.sampled_from([1e-4, 1e-2, 0.2, 5.0]),
    gamma=st.sampled_from([0.0, 0.5, 0.99]),
)
def test_the_answer_satisfies_the_soft_bellman_equation(seed, beta, gamma):
    model = RandomMDP(seed=seed).model(torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).double())
    best = SoftValueIteration(beta=beta).best_response(model, Preferences(0.9, gamma, 1.0))
    q, v = best.q.values, best.v.values
    # a slow, plain evaluation of the definition
    for run in range(3):
        plain = model.r_follower[run] + gamma * (model.transition[run] @ v[run])
        top = plain.max(-1).values
        soft = top + beta * ((plain - top[:, None]) / beta).exp().sum(-1).log()
        assert (plain - q[run]).abs().max() < 1e-8 * max(1.0, float(v.abs().max()))
        assert (soft - v[run]).abs().max() < 1e-8 * max(1.0, float(v.abs().max()))
    torch.testing.assert_close(best.policy.probs.sum(-1), torch.ones(3, 10).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(beta * best.policy.log_probs, q - v[..., None], rtol=0, atol=1e-9)


def test_one_state_by_hand():
    # one state, rewards 0 and 1, γ = 1/2, β = 1: V = ln(e^{V/2} + e^{1 + V/2}) = V/2 + ln(1 + e), so V = 2 ln(1 + e)
    one = torch.ones(1, 1, 2, 1).double()
    reward = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    model = TabularModel(one, torch.ones(1, 1).double(), reward, reward)
    best = SoftValueIteration(beta=1.0).best_response(model, Preferences(0.5, 0.5, 1.0))
    assert float(best.v(0)) == pytest.approx(2 * math.log(1 + math.e), abs=1e-9)
    assert float(best.policy.probs[0, 0, 1]) == pytest.approx(math.e / (1 + math.e), abs=1e-12)


@pytest.mark.parametrize("beta", [1e-4, 1e-3, 5e-3, 1.0])
def test_the_goal_earns_its_own_entropy_and_nothing_after(beta):
    # an episode that looped at the goal would add β ln 4 / (1 − γ) instead
    rooms = FourRooms()
    best = SoftValueIteration(beta=beta).best_response(
        rooms.model(torch.from_numpy(rooms.default_theta)[None]), rooms.preferences
    )
    assert float(best.v(GOAL_STATE)) == pytest.approx(1 + beta * math.log(4), abs=1e-12)
    assert best.policy.log_probs.isfinite().all()


@pytest.mark.parametrize(("beta", "value"), [(1e-3, 0.704837), (3e-3, 0.720763), (5e-3, 0.759828)])
def test_follower_value_at_the_start_is_the_known_one(beta, value):
    # four_rooms specification, section 6 (an independent script), six digits
    rooms = FourRooms(beta=beta)
    best = SoftValueIteration().best_response(
        rooms.model(torch.from_numpy(rooms.default_theta)[None]), rooms.preferences
    )
    assert float(best.v(START_STATE)) == pytest.approx(value, abs=5e-7)
    assert float(best.residual.max()) <= 1e-10


def test_the_fixed_schedule_comes_near_the_fixed_point():
    rooms = FourRooms(beta=1e-3)
    model = rooms.model(torch.from_numpy(rooms.default_theta)[None])
    newton = SoftValueIteration().best_response(model, rooms.preferences)
    schedule = SoftValueIteration(rounds=100, sweeps=5).best_response(model, rooms.preferences)
    torch.testing.assert_close(schedule.v.values, newton.v.values, rtol=0, atol=1e-9)
    short = SoftValueIteration(rounds=3, sweeps=5).best_response(model, rooms.preferences)
    assert float(short.residual) > 1e-3
    assert newton.optimal
    assert not schedule.optimal


def test_a_warm_start_gives_the_same_answer_and_runs_do_not_touch_each_other():
    rooms = FourRooms()
    rng = np.random.default_rng(0)
    raw = torch.from_numpy(rng.normal(size=(4, 105)))
    theta = -0.2 * raw.softmax(-1)[:, :-1]
    solver = SoftValueIteration(tol=1e-12)
    together = solver.best_response(rooms.model(theta), rooms.preferences)
    warm = solver.best_response(rooms.model(theta.flip(0)), rooms.preferences, together)
    torch.testing.assert_close(warm.v.values.flip(0), together.v.values, rtol=0, atol=1e-11)
    alone = solver.best_response(rooms.model(theta[2:3]), rooms.preferences)
    torch.testing.assert_close(alone.v.values[0], together.v.values[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "`beta` must be above 0, got 0.0"),
        ({"beta": -1.0}, "`beta` must be above 0"),
        ({"beta": float("nan")}, "`beta` must be above 0 and finite, got nan"),
        ({"tol": 0.0}, "`tol` must be above 0"),
        ({"rounds": 100}, "`rounds` and `sweeps` make the fixed schedule together"),
        ({"rounds": 0, "sweeps": 5}, "`rounds` must be at least 1"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftValueIteration(**arguments)


def test_a_planner_needs_tables():
    with pytest.raises(
        TypeError, match="must be a TabularModel .*`follower` must be one that suits it: one that learns"
    ):
        SoftValueIteration().best_response(object(), PREFS)


@pytest.mark.parametrize(("name", "value"), [("gamma_leader", 1.0), ("gamma_follower", -0.1), ("beta", 0.0)])
def test_bad_preferences_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Preferences(**({"gamma_leader": 0.9, "gamma_follower": 0.9, "beta": 0.2} | {name: value}))


def test_a_beta_beyond_float64_is_refused_not_guessed():
    rooms = FourRooms(beta=1e-310)
    with pytest.raises(RuntimeError, match="β = 1e-310 may be too small for float64"):
        SoftValueIteration().best_response(rooms.model(torch.from_numpy(rooms.default_theta)[None]), rooms.preferences)
