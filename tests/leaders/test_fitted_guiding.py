"""The guiding term as a covariance of fitted polynomials: its algebra, its mean, and how much less noise it has."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import SB3Follower
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.linear_quadratic.polynomials import (
    Polynomial,
    lstd,
    lstd_adjoint,
    products,
    relative,
    symmetric,
    with_one,
)
from leaders import BCHG, HPGD, exact
from leaders.critics import NetworkCritic, QuadraticState
from leaders.functional.fitted_guiding import _covariances, fitted_trace
from leaders.functional.per_step import per_step_gradient
from tests.helpers import building, leader_at_half


def monomials(x):
    x = np.concatenate([np.ones((len(x), 1)), x], 1)
    return np.stack([x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i, x.shape[1])], 1)


def test_the_adjoint_of_a_fit_weighs_rewards_as_the_fit_does():
    draw = torch.Generator().manual_seed(0)
    phi, later, reward = (torch.randn(2, 60, d, generator=draw, dtype=torch.float64) for d in (5, 5, 3))
    functional = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    weights = lstd_adjoint(100 * phi, later, functional, 0.9)
    wanted = (functional[..., None] * lstd(100 * phi, later, reward, 0.9)).sum(1)
    torch.testing.assert_close((weights[..., None] * reward).sum(1), wanted)


def test_polynomials_have_the_values_and_gradients_of_their_matrix():
    matrix = torch.tensor([[[1.0, 2.0, 0.0], [2.0, 3.0, -1.0], [0.0, -1.0, 0.5]]], dtype=torch.float64)
    x, y = torch.tensor([[[2.0]]], dtype=torch.float64), torch.tensor([[[-3.0]]], dtype=torch.float64)
    f = Polynomial(matrix)
    assert float(f(x, y)) == 1 + 4 * 2 + 3 * 4 - 2 * 2 * -3 + 0.5 * 9
    assert f.gradient(x, y).tolist() == [[[4 + 6 * 2 - 2 * -3, -2 * 2 - 3]]]


def test_covariances_are_those_of_many_draws():
    draw = torch.Generator().manual_seed(1)
    policy = GaussianPolicy(
        torch.tensor([[[0.5, -1.0], [0.2, 0.3]]], dtype=torch.float64),
        torch.tensor([[[0.7, 0.3], [0.3, 0.4]]], dtype=torch.float64),
    )
    q = Polynomial(symmetric(torch.randn(1, 15, generator=draw, dtype=torch.float64), 5))
    state = torch.tensor([[[0.4, -1.1], [2.0, 0.3]]], dtype=torch.float64)
    weight = torch.tensor([[[2.0, 0.5]]], dtype=torch.float64)
    mean, covariance = policy.moments(state[:, None])
    found = _covariances(state, (mean, covariance), q, weight)
    many = torch.from_numpy(np.random.default_rng(2).random((1, 2, 400_000, 2)))
    states = state[:, :, None].expand(-1, -1, 400_000, -1)
    actions = policy.sample(states, many)
    z, value = products(with_one(states, actions)), q(states, actions)
    drawn = ((value - value.mean(2, keepdim=True))[..., None] * (z - z.mean(2, keepdim=True))).mean(2)
    wanted = (weight[:, 0, :, None] * drawn).sum(1)
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.02)


def test_the_trace_is_the_covariance_of_two_fits_done_by_hand():
    env, theta = building(), np.full((1, 8), 0.5)
    best = env.best_response(theta[0])
    batch = env.rollout(theta, best, Noise([3]), rows=20, horizon=60)
    at = torch.from_numpy(theta).requires_grad_()
    slope = best.v.gradient(batch.next_state)
    added = per_step_gradient(0.9 * (slope * env.model(at).mean_next(batch.state, batch.action)).sum(-1), at)
    q = Polynomial(symmetric(torch.linspace(-1, 1, 28, dtype=torch.float64)[None], 7))
    weight = 0.9**batch.step / 0.1 / 20
    trace = fitted_trace(batch, q, best.policy, weight, 0.9)
    found = (trace[..., None] * added).sum((0, 1, 2)).numpy()

    s, b, following = (part[0].flatten(0, 1).numpy() for part in (batch.state, batch.action, batch.next_state))
    size = (s**2).sum(1, keepdims=True)
    share = 1 / (1 + 10 * size / size.mean())
    step = added[0].flatten(0, 1).numpy()
    phi, later, z = monomials(s), monomials(following), monomials(np.concatenate([s, b], 1)) * share
    u = np.linalg.solve(phi.T @ (phi - 0.9 * later), phi.T @ step)
    x = np.linalg.lstsq(z, (step + 0.9 * later @ u) * share, rcond=None)[0]
    total = np.zeros(8)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(5)
    node_weights = node_weights / node_weights.sum()
    root = best.policy.factor[0].numpy()
    mean = best.policy.mean(batch.state)[0].flatten(0, 1).numpy()
    for i, first in enumerate(nodes):  # E_b of products of polynomials, exact by quadrature
        for j, second in enumerate(nodes):
            moved = mean + root @ np.array([first, second])
            at_move = np.concatenate([s, moved], 1)
            value = q(torch.from_numpy(at_move)[None])[0].numpy()
            average = np.zeros(len(s))
            for k, other in enumerate(nodes):
                for m, another in enumerate(nodes):
                    elsewhere = np.concatenate([s, mean + root @ np.array([other, another])], 1)
                    average += node_weights[k] * node_weights[m] * q(torch.from_numpy(elsewhere)[None])[0].numpy()
            guiding = weight[0].flatten().numpy() * (value - average)
            total += node_weights[i] * node_weights[j] * guiding @ (monomials(at_move) @ x)
    np.testing.assert_allclose(found, total, rtol=1e-5)


class Uneven:
    """A policy whose covariance depends on the state."""

    def moments(self, state):
        mean = torch.stack([0.5 * state[..., 0], 0.1 * state[..., 1] ** 2], -1)
        one = torch.ones_like(state[..., 0])
        root = torch.stack([0.5 + 0.1 * state[..., 0] ** 2, 0 * one, 0.3 * state[..., 1], 0.4 * one], -1)
        root = root.view(*state.shape[:-1], 2, 2)
        return mean, root @ root.mT


def three_runs():
    """Runs of different sizes, some steps last ones, some not there."""
    draw, shape = np.random.default_rng(4), (3, 6, 40)
    state = draw.normal(size=(*shape, 2)) * np.array([1.0, 3.0, 0.2])[:, None, None, None]
    action = draw.normal(size=(*shape, 2))
    following = 0.5 * state + 0.3 * action + 0.3 * draw.normal(size=(*shape, 2))
    terminated, valid = draw.random(shape) < 0.05, draw.random(shape) < 0.9
    nothing, step = np.zeros(shape), np.broadcast_to(np.arange(40), shape).copy()
    parts = (state, action, following, nothing, nothing, terminated, nothing.astype(bool), step, valid)
    return Rollout(*map(torch.from_numpy, parts))


def test_runs_side_by_side_have_traces_of_their_own():
    batch, q = three_runs(), Polynomial(symmetric(torch.linspace(-1, 2, 45).double().view(3, 15), 5))
    weight = 0.9**batch.step * batch.valid / 0.1 / 6
    trace = fitted_trace(batch, q, Uneven(), weight, 0.8)
    assert not trace[~batch.valid].any()
    added = np.random.default_rng(5).normal(size=batch.step.shape)  # what a step adds to one component of ∇Q_F
    for run in range(3):
        valid = batch.valid[run]
        s, b, following = (x[run][valid].numpy() for x in (batch.state, batch.action, batch.next_state))
        goes_on, step = ~batch.terminated[run][valid].numpy()[:, None], added[run][valid.numpy()]
        size = (s**2).sum(1, keepdims=True)
        share = 1 / (1 + 10 * size / size.mean())
        phi, later = monomials(s), monomials(following) * goes_on
        u = np.linalg.solve(phi.T @ (phi - 0.8 * later), phi.T @ step)
        x = np.linalg.lstsq(monomials(np.c_[s, b]) * share, (step + 0.8 * later @ u) * share[:, 0], rcond=None)[0]
        mean, covariance = (part.numpy() for part in Uneven().moments(torch.from_numpy(s)))
        root = np.linalg.cholesky(covariance)
        nodes, chances = np.polynomial.hermite_e.hermegauss(5)
        values, slopes, odds = [], [], []
        for i, j in np.ndindex(5, 5):
            at = np.c_[s, mean + root @ nodes[[i, j]]]
            values.append(q(torch.from_numpy(np.stack([at] * 3)))[run].numpy())
            slopes.append(monomials(at) @ x)
            odds.append(chances[i] * chances[j] / chances.sum() ** 2)
        values, slopes, odds = np.array(values), np.array(slopes), np.array(odds)[:, None]
        covariances = (odds * (values - (odds * values).sum(0)) * slopes).sum(0)
        wanted = (weight[run][valid].numpy() * covariances).sum()
        assert float((trace[run].numpy() * added[run]).sum()) == pytest.approx(wanted, rel=1e-6)


def test_units_of_the_states_have_no_influence():
    batch = three_runs()
    share = relative(batch.state.flatten(1, 2), batch.valid.flatten(1))
    torch.testing.assert_close(relative(1e3 * batch.state.flatten(1, 2), batch.valid.flatten(1)), share)
    assert not share[~batch.valid.flatten(1)].any()
    assert float(share.max()) > 20 * float(share[share > 0].min())


def test_fitted_state_values_are_two_least_squares_fits():
    batch = three_runs()
    batch = replace(batch, r_leader=torch.from_numpy(np.random.default_rng(7).normal(size=batch.step.shape)))
    critic = QuadraticState(0.9)
    critic.fit(batch, None, None, Noise([0, 1, 2]))
    q = critic.q(batch.state, batch.action)
    for run in range(3):
        valid = batch.valid[run]
        s, b, following, r = (
            x[run][valid].numpy() for x in (batch.state, batch.action, batch.next_state, batch.r_leader)
        )
        size = (s**2).sum(1, keepdims=True)
        share = 1 / (1 + 10 * size / size.mean())
        phi, later = monomials(s), monomials(following) * ~batch.terminated[run][valid].numpy()[:, None]
        v = np.linalg.solve(phi.T @ (phi - 0.9 * later), phi.T @ r)
        z = monomials(np.c_[s, b])
        x = np.linalg.lstsq(z * share, (r + 0.9 * later @ v) * share[:, 0], rcond=None)[0]
        np.testing.assert_allclose(q[run][valid].numpy(), z @ x, atol=1e-8)


def test_fitted_state_values_tell_their_gradient():
    env = building()
    best = env.best_response(np.full(8, 0.5))
    batch = env.rollout(np.full((1, 8), 0.5), best, Noise([6]), rows=20, horizon=60)
    critic = QuadraticState(0.9)
    critic.fit(batch, best, None, Noise([0]))
    at = batch.state.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic.v(at).sum(), at)
    torch.testing.assert_close(critic.leader_gradient(best.policy)(batch.state, batch.step), slope)


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["exact", "lstd", "state_values"])
def test_the_estimate_averages_to_the_exact_hypergradient(critic):
    leader = leader_at_half(BCHG(building(), critic=critic, gradient="pathwise", guiding="fitted", batch_size=10_000))
    samples = leader.gradient_samples(200, episodes=100)
    direct, guiding = exact.hypergradient_parts(building(), np.full(8, 0.5))
    error = samples.std(0, ddof=1) / 200**0.5
    assert (np.abs(samples.mean(0) - direct - guiding) < 4 * error).all()
    for wrong in (direct, direct - guiding):
        assert (np.abs(samples.mean(0) - wrong) > 8 * error).any()


@pytest.mark.slow
def test_fitted_guiding_has_less_noise_than_trajectories():
    deviations = []
    for guiding in ("sampled", "fitted"):
        leader = leader_at_half(
            BCHG(building(), critic="exact", gradient="pathwise", guiding=guiding, batch_size=10_000)
        )
        deviations.append(np.linalg.norm(leader.gradient_samples(40, episodes=50).std(0)))
    assert deviations[0] > 2 * deviations[1]


class Bent:
    """A policy that does too much where states are large, as networks do."""

    def __init__(self, policy):
        self.policy = policy

    def mean(self, state):
        return self.policy.mean(state) * (1 + 0.1 * (state / 5).tanh()[..., :1] ** 2)

    def moments(self, state):
        return self.mean(state), self.policy.moments(state)[1]

    def sample(self, state, uniform):
        state = torch.as_tensor(state)
        return self.policy.sample(state, uniform) - self.policy.mean(state) + self.mean(state)

    def log_prob(self, state, action):
        return self.policy.log_prob(state, action - self.mean(state) + self.policy.mean(state))

    def tiled(self, copies):
        return self


def test_a_policy_that_bends_does_not_spoil_the_benefit():
    env, theta = building(), np.full((1, 8), 0.5)
    best = env.best_response(theta[0])
    best = replace(best, policy=Bent(best.policy), optimal=False)
    quiet = replace(env.model(theta), noise=1e-12 * env.model(theta).noise)
    batch = env.rollout(theta, best, Noise([5]), rows=50, horizon=100, model=quiet)
    critic = QuadraticState(0.9)
    critic.fit(batch, best, None, Noise([0]))
    q, v, _ = critic.values(batch, best.policy)
    brought = batch.r_leader + 0.9 * critic.v(env.model(theta).mean_next(batch.state, batch.action))
    assert float((q - brought).abs().max()) < 1e-3 * float((q - v).std())


def test_a_world_that_runs_away_does_not_turn_values_around():
    """s' = min(2 s, 30), r = −s²: were far states to count for less in temporal differences, V(30) would be above 0."""
    s = [torch.tensor([0.5 * 1.1**i for i in range(8)], dtype=torch.float64)]
    for _ in range(9):
        s.append((2 * s[-1]).clamp(max=30))
    state = torch.stack(s, 1)[None, ..., None]
    shape = (1, 8, 9)
    env = building()
    theta = np.full((1, 8), 0.5)
    batch = env.rollout(theta, env.best_response(theta[0]), Noise([0]), rows=8, horizon=9)
    draw = torch.randn(*shape, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = replace(
        batch, state=state[:, :, :-1], next_state=state[:, :, 1:], action=draw, r_leader=-(state[:, :, :-1, 0] ** 2)
    )
    critic = QuadraticState(0.9)
    critic.fit(batch, env.best_response(theta[0]), None, Noise([0]))
    far = torch.full((1, 1, 1), 30.0, dtype=torch.float64)
    assert float(critic.v(far)) == pytest.approx(-9000, rel=0.1)


@pytest.mark.slow
def test_agents_with_networks_are_led_by_fitted_guiding(tmp_path):
    agent = SB3Follower("SAC", 300, learning_starts=100, action_range=60.0, reward_scale=200.0)
    leader = BCHG(building(agent), batch_size=1_000, seed=0)
    assert (leader.estimator_config.critic, leader.estimator_config.guiding) == ("state_values", "fitted")
    leader.learn(2).save(tmp_path / "leader")
    resumed = BCHG.load(
        tmp_path / "leader",
        env=building(SB3Follower("SAC", 300, learning_starts=100, action_range=60.0, reward_scale=200.0)),
    )
    np.testing.assert_array_equal(resumed.learn(1).theta, leader.learn(1).theta)


@pytest.mark.parametrize(
    ("world", "settings", "message"),
    [
        ("FourRooms", {}, '`guiding` must be "sampled" for tables'),
        ("BuildingThermalControl", {"gradient": "analytic"}, 'with `gradient="analytic"`'),
        ("BuildingThermalControl", {"gradient": "score", "score_weight": "value"}, '`score_weight` must be "td_error"'),
        ("BuildingThermalControl", {"critic": "fitted_linear"}, "no Q_L of any .s, b., here 'fitted_linear'"),
        ("BilevelLQR", {"gradient": "pathwise"}, "where the leader's reward is not quadratic"),
        ("BilevelLQR", {"critic": QuadraticState(0.99)}, "`critic` is quadratic and cannot represent"),
    ],
)
def test_settings_that_fitted_guiding_does_not_allow_are_refused(world, settings, message):
    with pytest.raises(ValueError, match=message):
        BCHG(BilevelWrapper(gym.make(f"BiLevel/{world}-v0")), guiding="fitted", **settings)


@pytest.mark.parametrize("batch_size", [20, 40])
@pytest.mark.parametrize(
    ("critic", "gradient", "fitted", "needed"),
    [
        # Of z = (1, s, b) with four temperatures and two heaters: 28 products, 21 + 1 of them of even degree.
        ("lstd", "analytic", 'critic="lstd"', 22),
        ("state_values", "pathwise", 'critic="state_values"', 28),
        ("exact", "pathwise", 'guiding="fitted"', 28),
    ],
)
def test_a_batch_too_small_for_a_fit_is_named_as_it_was_dealt(batch_size, critic, gradient, fitted, needed):
    how = {"critic": critic, "gradient": gradient, "batch_size": batch_size, "rows": 1}
    halved, whole = (BCHG(building(), cross_fit=cross_fit, **how) for cross_fit in (True, False))
    learns = critic != "exact"  # only what is learnt is fitted to halves
    half = " in each half of a batch" if learns else ""
    got, remedy = (batch_size // 2, ", or pass `cross_fit=False`") if learns else (batch_size, "")
    fits = f"{fitted} fits {needed} numbers here and needs at least as many transitions"
    if got < needed:
        with pytest.raises(ValueError, match=f"^{fits}{half}, got {got}: raise `batch_size`{remedy}$"):
            halved.learn(1)
    if batch_size < needed:
        with pytest.raises(ValueError, match=f"^{fits}, got {batch_size}: raise `batch_size`$"):
            whole.learn(1)
    else:
        whole.learn(1)


def test_a_half_too_small_for_the_reaction_is_named():
    # 25 transitions of each half are enough for the 22 numbers of the critic and too few for the 28 of the reaction.
    leader = BCHG(building(), critic="lstd", gradient="pathwise", batch_size=50, rows=1)
    with pytest.raises(
        ValueError, match='^guiding="fitted" fits 28 .* in each half of a batch, got 25: .*`cross_fit=F'
    ):
        leader.learn(1)


def test_fitted_guiding_needs_a_polynomial_q():
    env, theta = building(), np.full((1, 8), 0.5)
    best = env.best_response(theta[0])
    batch = env.rollout(theta, best, Noise([0]), rows=2, horizon=50)
    with pytest.raises(TypeError, match=r"`critic` must give a Polynomial or a Quadratic .* got float"):
        fitted_trace(batch, 1.0, best.policy, 0.9**batch.step, 0.9)
    for matrix, got in (
        (torch.zeros(1, 6, 6), r"\[1, 6, 6\]"),
        (torch.full((1, 7, 7), float("nan")), "entries that are"),
    ):
        with pytest.raises(ValueError, match=f"`critic` must give a finite `quadratic.*` of 7 × 7 .* got {got}"):
            fitted_trace(batch, Polynomial(matrix), best.policy, 0.9**batch.step, 0.9)
    lopsided = torch.triu(torch.ones(1, 7, 7))
    traces = [
        fitted_trace(batch, Polynomial(matrix), best.policy, 0.9**batch.step, 0.9)
        for matrix in (lopsided, ((lopsided + lopsided.mT) / 2).double())
    ]
    torch.testing.assert_close(*traces)


def test_fitted_guiding_needs_the_policys_moments():
    env, theta = building(), np.full((1, 8), 0.5)
    best = env.best_response(theta[0])
    batch = env.rollout(theta, best, Noise([0]), rows=2, horizon=50)
    with pytest.raises(
        TypeError, match='must be "sampled" with a policy that has no method `moments`.*, such as object'
    ):
        fitted_trace(batch, Polynomial(torch.zeros(1, 7, 7).double()), object(), 0.9**batch.step, 0.9)


@pytest.mark.parametrize(
    ("settings", "guiding"),
    [
        ({}, "sampled"),
        ({"gradient": "pathwise"}, "fitted"),
        ({"gradient": "pathwise", "critic": "exact"}, "fitted"),
        ({"gradient": "score"}, "fitted"),
        ({"gradient": "score", "score_weight": "value"}, "sampled"),
        ({"critic": "td"}, "sampled"),
        ({"critic": QuadraticState(0.9), "gradient": "pathwise"}, "fitted"),
        ({"critic": NetworkCritic(0.9)}, "sampled"),
        ({"preset": "paper"}, "sampled"),
    ],
)
def test_guiding_is_fitted_by_default_where_it_can_be(settings, guiding):
    assert BCHG(building(), **settings).estimator_config.guiding == guiding


def test_leaders_but_bc_hg_refuse_a_choice_of_guiding():
    with pytest.raises(TypeError, match="guiding"):
        HPGD(building(), guiding="fitted")
    with pytest.raises(ValueError, match="`guiding` must be one of 'sampled', 'fitted', got 'fit'"):
        BCHG(building(), guiding="fit")
