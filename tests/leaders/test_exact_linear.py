"""Exact values and hypergradients of the building, against independent numbers, differences and sampling."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.noise import Noise
from leaders import ExactGradient, exact
from leaders.exact import linear_quadratic as exact_linear

ORACLES = json.loads((Path(__file__).parents[1] / "data" / "thermal_oracles.json").read_text())
NAMES = ["half", "ones", "zeros", "optimum"]
GAMMA = 0.9


@pytest.fixture(scope="module")
def env():
    return BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))


def close(actual, expected, *, rel=1e-9):
    """Within `rel` of the largest entry."""
    expected = np.asarray(expected)
    assert np.abs(np.asarray(actual) - expected).max() <= rel * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_building_has_every_number_of_the_oracles(env, name):
    oracle, test = ORACLES[name], ORACLES["_test_state"]
    theta = np.array(oracle["theta"])
    model, best = env.model(theta), env.best_response(theta)
    state, action = (torch.tensor(test[key], dtype=torch.float64)[None, None] for key in ("s", "b"))
    close(model.A[0], oracle["A"])
    close(-best.v.matrix[0], oracle["P"])
    close(best.policy.gain[0], oracle["K"])
    close(best.policy.covariance[0], oracle["Sigma"])
    close(-best.v.constant, oracle["v"])
    close(best.v(state), oracle["V_F"])
    close(best.q(state, action), oracle["Q_F"])
    close(best.policy.log_prob(state, action), oracle["log_g"])
    q_leader, v_leader = exact_linear.leader_values(model, best.policy, GAMMA)
    close(-v_leader.matrix[0], oracle["P_L"])
    close(-v_leader.constant, oracle["c_L"])
    close(v_leader(state), oracle["V_L"])
    close(q_leader(state, action), oracle["Q_L"])
    close(exact.objective(env, theta), oracle["J_inf"]["J"])
    close(exact.objective(env, theta, horizon=100), oracle["J_100"]["J"])
    direct, guiding = exact.hypergradient_parts(env, theta)
    close(direct, oracle["grad_direct"])
    close(guiding, oracle["grad_guiding"])
    close(exact.hypergradient(env, theta), oracle["grad"])


def test_gradients_of_both_value_functions_are_the_oracles(env):
    test = ORACLES["_test_state"]
    theta = torch.tensor([test["theta"]], dtype=torch.float64, requires_grad=True)
    best = env.follower.reaction(env.model(theta), env.preferences)
    state, action = (torch.tensor(test[key], dtype=torch.float64)[None, None] for key in ("s", "b"))
    close(torch.autograd.grad(best.v(state).sum(), theta, retain_graph=True)[0][0], test["grad_V_F"])
    close(torch.autograd.grad(best.q(state, action).sum(), theta)[0][0], test["grad_Q_F"])


def test_the_leaders_values_belong_together(env):
    theta = np.random.default_rng(0).random((3, 8))
    best, model = env.best_response(theta), env.model(theta)
    q_leader, v_leader = exact_linear.leader_values(model, best.policy, GAMMA)
    averaged = best.policy.averaged(q_leader)
    torch.testing.assert_close(averaged.matrix, v_leader.matrix, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(averaged.constant, v_leader.constant, rtol=1e-10, atol=1e-10)
    # J_L is V_L averaged over the first state
    at_start = (v_leader.matrix * model.initial).sum((-2, -1)) + v_leader.constant
    torch.testing.assert_close(at_start.numpy(), exact.objective(env, theta), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("zones", [4, 6])
def test_the_hypergradient_is_that_of_differences(zones):
    env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0", zones=zones))
    theta = np.random.default_rng(zones).uniform(0.1, 0.9, 2 * zones)
    step = 1e-5 * np.eye(2 * zones)
    both = exact.objective(env, np.concatenate([theta + step, theta - step])).reshape(2, -1)
    close(exact.hypergradient(env, theta), (both[0] - both[1]) / 2e-5, rel=1e-6)


def test_raw_gradients_are_those_of_the_specification(env):
    # section 9: exact raw guiding term at θ = 0.5
    module = env.problem.parameterization(1, Noise([0]))
    torch.nn.init.zeros_(module.raw)
    direct, guiding = exact.hypergradient_parts(env, parameters=module)
    assert guiding == pytest.approx([12.7, -3.0, 0.3, 0.6, -15.3, 1.3, -0.2, 11.6], abs=0.06)
    assert direct == pytest.approx([5.1, 1.5, 2.0, 4.5, 20.1, 1.6, 10.0, 5.3], abs=0.06)


@pytest.mark.slow
def test_the_objective_is_what_trajectories_bring(env):
    theta = np.full(8, 0.7)
    batch = env.rollout(theta, env.best_response(theta), Noise([0]), rows=20_000, horizon=100)
    returns = (GAMMA**batch.step * batch.r_leader).sum(-1)[0]
    error = float(returns.std()) / 20_000**0.5
    assert abs(float(returns.mean()) - exact.objective(env, theta, horizon=100)) < 4 * error


@pytest.mark.slow
def test_exact_ascent_passes_the_reference_points(env):
    # specification 9, item 19: SGD 0.1, each block's gradient clipped to 1; here one clip for both, so a longer way
    leader = ExactGradient(env, learning_rate=0.1).learn(400)
    value = leader.history["leader_value"][:, 0]
    assert value[0] == pytest.approx(-262.0, abs=2.0)
    assert value[-1] > -162.6
    assert value.max() <= env.best_known + 1e-3
