import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_envs import Preferences, TabularModel
from bilevel_envs.envs.four_rooms import GOAL_STATE, START_STATE, FourRooms
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.followers import Committed, SoftValueIteration

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
        plain = model.r_follower[run] + gamma * (model.moves.dense()[run] @ v[run])
        top = plain.max(-1).values
        soft = top + beta * ((plain - top[:, None]) / beta).exp().sum(-1).log()
        assert (plain - q[run]).abs().max() < 1e-8 * max(1.0, float(v.abs().max()))
        assert (soft - v[run]).abs().max() < 1e-8 * max(1.0, float(v.abs().max()))
    torch.testing.assert_close(best.policy.probs.sum(-1), torch.ones(3, 10).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(beta * best.policy.log_probs, q - v[..., None], rtol=0, atol=1e-9)


def test_the_solution_in_one_state_is_the_closed_form():
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


def random_table(scale=1.0, offset=0.0, ends=0.0):
    """Twelve states, three actions; rewards (r + offset) times `scale`."""
    rng = np.random.default_rng(0)
    transition = torch.from_numpy(rng.dirichlet(np.ones(12), (1, 12, 3)))
    reward = scale * (torch.from_numpy(rng.normal(size=(1, 12, 3))) + offset)
    continues = torch.from_numpy((rng.random((1, 12, 3)) >= ends).astype(float))
    return TabularModel(transition, torch.full((1, 12), 1 / 12).double(), reward, reward, continues)


def soft_optimum(model, gamma, beta):
    """g by Newton's method in extended precision, [S, B]; its linear solves are refined until they are exact, too."""
    kernel = (model.moves.dense() * model.continues[..., None])[0].numpy().astype(np.longdouble)
    reward, v = model.r_follower[0].numpy().astype(np.longdouble), np.zeros(model.states, np.longdouble)
    for _ in range(60):
        q = reward + gamma * kernel @ v
        top = q.max(1)
        weight = np.exp((q - top[:, None]) / beta)
        g = weight / weight.sum(1, keepdims=True)
        system = np.eye(model.states) - gamma * (g[..., None] * kernel).sum(1).astype(float)
        v = v + np.linalg.solve(system, (top + beta * np.log(weight.sum(1)) - v).astype(float))
    return g.astype(float)


@pytest.mark.parametrize("tol", [1e-10, 1e-12])
@pytest.mark.parametrize("ends", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [0.9, 0.99, 0.9999])
def test_a_common_scale_of_rewards_and_beta_leaves_the_policy_alone(gamma, ends, tol):
    g = soft_optimum(random_table(ends=ends), gamma, 0.05)
    for scale in (1e-12, 1e-10, 1e-3, 1.0, 1e9):
        best = SoftValueIteration(beta=0.05 * scale, tol=tol).best_response(
            random_table(scale, ends=ends), Preferences(0.9, gamma, 1.0)
        )
        np.testing.assert_allclose(best.policy.probs[0], g, atol=1e-6)
        assert float(best.residual) <= 1e-8 * 0.05 * scale
        assert best.optimal


@pytest.mark.parametrize(("gamma", "offset"), [(0.999, 1e5), (0.9999, 1e6), (0.9999, -1e6), (0.5, 1e6)])
def test_a_constant_added_to_all_rewards_leaves_the_policy_alone_where_nothing_ends(gamma, offset):
    preferences, solver = Preferences(0.9, gamma, 0.05), SoftValueIteration()
    plain, shifted = random_table(), random_table(offset=offset)
    g = soft_optimum(plain, gamma, 0.05)
    cold = solver.best_response(shifted, preferences)
    back = solver.best_response(plain, preferences, cold)  # the constant of the first response is no start here
    again = solver.best_response(shifted, preferences, back)
    for best in (cold, back, again):
        np.testing.assert_allclose(best.policy.probs[0], g, atol=1e-6)
        assert best.optimal
    # V moves by offset / (1 − γ), of which float64 holds 16 digits
    moved = cold.v.values - solver.best_response(plain, preferences).v.values
    np.testing.assert_allclose(moved, offset / (1 - gamma), rtol=1e-9)
    np.testing.assert_allclose(
        cold.q.values, cold.v.values[..., None] + 0.05 * cold.policy.log_probs, rtol=1e-14, atol=1e-9
    )


@pytest.mark.parametrize(("gamma", "offset", "beta"), [(0.9999, 1e6, 0.05), (0.999, 0.0, 1e-5)])
def test_values_too_large_for_float64_beside_beta_are_refused_where_episodes_end(gamma, offset, beta):
    # values of 1e10 beside β = 0.05, and of 600 beside 1e-5: rounding alone moves log g by more than 1e-6
    with pytest.raises(
        RuntimeError, match=r"β; `tol` accepts 1e-10 β\. V_F reaches .* Raise `beta`, take constants out"
    ):
        SoftValueIteration().best_response(random_table(offset=offset, ends=0.2), Preferences(0.9, gamma, beta))


def test_tol_is_the_residual_relative_to_beta():
    for tol in (1e-2, 1e-6):
        for scale in (1e-9, 1.0):
            best = SoftValueIteration(tol=tol).best_response(
                random_table(scale, ends=0.2), Preferences(0.9, 0.9, 5 * scale)
            )
            assert 0 < float(best.residual) <= tol * 5 * scale


def test_a_committed_follower_stops_by_the_change_relative_to_beta():
    model, preferences = random_table(), Preferences(0.9, 0.9, 0.05)
    kernel, reward, q = model.moves.dense()[0].numpy(), model.r_follower[0].numpy(), np.zeros((12, 3))
    for _ in range(1_000):
        expected = np.einsum("sbt,tc->sbc", kernel, q)
        top = expected.max(-1)
        q = reward + 0.9 * (top + 0.05 * np.log(np.exp((expected - top[..., None]) / 0.05).sum(-1)))
    g = np.exp((q - q.max(1, keepdims=True)) / 0.05)
    g /= g.sum(1, keepdims=True)
    for scale in (1e-10, 1.0, 1e6):
        best = Committed(beta=0.05 * scale).best_response(random_table(scale), preferences)
        # 2e-5 of β per sweep are 2e-5 · 0.9 / (1 − 0.9) of it from the end, in log g twice that; g (1 − g) ≤ 1/4
        np.testing.assert_allclose(best.policy.probs[0], g, atol=1e-4)
