"""A follower that is observed only: what is estimated comes to what is hidden."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper
from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import Mixture, ObservedFollower, Riccati, SoftValueIteration, Sticky, Truncated
from bilevel_envs.followers.learners.observed import _counts, _linear
from bilevel_envs.followers.sb3.shortfall import soft_evaluation
from bilevel_envs.parameterizations import Free
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from leaders import BCHG, exact
from tests.helpers import building, random_mdp


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


def test_the_estimates_from_counts_are_those_made_by_hand():
    counts = _counts(little_rollout(), 3, 2)
    assert counts["pairs"][0].tolist() == [[1, 2], [1, 1], [1, 0]]
    assert counts["moves"][0].tolist() == [[1, 2, 0], [0, 0, 2], [0, 0, 0]]
    assert counts["rewards"][0].tolist() == [10, 8, 3]


def test_the_soft_evaluation_of_a_policy_is_that_made_by_hand():
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


def test_earlier_counts_may_be_forgotten():
    follower = ObservedFollower(forget=0.25, smoothing=1e-9)
    for _ in range(2):
        follower._from_counts(3, 2, little_rollout(), beta=0.5, gamma=0.9)
    np.testing.assert_allclose(follower._counts["pairs"][0].numpy(), 1.75 * np.array([[1, 2], [1, 1], [1, 0]]))


@pytest.mark.parametrize("hidden", [SoftValueIteration(), Mixture(0.4)])
def test_estimates_from_more_observations_approach_the_hidden_policy_and_values(hidden):
    theta, errors = theta_of(random_mdp()), []
    for count in (300, 3_000, 100_000):
        env = random_mdp(ObservedFollower(hidden, count))
        best = env.best_response(theta)
        truth = random_mdp(hidden).best_response(theta)
        values = soft_evaluation(env.model(theta).detach(), truth.policy, 0.9, 0.2)
        errors.append((best.policy.probs - truth.policy.probs).abs().max() + (best.v.values - values).abs().max())
        assert best.behavior_policy.log_probs.shape == truth.policy.log_probs.shape
        assert best.steps == 100 * -(-count // 100)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1


@pytest.mark.parametrize("method", ["counts", pytest.param("network", marks=pytest.mark.slow)])
def test_the_estimate_with_an_observed_follower_approaches_the_exact_hypergradient(method):
    env = random_mdp(ObservedFollower(None, 30_000, method=method, steps=1_500))
    # θ where the follower's reaction matters, and where it stays
    leader = BCHG(env, critic="exact", batch_size=100, policy=Free(np.full((1, 5), -0.3)), learning_rate=1e-300)
    leader.learn(1)
    truth = exact.hypergradient(env, leader.theta)
    estimate = leader.gradient_samples(1, episodes=3_000)[0]
    assert cosine(estimate, truth) > (0.98 if method == "counts" else 0.9)
    direct, _ = exact.hypergradient_parts(env, leader.theta)
    assert cosine(direct, truth) < 0.8


def test_policies_over_vectors_are_cloned_by_least_squares():
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


@pytest.mark.slow
def test_policies_over_vectors_are_cloned_by_networks():
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


@pytest.mark.slow
def test_bc_hg_leads_an_observed_follower_in_the_building():
    env = building(ObservedFollower(Riccati(), 2_000))
    leader = BCHG(env, batch_size=10_000, learning_rate=0.1, seed=0)
    assert (leader.estimator_config.critic, leader.estimator_config.gradient) == ("state_values", "pathwise")
    leader.learn(40)
    assert float(leader.history["leader_value"][-1][0]) > -205
    assert float(leader.history["leader_value_actual"][-1][0]) == pytest.approx(
        float(leader.history["leader_value"][-1][0])
    )
    assert float(leader.history["follower_steps"][-1][0]) == 40 * 2_000


@pytest.mark.slow
def test_estimates_with_exact_state_values_are_unbiased():
    from leaders.critics import StateTable

    env = random_mdp()
    leader = BCHG(env, critic=StateTable(0.9, 1e-12), control_variate="none")
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


def test_state_values_take_the_ends_of_episodes_into_account():
    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"))
    leader = BCHG(env, critic="state_values", critic_learning_rate=0.05, learning_rate=1e-12, batch_size=2_000).learn(
        30
    )
    best, model = env.best_response(leader.theta), env.model(leader.theta).detach()
    v = model.resolvent(best.policy.probs, 0.9, (best.policy.probs * model.r_leader).sum(-1))
    q = model.r_leader + 0.9 * model.expected_next(v)
    np.testing.assert_allclose(leader.critic.table[0, :3, 0], v[0, :3], atol=0.1)
    np.testing.assert_allclose(leader.critic.table[0, :3, 1:], q[0, :3], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("world", [random_mdp, building])
def test_state_values_come_to_the_exact_ones(world):
    env = world()
    theta = env.unwrapped.theta
    size = {"critic_learning_rate": 0.05} if world is random_mdp else {"gradient": "pathwise"}
    leader = BCHG(env, critic="state_values", batch_size=20_000, learning_rate=1e-9, **size).learn(60)
    theta = leader.theta
    best, model = env.best_response(theta), env.model(theta).detach()
    if world is random_mdp:
        v = model.resolvent(best.policy.probs, 0.9, (best.policy.probs * model.r_leader).sum(-1))
        q = model.r_leader + 0.9 * model.expected_next(v)
        np.testing.assert_allclose(leader.critic.table[..., 0], v, atol=0.5)
        often = best.policy.probs[0] > 0.05
        np.testing.assert_allclose(leader.critic.table[0, :, 1:][often], q[0][often], atol=0.7)
    else:
        from leaders.exact.linear_quadratic import leader_values

        q, v = leader_values(model, best.policy, 0.9)
        np.testing.assert_allclose(leader.critic.v.matrix[:, 1:, 1:], v.matrix, atol=0.05)
        batch = env.rollout(theta, best, Noise([3]), rows=10, horizon=100)
        found, own, _ = leader.critic.values(batch, best.policy)
        benefit, wanted = found - own, q(batch.state, batch.action) - v(batch.state)
        assert float((benefit - wanted).norm() / wanted.norm()) < 0.2


def test_gradient_samples_observe_at_the_present_theta_and_leave_no_counts():
    env = random_mdp(ObservedFollower(None, 5_000, forget=0.1))
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
        (
            lambda: random_mdp(ObservedFollower(method="linear")).best_response(np.zeros(5)),
            '`method` must be "counts" or',
        ),
        (
            lambda: building(ObservedFollower(method="counts")).best_response(np.full(8, 0.5)),
            '`method` must be "linear',
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("hidden", [Sticky(0.9), Truncated(rounds=3)])
def test_an_observed_follower_that_remembers_keeps_its_memory(hidden, tmp_path):
    one, two = (theta_of(random_mdp(), seed) for seed in (0, 1))
    bare, watched = random_mdp(hidden), random_mdp(ObservedFollower(hidden, 200))
    before = bare.best_response(one)
    watched.best_response(one)
    wanted = bare.best_response(two, before).policy.log_probs
    sampled = watched.best_response(two, learn=False).behavior_policy.log_probs
    np.testing.assert_array_equal(sampled, wanted)
    np.testing.assert_array_equal(watched.best_response(two).behavior_policy.log_probs, wanted)
    straight = BCHG(random_mdp(ObservedFollower(hidden, 200))).learn(3)
    first = BCHG(random_mdp(ObservedFollower(hidden, 200))).learn(2)
    first.save(tmp_path / "leader.zip")
    other = BCHG.load(tmp_path / "leader.zip", random_mdp(ObservedFollower(hidden, 200))).learn(1)
    np.testing.assert_array_equal(straight.theta, other.theta)


@pytest.mark.parametrize("method", ["counts", "network"])
def test_an_observed_follower_saves_its_observations(method, tmp_path):
    def env():
        return random_mdp(ObservedFollower(None, 200, method=method, steps=20, forget=0.5))

    straight = BCHG(env()).learn(3)
    first = BCHG(env()).learn(2)
    first.save(tmp_path / "one.zip")
    BCHG.load(tmp_path / "one.zip", env()).save(tmp_path / "two.zip")  # a copy of a copy
    other = BCHG.load(tmp_path / "two.zip", first.env).learn(1)  # into a follower that is in use
    np.testing.assert_array_equal(straight.theta, other.theta)


def test_a_step_that_ends_in_part_of_the_visits_counts_by_its_share():
    # state 0 goes on to 1 twice and ends twice; state 1 always ends, in reward 2: V(0) = 1 + γ/2 · 2 (entropy aside)
    state = torch.tensor([[[0, 1, 0, 1], [0, 0, 9, 9]]]).clamp(max=1)
    valid = torch.tensor([[[True] * 4, [True, True, False, False]]])
    ends = torch.tensor([[[False, True, False, True], [True, True, False, False]]])
    reward = torch.where(state == 0, 1.0, 2.0).double()
    nothing = torch.zeros_like(state)
    following = torch.ones_like(state)
    batch = Rollout(state, nothing, following, reward, reward, ends, torch.zeros_like(ends), nothing, valid)
    _, _, v = ObservedFollower(smoothing=1e-12)._from_counts(3, 1, batch, beta=1.0, gamma=0.9)
    np.testing.assert_allclose(v.values[0].numpy(), [1 + 0.9 / 2 * 2, 2, (4 * 1.9 + 2 * 2) / 6], atol=1e-9)


def test_the_leaders_side_is_played_against_the_observed_followers_own_policy():
    from bilevel_envs import LeaderEnv

    game = gym.make("BiLevel/ToyMarkovGame-v0")
    env = LeaderEnv(game, ObservedFollower(None, 450))
    actions = env.best.policy.log_probs.shape[-1]
    certain = torch.full_like(env.best.policy.log_probs, -1e9)
    certain[..., actions - 1] = 0.0
    env._best = replace(env.best, actual_policy=BoltzmannPolicy(certain))
    env.reset(seed=0)
    assert {int(env.step(0)[4]["follower_action"]) for _ in range(40)} == {actions - 1}
    wrapped = BilevelWrapper(game, Mixture(0.1))
    assert LeaderEnv(wrapped).follower is wrapped.follower
    with pytest.raises(ValueError, match="`follower` must be None, or the one inside the BilevelWrapper"):
        LeaderEnv(wrapped, SoftValueIteration())
    with pytest.raises(TypeError, match="`follower` must be a follower, not its name or class"):
        LeaderEnv(game, "sb3")


def test_leaders_of_observed_followers_keep_their_own_critics():
    from leaders import HPGD, BiAC

    rooms = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"), ObservedFollower())
    toy = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0"), ObservedFollower())
    assert BiAC(toy).estimator_config.critic == "stage_game"
    assert [HPGD(rooms, variant=name).estimator_config.critic for name in ("mc", "sa")] == ["monte_carlo", "sarsa"]
    assert BCHG(rooms).estimator_config.critic == "state_values"
    assert np.isfinite(HPGD(building(ObservedFollower())).learn(1).history["grad_norm"]).all()
    lqr = BCHG(BilevelWrapper(gym.make("BiLevel/BilevelLQR-v0"), ObservedFollower()))
    assert (lqr.estimator_config.critic, lqr.estimator_config.gradient) == ("td", "score")
    with pytest.raises(ValueError, match="`critic` is quadratic and cannot represent the Gaussian-shaped"):
        BCHG(lqr.env, critic="state_values")


def test_a_follower_that_is_not_linear_is_fitted_by_weighted_least_squares():
    draw, shape = np.random.default_rng(0), (2, 5, 30)
    state = draw.normal(size=(*shape, 2)) * np.array([1.0, 4.0])[:, None, None, None]
    action = np.tanh(state @ [[0.5], [-0.3]]) + 0.1 * draw.normal(size=(*shape, 1))
    following = 0.6 * state + 0.2 * action + 0.3 * draw.normal(size=(*shape, 2))
    reward, step = draw.normal(size=shape), np.broadcast_to(np.arange(30), shape).copy()
    terminated, valid = draw.random(shape) < 0.1, draw.random(shape) < 0.9
    parts = (state, action, following, reward, reward, terminated, np.zeros(shape, bool), step, valid)
    policy, q, v = _linear(Rollout(*map(torch.from_numpy, parts)), beta=0.5, gamma=0.9)
    for run in range(2):
        s, b, then, r, ends = (x[run][valid[run]] for x in (state, action, following, reward, terminated))
        k = np.linalg.lstsq(s, b, rcond=None)[0]
        share = 1 / (1 + 10 * (s**2).sum(1) / (s**2).sum(1).mean()) ** 2  # large states bend most
        variance = (share * (b - s @ k)[:, 0] ** 2).sum() / share.sum()
        np.testing.assert_allclose(policy.gain[run].numpy(), -k.T)
        np.testing.assert_allclose(policy.covariance[run].numpy(), [[variance]])
        log_g = -((b - s @ k)[:, 0] ** 2) / variance / 2 - np.log(2 * np.pi * variance) / 2

        def phi(x):
            return np.stack([np.ones(len(x)), x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], 1)

        now, later = phi(s), phi(then) * ~ends[:, None]
        w = np.linalg.solve(now.T @ (now - 0.9 * later), now.T @ (r - 0.5 * log_g))
        at = torch.from_numpy(np.stack([s, s]))
        np.testing.assert_allclose(v(at)[run].numpy(), now @ w, atol=1e-8)
        done = torch.from_numpy(np.stack([b, b]))
        np.testing.assert_allclose(q(at, done)[run].numpy(), now @ w + 0.5 * log_g, atol=1e-8)


def test_the_hidden_beta_stays_hidden():
    env = random_mdp(ObservedFollower(SoftValueIteration(beta=1.0), 2_000, beta=0.3))
    assert env.preferences.beta == 0.3
    best = env.best_response(theta_of(env))
    truth = random_mdp(SoftValueIteration(beta=1.0)).best_response(theta_of(env))
    np.testing.assert_allclose(best.behavior_policy.log_probs, truth.policy.log_probs, atol=1e-9)
