"""Sampled leaders in a linear-quadratic world: unbiased at every level of gradient, and they reach the optimum."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import Riccati
from bilevel_envs.worlds.linear_quadratic.env import LinearEnv
from leaders import BCHG, NaivePGD, SoBiRL, exact
from leaders.critics import LeastSquares
from leaders.exact import linear_quadratic as exact_linear
from tests.helpers import Pendulums, building, leader_at_half

GRADIENTS = ["score", "pathwise", "analytic"]
# One estimate from 100 episodes at θ = 0.5, opening of the first vent, raw coordinates (specification 9, item 16).
MOST_DEVIATION = {"score": 2_500, "pathwise": 45, "analytic": 5}


@pytest.mark.slow
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_estimates_are_unbiased_and_no_wider_than_they_should_be(gradient):
    env = building()
    leader = leader_at_half(BCHG(env, critic="exact", gradient=gradient, guiding="sampled", batch_size=10_000))
    samples = leader.gradient_samples(200, raw=True, episodes=100)
    direct, guiding = exact.hypergradient_parts(env, parameters=leader.policy)
    deviation = samples.std(0, ddof=1)
    assert deviation[4] < MOST_DEVIATION[gradient]
    error = deviation / 200**0.5
    assert (np.abs(samples.mean(0) - direct - guiding) < 4 * error).all()
    if gradient != "score":  # the plain score is too noisy to tell what is missing from 200 samples
        for wrong in (direct, direct - guiding):
            assert (np.abs(samples.mean(0) - wrong) > 8 * error).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gradient", "guiding"),
    [
        ("score", "sampled"),
        ("score", "fitted"),
        ("pathwise", "sampled"),
        ("pathwise", "fitted"),
        ("analytic", "sampled"),
    ],
)
def test_every_level_of_knowledge_sees_the_guiding_term(gradient, guiding):
    env = BilevelWrapper(LinearEnv(Pendulums()), Riccati())
    leader = BCHG(env, critic="exact", gradient=gradient, guiding=guiding, batch_size=1_000)
    direct, guiding = exact.hypergradient_parts(env, leader.theta)
    assert np.linalg.norm(guiding) > np.linalg.norm(direct)
    samples = leader.gradient_samples(200, episodes=400)
    error = samples.std(0, ddof=1) / 200**0.5
    assert (np.abs(samples.mean(0) - direct - guiding) < 4 * error).all()
    for wrong in (direct, direct - guiding):
        assert (np.abs(samples.mean(0) - wrong) > 8 * error).any()


@pytest.mark.slow
def test_naive_estimates_agree_with_the_direct_term():
    env = building()
    for gradient in GRADIENTS:
        leader = leader_at_half(NaivePGD(env, critic="exact", gradient=gradient, batch_size=10_000))
        samples = leader.gradient_samples(200, raw=True, episodes=100)
        direct, _ = exact.hypergradient_parts(env, parameters=leader.policy)
        z = (samples.mean(0) - direct) / (samples.std(0, ddof=1) / 200**0.5)
        assert np.abs(z).max() < 4


@pytest.mark.slow
def test_the_state_control_variate_tames_the_score():
    deviations = [
        leader_at_half(
            BCHG(
                building(),
                critic="exact",
                gradient="score",
                guiding="sampled",
                control_variate=features,
                batch_size=10_000,
            )
        )
        .gradient_samples(40, raw=True, episodes=100)
        .std(0)[4]
        for features in ("none", "quadratic")
    ]
    assert deviations[0] > 2 * deviations[1]


@pytest.mark.parametrize(("share_of_noise", "error"), [(1e-12, 1e-7), (1.0, 0.02)])
def test_least_squares_find_the_exact_values(share_of_noise, error):
    env = building()
    theta = np.full((2, 8), 0.5)
    best, model = env.best_response(theta), env.model(theta)
    model = replace(model, noise=share_of_noise * model.noise)
    batch = env.rollout(theta, best, Noise([0, 1]), rows=100, horizon=100, model=model)
    critic = LeastSquares(0.9)
    critic.fit(batch, best, None, Noise([0]))
    q_leader, _ = exact_linear.leader_values(model, best.policy, 0.9)
    for found, true in zip(critic.values(batch, best.policy), _at(q_leader, best.policy, batch), strict=True):
        assert float((found - true).abs().max()) < error * float(true.abs().max())


def _at(q, policy, batch):
    v = policy.averaged(q)
    return q(batch.state, batch.action), v(batch.state), v(batch.next_state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "iterations", "above"),
    [
        ({}, 600, -164.0),
        ({"gradient": "pathwise"}, 250, -163.5),
        ({"batch_size": 10_000, "gradient": "pathwise", "guiding": "sampled"}, 400, -165.0),
        ({"batch_size": 10_000, "gradient": "score"}, 400, -165.0),
    ],
)
def test_leaders_reach_the_optimum(settings, iterations, above):
    leader = BCHG(building(), runs=2 if not settings else 1, **settings).learn(iterations)
    value = leader.history["leader_value"]
    assert (value[-1] > above).all()
    assert value.max() <= leader.env.best_known + 1e-3


@pytest.mark.slow
def test_the_naive_leader_ends_at_its_own_stationary_point():
    leader = NaivePGD(building(), runs=3, batch_size=2_000).learn(500)
    assert np.abs(leader.history["leader_value"][-1] + 197.2).max() < 1


def test_leaders_learn_in_a_larger_ring_too():
    leader = BCHG(building(zones=6), batch_size=1_000).learn(5)
    assert leader.theta.shape == (12,)
    assert leader.history["leader_value"][-1] > leader.history["leader_value"][0]


def test_batches_grow_with_what_least_squares_must_fit():
    assert BCHG(building()).estimator_config.batch_size == 1_000  # 1 + 6·7/2 = 22 features
    assert BCHG(building(zones=16)).estimator_config.batch_size == 2_000  # 1 + 24·25/2 = 301
    with pytest.raises(ValueError, match=r"fits 301 numbers .* in each half of a batch, got 200: raise `batch_size`"):
        BCHG(building(zones=16), batch_size=400).learn(1)


def test_a_saved_leader_goes_on_bit_for_bit(tmp_path):
    one = BCHG(building(), runs=2, batch_size=500).learn(3)
    one.save(tmp_path / "leader.zip")
    other = BCHG.load(tmp_path / "leader.zip", building()).learn(2)
    one.learn(2)
    np.testing.assert_array_equal(one.theta, other.theta)
    np.testing.assert_array_equal(one.history.state(), other.history.state())


def test_settings_that_vectors_do_not_allow_are_refused_by_name():
    env = building()
    with pytest.raises(ValueError, match="`gradient` must be one of 'score', 'pathwise', 'analytic', got 'all'"):
        BCHG(env, gradient="all")
    with pytest.raises(ValueError, match="`tail` must be \"keep\" where states are vectors, got 'drop'"):
        BCHG(env, tail="drop")
    with pytest.raises(ValueError, match="`batch_size` must make whole episodes, a multiple of 100"):
        BCHG(env, batch_size=1_009)
    with pytest.raises(ValueError, match="`critic` must be one of 'lstd', 'state_values', 'td', 'fitted_linear'"):
        BCHG(env, critic="sarsa")
    with pytest.raises(ValueError, match="`env` must be a table for SoBiRL"):
        SoBiRL(env)
    rooms = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"))
    with pytest.raises(ValueError, match='`gradient` must be "score" for tables'):
        BCHG(rooms, gradient="analytic")
    with pytest.raises(ValueError, match="`critic` must be one of 'empirical', 'expected_sarsa'"):
        BCHG(rooms, critic="lstd")
