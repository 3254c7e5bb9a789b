"""The plain default in worlds that are not ours: right on average, and it leads."""

import numpy as np
import pytest

from leaders import BCHG, ExactGradient, NaivePGD, exact
from tests.helpers import CLIFF, STRANGERS, leader_at_fixed_theta, policy_at, training_estimates, wrapped, z_scores

WARM_UP = 100
ESTIMATES = {100: 500, 300: 300, 1000: 200}  # by batch size; estimates from small batches have heavy tails
STEPS, SEEDS = 100_000, 2
BATCH = 100
EXACT_STEPS = 400  # of the exact gradient, after which it stands nearly still


def estimates_at(leader_class, env, theta, batch_size, **settings):
    """The hypergradient estimates of outer iterations at a fixed θ, after 100 to warm up, [n, dim θ]."""
    leader = leader_at_fixed_theta(leader_class, env, policy_at(theta), batch_size=batch_size, **settings)
    leader.learn(WARM_UP)
    count = ESTIMATES[batch_size]
    estimates = training_estimates(leader, count).reshape(count, -1)
    np.testing.assert_allclose(leader.theta, theta, rtol=0, atol=1e-200)
    return estimates


def check_bias(estimates, truth):
    """Within 4 standard errors or 15 %, in every coordinate that matters."""
    error = np.abs(estimates.mean(0) - truth)
    noise = estimates.std(0, ddof=1) / len(estimates) ** 0.5
    matters = np.abs(truth) >= 0.2 * np.abs(truth).max()
    assert (error <= np.maximum(4 * noise, 0.15 * np.abs(truth)))[matters].all()
    assert (estimates.mean(0) * truth > 0)[matters].all()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [100, 1000])
@pytest.mark.parametrize("world", STRANGERS)
def test_estimates_of_the_default_are_right(world, batch_size):
    env = STRANGERS[world]()
    theta = env.problem.default_theta
    truth = exact.hypergradient(env, theta).flatten()
    check_bias(estimates_at(BCHG, env, theta, batch_size), truth)


@pytest.mark.slow
@pytest.mark.parametrize("theta", [0.6, 0.3])
def test_the_direct_term_does_not_shrink_with_the_batch(theta):
    """Batches of 100, episodes that go on for longer than any row: half of this term was missing."""
    env = wrapped(CLIFF)
    direct, _ = exact.hypergradient_parts(env, [theta])
    check_bias(estimates_at(NaivePGD, env, [theta], 100), direct)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "batch_size"), [("queue", 300), ("cliff, slip", 300)])
def test_estimates_contain_the_guiding_term_with_its_sign(world, batch_size):
    env = STRANGERS[world]()
    theta = env.problem.default_theta if world == "queue" else np.array([0.1])
    direct, guiding = exact.hypergradient_parts(env, theta)
    assert np.linalg.norm(guiding) > np.linalg.norm(direct)
    estimates = estimates_at(BCHG, env, theta, batch_size)
    check_bias(estimates, direct + guiding)
    assert np.abs(z_scores(estimates, direct)).max() > 8
    assert np.abs(z_scores(estimates, direct - guiding)).max() > 8


@pytest.mark.slow
@pytest.mark.parametrize("world", ["cliff, slip", "lake, both", "queue", "pursuit"])
def test_the_default_wins_most_of_what_the_exact_hypergradient_wins(world):
    """Two seeds, 100,000 environment steps each, against the exact gradient from the same starts."""
    env, iterations = STRANGERS[world](), STEPS // BATCH
    leader = BCHG(env, runs=SEEDS, seed=0).learn(iterations)
    assert leader.history["env_steps"][-1, 0] == STEPS
    best = ExactGradient(env, runs=SEEDS, seed=0).learn(EXACT_STEPS)
    start = leader.history["leader_value"][0]
    np.testing.assert_allclose(start, best.history["leader_value"][0], rtol=1e-6)
    won, possible = (exact.objective(env, one.theta) - start for one in (leader, best))
    print(world, np.round(won / possible, 3))
    assert (won >= 0.8 * possible).all()
