"""The exact hypergradient against closed form, autodiff through the solver, and differences."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import Preferences
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.envs.toll_bridge import TollBridge
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.parameterizations import Budget
from leaders import exact
from tests.helpers import central_differences, unrolled_objective

# four_rooms specification, section 6: θ = 0 in raw coordinates; J_L and the norms of ∇J, direct and guiding term
KNOWN = [
    (1e-3, "published", -0.740644, 0.007138, 0.007096, 0.000742),
    (3e-3, "published", -0.725819, 0.007222, 0.006956, 0.001690),
    (5e-3, "published", -0.667413, 0.009210, 0.006436, 0.006186),
    (1e-3, "classic", -0.805230, 0.007759, 0.007706, 0.000875),
    (3e-3, "classic", -0.797169, 0.007760, 0.007629, 0.001214),
    (5e-3, "classic", -0.763028, 0.008531, 0.007306, 0.003998),
]


@pytest.mark.parametrize(("beta", "dynamics", "value", "total", "direct", "guiding"), KNOWN)
def test_the_four_rooms_have_the_specified_value_and_gradients_at_zero(
    make, beta, dynamics, value, total, direct, guiding
):
    env = make("FourRooms", beta=beta, dynamics=dynamics)
    raw = Budget(np.zeros((1, 105)), -0.2)
    direct_part, guiding_part = exact.hypergradient_parts(env, parameters=raw)
    half = 5e-7  # of the last printed digit
    assert exact.objective(env, raw().detach()[0]) == pytest.approx(value, abs=half)
    assert np.linalg.norm(exact.hypergradient(env, parameters=raw)) == pytest.approx(total, abs=half)
    assert np.linalg.norm(direct_part) == pytest.approx(direct, abs=half)
    assert np.linalg.norm(guiding_part) == pytest.approx(guiding, abs=half)


def test_the_value_under_mismatched_dynamics_is_the_planners(make):
    raw = Budget(np.zeros((1, 105)), -0.2)
    theta = raw().detach()[0]
    mismatched, published = make("FourRooms", dynamics="mismatched"), make("FourRooms", dynamics="published")
    assert exact.objective(mismatched, theta) == exact.objective(published, theta)


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", ["published", "classic"])
@pytest.mark.parametrize("start", ["zero", "random", "blocked"])
def test_the_four_rooms_gradient_is_that_of_differences(make, monkeypatch, blocked_corridor, dynamics, start):
    monkeypatch.setattr("leaders.exact.solve.TOLERANCE", 1e-13)
    env = make("FourRooms", dynamics=dynamics)
    raw = {
        "zero": np.zeros(105),
        "random": np.random.default_rng(0).normal(size=105),
        "blocked": blocked_corridor,
    }[start]

    def objective(x):
        return exact.objective(env, Budget(x[None], -0.2)().detach()[0])

    actual = exact.hypergradient(env, parameters=Budget(raw[None], -0.2))
    expected = central_differences(objective, raw, step=1e-3)
    assert np.abs(actual - expected).max() <= 1e-7 * np.abs(expected).max()


@pytest.mark.parametrize("theta", [0.0, 0.3, 1.2, 2.0])
def test_the_toll_bridges_hypergradient_is_its_closed_form(make, theta):
    env = make("TollBridge")
    sail = 1 / (1 + np.exp(-(0.5 - 1 + theta) / 0.2))
    assert exact.objective(env, [theta]) == pytest.approx(0.9 * sail, abs=1e-12)
    assert exact.objective(env, [theta]) == pytest.approx(TollBridge().objective(theta), abs=1e-12)
    direct, guiding = exact.hypergradient_parts(env, [theta])
    assert direct[0] == 0.0
    assert guiding[0] == pytest.approx(0.9 * sail * (1 - sail) / 0.2, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_random_mdps_hypergradient_is_that_of_autodiff_through_the_solver(make, seed):
    env = make("RandomMDP", seed=seed, gamma_leader=0.8, gamma_follower=0.7, alignment=0.3)
    theta = np.random.default_rng(seed).normal(size=5)
    leaf = torch.from_numpy(theta).requires_grad_()
    value = unrolled_objective(env.unwrapped.problem.model(leaf[None]), env.preferences)
    value.backward()
    # the follower is solved to 1e-12; an error in V_F moves g by 1/β as much
    assert exact.objective(env, theta) == pytest.approx(float(value.detach()), abs=1e-10)
    actual = exact.hypergradient(env, theta)
    assert np.abs(actual - leaf.grad.numpy()).max() <= 1e-8 * np.abs(actual).max()
    differences = central_differences(lambda x: exact.objective(env, x), theta, step=1e-3)
    assert np.abs(actual - differences).max() <= 1e-6 * np.abs(actual).max()


@pytest.mark.parametrize("share", ["reward_share", "transition_share", "start_share"])
def test_the_hypergradient_is_right_where_theta_moves_one_part_alone(make, share):
    shares = {"reward_share": 0.0, "transition_share": 0.0, "start_share": 0.0} | {share: 1.0}
    env = make("RandomMDP", seed=7, **shares)
    leaf = torch.full((5,), 0.2).double().requires_grad_()
    unrolled_objective(env.unwrapped.problem.model(leaf[None]), env.preferences).backward()
    actual = exact.hypergradient(env, leaf.detach().numpy())
    assert np.abs(actual).max() > 1e-3
    assert np.abs(actual - leaf.grad.numpy()).max() <= 1e-8 * np.abs(actual).max()


def test_runs_are_evaluated_side_by_side(make):
    env = make("RandomMDP")
    theta = np.random.default_rng(0).normal(size=(4, 5))
    together = exact.hypergradient(env, theta)
    assert together.shape == (4, 5)
    for run in range(4):
        np.testing.assert_allclose(together[run], exact.hypergradient(env, theta[run]), rtol=1e-9)
        assert exact.objective(env, theta)[run] == pytest.approx(exact.objective(env, theta[run]), rel=1e-12)


def test_the_objective_keeps_to_a_given_horizon_and_discount(make):
    env = make("TollBridge")
    sail = 1 / (1 + np.exp(0.5 / 0.2))
    # the ferry is boarded with the second step
    assert exact.objective(env, [0.0], horizon=1) == 0.0
    assert exact.objective(env, [0.0], horizon=2, discount=1.0) == pytest.approx(sail, abs=1e-12)
    assert exact.objective(env, [0.0], discount=0.5) == pytest.approx(0.5 * sail, abs=1e-12)
    many = make("RandomMDP")
    assert exact.objective(many, np.zeros(5), horizon=400) == pytest.approx(
        exact.objective(many, np.zeros(5)), abs=1e-12
    )


def test_the_objective_is_at_the_followers_own_beta(make):
    from bilevel_envs import BilevelWrapper

    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"), SoftValueIteration(beta=1e-3))
    theta = env.unwrapped.theta
    assert exact.objective(env, theta) == pytest.approx(exact.objective(make("FourRooms", beta=1e-3), theta), abs=1e-12)
    assert exact.objective(gym.make("BiLevel/FourRooms-v0"), theta) == exact.objective(make("FourRooms"), theta)


def test_theta_and_parameters_must_agree(make):
    env = make("FourRooms")
    raw = Budget(np.zeros((1, 105)), -0.2)
    with pytest.raises(ValueError, match="`theta` must be what `parameters` yields"):
        exact.hypergradient(env, np.zeros(104), parameters=raw)
    with pytest.raises(ValueError, match="`theta` must be given"):
        exact.hypergradient(env)
    with pytest.raises(ValueError, match="`discount` must be at least 0 and below 1, got 1.0. a sum without end"):
        exact.objective(env, np.zeros(104), discount=1.0)
    with pytest.raises(TypeError, match="must be a configurable environment"):
        exact.objective(gym.make("CartPole-v1"), np.zeros(1))


@pytest.mark.parametrize("scale", [1e-12, 1e-10, 1e9])
def test_the_hypergradient_is_free_of_the_followers_units(scale):
    """r_F and β times one number are the same follower."""
    problem = RandomMDP()
    theta = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 5))).requires_grad_()
    gradients = []
    for units in (1.0, scale):
        model = problem.model(theta)
        model = model.with_rewards(model.r_leader, units * model.r_follower)
        preferences = Preferences(0.9, 0.99, 0.1 * units)
        guiding = exact.surrogates(model, exact.best_response(model.detach(), preferences), preferences)[1]
        gradients.append(torch.autograd.grad(guiding.sum(), theta)[0].numpy())
    assert np.abs(gradients[0]).max() > 0.01
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-8)
