"""Followers that are not quite rational: by hand, by their promises, and what leaders estimate of them."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import (
    Committed,
    Mixture,
    ObservedFollower,
    Quantal,
    Riccati,
    SoftQLearning,
    SoftValueIteration,
    Sticky,
    Suboptimal,
    Truncated,
)
from bilevel_envs.followers.sb3.shortfall import soft_evaluation
from leaders import BCHG, exact
from tests.helpers import random_mdp


def thetas(count):
    return np.random.default_rng(0).normal(size=(count, *random_mdp().theta_space.shape))


def test_a_mixture_mixes_the_planners_policy_with_the_uniform_one():
    env = random_mdp(Mixture(0.3))
    (theta,) = thetas(1)
    best, plan = env.best_response(theta), random_mdp().best_response(theta)
    np.testing.assert_allclose(best.policy.probs, 0.7 * plan.policy.probs + 0.1, atol=1e-12)  # 3 actions
    assert not best.optimal
    np.testing.assert_allclose(
        random_mdp(Mixture(0.0)).best_response(theta).policy.probs, plan.policy.probs, atol=1e-12
    )


def test_a_suboptimal_follower_loses_no_more_than_it_promises():
    theta = thetas(3)
    env = random_mdp()
    model, preferences = env.model(theta).detach(), env.preferences
    optimum = env.best_response(theta)
    for delta in (0.1, 1.0):
        best = random_mdp(Suboptimal(delta, seed=3)).best_response(theta)
        # β log g is the optimal Q_F, off by at most δ (1 − γ) / 2, up to a number per state
        off = 0.2 * best.policy.log_probs - optimum.q.values
        spread = (off - off.mean(-1, keepdim=True)).abs().max()
        assert 0.6 * delta * 0.05 < spread <= 2 * delta * 0.05
        own = soft_evaluation(model, best.policy, preferences.gamma_follower, preferences.beta)
        loss = optimum.v.values - own
        assert loss.min() > 0
        assert loss.max() <= delta
    again = random_mdp(Suboptimal(1.0, seed=3)).best_response(theta)
    np.testing.assert_array_equal(best.policy.probs, again.policy.probs)
    alone = random_mdp(Suboptimal(1.0, seed=3)).best_response(theta[:1])
    np.testing.assert_allclose(alone.policy.probs[0], best.policy.probs[0], atol=1e-9)


def test_soft_evaluation_of_the_optimum_is_its_value():
    env, (theta,) = random_mdp(), thetas(1)
    best = env.best_response(theta)
    own = soft_evaluation(env.model(theta).detach(), best.policy, 0.9, 0.2)
    np.testing.assert_allclose(own, best.v.values, atol=1e-8)


def test_a_sticky_follower_changes_its_policy_slowly():
    env, (one, two) = random_mdp(Sticky(0.6)), thetas(2)
    first = env.best_response(one)
    plan = random_mdp().best_response(two).policy.probs
    response = env.best_response(two, first)
    np.testing.assert_allclose(response.policy.probs, 0.4 * plan + 0.6 * first.policy.probs, atol=1e-12)
    for _ in range(60):
        response = env.best_response(two, response)
    np.testing.assert_allclose(response.policy.probs, plan, atol=1e-10)


@pytest.mark.slow
def test_the_guiding_term_of_a_quantal_follower_is_estimated_times_its_beta_over_the_problems():
    theta = thetas(1)[0]
    own = random_mdp(SoftValueIteration(beta=0.5))
    direct, guiding = exact.hypergradient_parts(own, theta)
    env = random_mdp(Quantal(0.5))
    assert env.preferences.beta == 0.2
    leader = BCHG(env, critic="exact", control_variate="none")
    leader.policy.raw.data[:] = torch.from_numpy(theta)
    np.testing.assert_allclose(leader.theta, theta)
    samples = leader.gradient_samples(400)
    error = samples.std(0, ddof=1) / 400**0.5
    assert (np.abs(samples.mean(0) - direct - 2.5 * guiding) < 4 * error).all()
    assert (np.abs(samples.mean(0) - direct - guiding) > 8 * error).any()


def test_value_iteration_in_a_linear_world_is_that_made_by_hand():
    # from V = 0: one step sees the reward alone, so Q_F = r_F and b ~ N(0, β/2 R⁻¹); P becomes Q
    env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), Truncated(Riccati(), rounds=1, start="reset"))
    best, model = env.best_response(np.full(8, 0.5)), env.model(np.full(8, 0.5))
    np.testing.assert_allclose(best.policy.gain, 0.0)
    np.testing.assert_allclose(best.policy.covariance[0], 0.1 / 2 / 0.01 * np.eye(2))
    np.testing.assert_allclose(best.v.matrix, -model.state_cost.expand(1, -1, -1))
    s, b = torch.randn(1, 7, 4, dtype=torch.float64), torch.randn(1, 7, 2, dtype=torch.float64)
    np.testing.assert_allclose(best.q(s, b), model.r_follower(s, b))
    np.testing.assert_allclose(0.1 * best.policy.log_prob(s, b), best.q(s, b) - best.v(s), atol=1e-10)


def test_value_iteration_with_more_rounds_approaches_the_riccati_solution():
    theta = np.full((2, 8), 0.5)
    theta[1] = 0.3
    exactly = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0")).best_response(theta)
    distances = []
    for rounds in (2, 10, 400):
        env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), Truncated(Riccati(), rounds=rounds))
        best = env.best_response(theta)
        distances.append(float((best.policy.gain - exactly.policy.gain).abs().max()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-10
    np.testing.assert_allclose(best.v.constant, exactly.v.constant, rtol=1e-10)
    carried = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), Truncated(Riccati(), rounds=5))
    twice = carried.best_response(theta, carried.best_response(theta))
    at_once = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), Truncated(Riccati(), rounds=10))
    np.testing.assert_allclose(twice.v.matrix, at_once.best_response(theta).v.matrix, rtol=1e-12)


@pytest.mark.parametrize("planner", [Committed(), SoftQLearning()])
def test_other_planners_are_truncated_too(planner):
    env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0"), Truncated(planner, rounds=3))
    theta = env.unwrapped.theta
    first = env.best_response(theta)
    whole = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0"), planner).best_response(theta)
    carried = env.best_response(theta, first)
    distance = [float((best.q.values - whole.q.values).abs().max()) for best in (first, carried)]
    assert distance[0] > 1e-3
    assert not torch.equal(first.q.values, carried.q.values)
    fresh = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0"), Truncated(planner, rounds=3, start="reset"))
    np.testing.assert_array_equal(fresh.best_response(theta, first).q.values, first.q.values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantal(0.0), "`precision_beta` must be above 0"),
        (lambda: Quantal(0.1, SoftValueIteration(beta=0.3)), "`follower` must leave its β to Quantal"),
        (lambda: Mixture(1.5), "`share` must be at least 0 and at most 1"),
        (lambda: Sticky(1.0), "`share` must be at least 0 and below 1"),
        (lambda: Suboptimal(-1), "`delta` must be at least 0"),
        (lambda: Mixture(0.1, SoftValueIteration), "`follower` must be a planner"),
        (lambda: Sticky(0.1, ObservedFollower()), "`follower` must be a planner"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_mixtures_of_policies_over_vectors_are_refused():
    env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), Mixture(0.1, Riccati()))
    with pytest.raises(TypeError, match=r"must be a TabularModel for Mixture to plan in, .* suits it: Riccati\(\)"):
        env.best_response(np.full(8, 0.5))
    with pytest.raises(TypeError, match="`follower` must answer with a table for Mixture, got GaussianPolicy"):
        env.follower.best_response(env.model(np.full(8, 0.5)), env.preferences)
