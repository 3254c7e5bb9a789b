"""A follower of whom only transitions are seen: what is estimated comes to what is hidden."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import Mixture, ObservedFollower, Riccati, SoftValueIteration
from bilevel_envs.followers.observed import _counts
from bilevel_envs.followers.sb3 import soft_evaluation
from bilevel_envs.model import Rollout
from bilevel_envs.noise import Noise
from leaders import BCHG, exact


def mdp(follower=None):
    return BilevelWrapper(gym.make("BiLevel/RandomMDP-v0"), follower)


def building(follower=None):
    return BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), follower)


def theta_of(env, seed=0):
    return np.random.default_rng(seed).normal(size=env.theta_space.shape)


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def little_rollout():
    """Two rows in three states: 0 → 1 → 2 (ends), 0 → 0 → 1 (cut)."""
    state = torch.tensor([[[0, 1, 2], [0, 0, 1]]])
    action = torch.tensor([[[0, 1, 0], [1, 1, 0]]])
    following = torch.tensor([[[1, 2, 0], [0, 1, 2]]])
    ends = torch.tensor([[[False, False, True], [False, False, False]]])
    never, always = torch.zeros_like(ends), torch.ones_like(ends)
    reward = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]).double()
    step = torch.arange(3).expand(1, 2, 3)
    return Rollout(state, action, following, reward, reward, ends, never, step, always)


def test_counts_by_hand():
    counts = _counts(little_rollout(), 3, 2)
    assert counts["pairs"][0].tolist() == [[1, 2], [1, 1], [1, 0]]
    assert counts["moves"][0].tolist() == [[1, 2, 0], [0, 0, 2], [0, 0, 0]]
    assert counts["rewards"][0].tolist() == [10, 8, 3]


def test_the_soft_evaluation_by_hand():
    follower = ObservedFollower(smoothing=1.0)
    policy, q, v = follower._from_counts(3, 2, little_rollout(), beta=0.5, gamma=0.9)
    g = np.array([[2 / 5, 3 / 5], [2 / 4, 2 / 4], [2 / 3, 1 / 3]])
    np.testing.assert_allclose(policy.probs[0], g)
    # what was paid, with −β log g of what was done: state 2 ended once, in reward 3
    paid = [
        (10 - 0.5 * (np.log(g[0, 0]) + 2 * np.log(g[0, 1]))) / 3,
        (8 - 0.5 * np.log(g[1]).sum()) / 2,
        3 - 0.5 * np.log(g[2, 0]),
    ]
    two = paid[2]
    one = paid[1] + 0.9 * two
    zero = (paid[0] + 0.9 * 2 / 3 * one) / (1 - 0.9 / 3)
    np.testing.assert_allclose(v.values[0], [zero, one, two])
    np.testing.assert_allclose(q.values[0].numpy(), v.values[0].numpy()[:, None] + 0.5 * np.log(g))


def test_counts_may_be_forgotten():
    follower = ObservedFollower(forget=0.25, smoothing=1e-9)
    for _ in range(2):
        follower._from_counts(3, 2, little_rollout(), beta=0.5, gamma=0.9)
    np.testing.assert_allclose(follower._counts["pairs"][0].numpy(), 1.75 * np.array([[1, 2], [1, 1], [1, 0]]))


@pytest.mark.parametrize("hidden", [SoftValueIteration(), Mixture(0.4)])
def test_with_more_observations_the_estimates_come_to_what_is_hidden(hidden):
    theta, errors = theta_of(mdp()), []
    for count in (300, 3_000, 100_000):
        env = mdp(ObservedFollower(hidden, count))
        best = env.best_response(theta)
        truth = mdp(hidden).best_response(theta)
        values = soft_evaluation(env.model(theta).detach(), truth.policy, 0.9, 0.2)
        errors.append((best.policy.probs - truth.policy.probs).abs().max() + (best.v.values - values).abs().max())
        assert best.acting.log_probs.shape == truth.policy.log_probs.shape
        assert best.steps == 100 * -(-count // 100)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1


@pytest.mark.parametrize("method", ["counts", "network"])
def test_the_hypergradient_comes_to_the_white_box_one(method):
    env = mdp(ObservedFollower(None, 30_000, method=method, steps=1_500))
    leader = BCHG(env, critic="exact", batch_size=100)
    leader.learn(1)
    truth = exact.hypergradient(env, leader.theta)
    estimate = leader.gradient_samples(1, episodes=3_000)[0]
    assert cosine(estimate, truth) > (0.98 if method == "counts" else 0.9)
    direct, _ = exact.hypergradient_parts(env, leader.theta)
    assert cosine(direct, truth) < 0.8


def test_vectors_are_cloned_by_least_squares():
    theta = np.random.default_rng(1).uniform(0.3, 0.9, (2, 8))
    env = building(ObservedFollower(Riccati(), 20_000))
    best, truth = env.best_response(theta), building().best_response(theta)
    np.testing.assert_allclose(best.policy.gain, truth.policy.gain, atol=0.02)
    np.testing.assert_allclose(best.policy.covariance, truth.policy.covariance, atol=0.005)
    np.testing.assert_allclose(best.v.matrix, truth.v.matrix, atol=0.2)
    state = torch.randn(2, 50, 4, dtype=torch.float64)
    action = truth.policy.sample(state, np.random.default_rng(0).random((2, 50, 2)))
    np.testing.assert_allclose(best.q(state, action), truth.q(state, action), atol=1.5)
    assert best.q.tiled(2)(state.repeat(2, 1, 1), action.repeat(2, 1, 1)).shape == (4, 50)


def test_vectors_are_cloned_by_networks():
    theta = np.full((2, 8), 0.5)
    env = building(ObservedFollower(Riccati(), 5_000, method="network", steps=2_000))
    best, truth = env.best_response(theta), building().best_response(theta)
    batch = env.rollout(theta, truth, Noise([5, 6]), rows=5, horizon=100)
    log_g, true = (x.policy.log_prob(batch.state, batch.action) for x in (best, truth))
    assert float((true - log_g).mean()) < 1.0  # KL of what was seen
    v, v_true = best.v(batch.state), truth.v(batch.state)
    correlation = np.corrcoef(v[0].flatten(), v_true[0].flatten())[0, 1]
    assert correlation > 0.9
    assert best.v.tiled(3)(batch.state.repeat(3, 1, 1, 1)).shape == (6, 5, 100)


def test_bc_hg_leads_whom_it_only_watches():
    env = building(ObservedFollower(Riccati(), 2_000))
    leader = BCHG(env, batch_size=10_000, learning_rate=0.1, seed=0)
    assert (leader.sampling.critic, leader.sampling.knowledge) == ("state_values", "terms")
    leader.learn(40)
    assert float(leader.history["leader_value"][-1][0]) > -205
    assert float(leader.history["followed_value"][-1][0]) == pytest.approx(float(leader.history["leader_value"][-1][0]))
    assert float(leader.history["follower_steps"][-1][0]) == 40 * 2_000


@pytest.mark.slow
def test_state_values_are_unbiased_where_they_are_right():
    from leaders.critics import StateTable

    env = mdp()
    leader = BCHG(env, critic=StateTable(0.9, 1e-12), features="none")
    theta = leader.theta
    best, model = env.best_response(theta), env.model(theta).detach()
    v = model.resolvent(best.policy.probs, 0.9, (best.policy.probs * model.r_leader).sum(-1))
    q = model.r_leader + 0.9 * model.expected_next(v)
    leader.critic.table = torch.cat([v[..., None], q], -1).numpy()
    samples = leader.gradient_samples(400)
    direct, guiding = exact.hypergradient_parts(env, theta)
    error = samples.std(0, ddof=1) / 400**0.5
    assert (np.abs(samples.mean(0) - direct - guiding) < 4 * error).all()
    assert (np.abs(samples.mean(0) - direct) > 8 * error).any()
    assert (np.abs(samples.mean(0) - direct + guiding) > 8 * error).any()


@pytest.mark.parametrize("world", [mdp, building])
def test_state_values_come_to_the_exact_ones(world):
    env = world()
    theta = env.unwrapped.theta
    size = {"critic_learning_rate": 0.05} if world is mdp else {"knowledge": "terms"}
    leader = BCHG(env, critic="state_values", batch_size=20_000, learning_rate=1e-9, **size).learn(60)
    theta = leader.theta
    best, model = env.best_response(theta), env.model(theta).detach()
    if world is mdp:
        v = model.resolvent(best.policy.probs, 0.9, (best.policy.probs * model.r_leader).sum(-1))
        q = model.r_leader + 0.9 * model.expected_next(v)
        np.testing.assert_allclose(leader.critic.table[..., 0], v, atol=0.5)
        often = best.policy.probs[0] > 0.05
        np.testing.assert_allclose(leader.critic.table[0, :, 1:][often], q[0][often], atol=0.7)
    else:
        from leaders.exact_linear import leader_values

        q, v = leader_values(model, best.policy, 0.9)
        np.testing.assert_allclose(leader.critic.v.matrix, v.matrix, atol=0.05)
        np.testing.assert_allclose(leader.critic.q.matrix, q.matrix, atol=0.25)


def test_samples_watch_at_the_present_theta_and_remember_nothing():
    env = mdp(ObservedFollower(None, 5_000, forget=0.1))
    leader = BCHG(env, critic="exact").learn(2)
    before = {name: part.clone() for name, part in env.follower._counts.items()}
    seen = leader.gradient_samples(3, episodes=400)
    assert env.follower.responses == 2
    for name, part in before.items():
        assert torch.equal(env.follower._counts[name], part)
    np.testing.assert_array_equal(seen, leader.gradient_samples(3, episodes=400))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ObservedFollower(SoftValueIteration), "`follower` must be a follower or None"),
        (lambda: ObservedFollower(observations=0), "`observations` must be at least 1"),
        (lambda: ObservedFollower(method="guess"), "`method` must be one of"),
        (lambda: ObservedFollower(forget=0.0), "`forget` must be above 0"),
        (lambda: ObservedFollower(smoothing=0.0), "`smoothing` must be above 0"),
        (lambda: mdp(ObservedFollower(method="linear")).best_response(np.zeros(5)), '`method` must be "counts" or'),
        (
            lambda: building(ObservedFollower(method="counts")).best_response(np.full(8, 0.5)),
            '`method` must be "linear',
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_the_hidden_beta_stays_hidden():
    env = mdp(ObservedFollower(SoftValueIteration(beta=1.0), 2_000, beta=0.3))
    assert env.preferences.beta == 0.3
    best = env.best_response(theta_of(env))
    truth = mdp(SoftValueIteration(beta=1.0)).best_response(theta_of(env))
    np.testing.assert_allclose(best.acting.log_probs, truth.policy.log_probs, atol=1e-9)
