"""Guided cart-pole and pendulum: physics against Gymnasium's own, leaders' networks, and the follower's chair."""

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.utils.env_checker import check_env
from scipy import integrate, stats
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from bilevel_envs import BilevelWrapper, LeaderEnv
from bilevel_envs.core.follower import BestResponse, Missing
from bilevel_envs.core.noise import Noise
from bilevel_envs.markov_games import guided_cartpole_v0, guided_pendulum_v0
from bilevel_envs.markov_games.guided_cartpole_v0 import GuidedCartPole
from bilevel_envs.markov_games.guided_pendulum_v0 import GuidedPendulum
from bilevel_envs.networks.leader_policies import EDGE, GaussianNetwork, GaussianTanhNetwork
from bilevel_envs.worlds.declared.model import SimulatedModel

NAMES = ["BiLevel/GuidedCartPole-v0", "BiLevel/GuidedPendulum-v0"]
NORMALISED = "ignore:.*[Ww]e recommend .*symmetric and normalized"  # torques are in real units
UNBOUNDED = "ignore:.*observation space (minimum|maximum) value is -?infinity"  # meant where nothing bounds them
CHOICES = [{}, {"flip": True}, {"discrete": 3}, {"flip": True, "discrete": 4}]


def pendulum_states(angle, spin):
    return np.stack([np.cos(angle), np.sin(angle), spin], -1)


def carts(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)) * [2.0, 3.0, 0.2, 3.0]


def pendulums(count, seed=0):
    rng = np.random.default_rng(seed)
    return pendulum_states(rng.uniform(-np.pi, np.pi, count), rng.uniform(-7, 7, count))


class AtRandom:
    """A follower that solves nothing and answers at random."""

    beta = None

    def __init__(self, reach=1.0):
        self.reach = reach

    def best_response(self, model, preferences, start=None):
        return BestResponse(self, Missing("no Q_F"), Missing("no V_F"), torch.zeros(1), optimal=False)

    action_shape = (1,)

    def sample(self, state, uniform):
        return self.reach * (2 * torch.as_tensor(uniform) - 1)


# Physics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("push", [0, 1])
def test_a_cart_without_wind_moves_as_gymnasiums(push):
    classic, states = CartPoleEnv(), carts(200)
    following, _, r_follower = GuidedCartPole().advance_many(states, np.zeros(200), np.full(200, 2.0 * push - 1))
    ends = GuidedCartPole().ends(following)
    for k, state in enumerate(states):
        classic.reset(seed=0)
        classic.state = state
        _, reward, terminated, _, _ = classic.step(push)
        np.testing.assert_allclose(following[k], classic.state, rtol=0, atol=1e-13)
        assert (reward, terminated) == (r_follower[k], ends[k])
    assert ends.any()
    assert not ends.all()


def test_a_pendulum_without_wind_moves_as_gymnasiums_below_its_top_speed():
    classic, rng = PendulumEnv(), np.random.default_rng(0)
    angle, spin, torque = (rng.uniform(-x, x, 300) for x in (np.pi, 6.0, 2.0))  # at most 6 + 0.05 · 21 < 8
    following, _, r_follower = GuidedPendulum().advance_many(pendulum_states(angle, spin), np.zeros(300), torque)
    for k in range(300):
        classic.reset(seed=0)
        classic.state = np.array([angle[k], spin[k]])
        _, reward, *_ = classic.step(np.array([torque[k]]))
        np.testing.assert_allclose(following[k], pendulum_states(*classic.state), rtol=0, atol=1e-13)
        assert float(r_follower[k]) == pytest.approx(float(reward), abs=1e-12)


def test_the_pendulum_moves_with_the_speed_before_it_is_cut():
    # at ϑ = π/2 with ϑ' = 7.9 and b = 2: ϑ'' = 15 + 6, ϑ' = 7.9 + 1.05 = 8.95, ϑ = π/2 + 0.05 · 8.95, then ϑ' = 8
    state = pendulum_states(np.array([np.pi / 2]), np.array([7.9]))
    following, *_ = GuidedPendulum().advance_many(state, np.zeros(1), np.array([2.0]))
    np.testing.assert_allclose(following[0], pendulum_states(np.pi / 2 + 0.4475, 8.0), atol=1e-13)


def test_a_gust_moves_the_state_as_computed_by_hand():
    # cart at rest, upright, b = 1, a = 1/2: u = 10/1.1 = 9.090909, ϑ''₀ = −u / (0.5 (4/3 − 0.1/1.1)) = −14.634146,
    # x'' = u + 0.05 · 14.634146 / 1.1 = 9.756098, ϑ'' = ϑ''₀ + 20/2 = −4.634146
    following, r_leader, r_follower = GuidedCartPole().advance(np.zeros(4), np.array([0.5]), np.array([1.0]))
    np.testing.assert_allclose(following, [0, 0.19512195, 0, -0.09268293], atol=1e-8)
    assert (r_leader, r_follower) == (0.0, 1.0)
    # pendulum at ϑ = −π/4, at rest, b = −1, a = 1: ϑ'' = −15 √½ − 3 + 2 · ½ = −12.606602
    following, r_leader, r_follower = GuidedPendulum().advance(pendulum_states(-np.pi / 4, 0.0), 1.0, -1.0)
    np.testing.assert_allclose(
        following, pendulum_states(-np.pi / 4 - 0.0025 * 12.60660172, -0.05 * 12.60660172), atol=1e-9
    )
    assert r_leader == 0.0  # sin ϑ < 0
    assert r_follower == pytest.approx(-((np.pi / 4) ** 2) - 0.001)


@pytest.mark.parametrize("wind", [0.0, 1.0, 2.5])
def test_wind_turns_the_pole_and_leaves_the_cart_alone(wind):
    states, game = carts(50), GuidedCartPole(wind=wind)
    a, b = np.random.default_rng(1).uniform(-1, 1, (2, 50))
    (blown, *_), (calm, *_) = game.advance_many(states, a, b), game.advance_many(states, np.zeros(50), b)
    np.testing.assert_array_equal(blown[:, :3], calm[:, :3])
    np.testing.assert_allclose(blown[:, 3] - calm[:, 3], 0.02 * 20 * wind * a * np.cos(states[:, 2]) ** 2, atol=1e-12)
    states, game = pendulums(50), GuidedPendulum(wind=wind)
    states[:, 2] /= 2  # far from the top speed
    (blown, *_), (calm, *_) = game.advance_many(states, a, b), game.advance_many(states, np.zeros(50), b)
    np.testing.assert_allclose(blown[:, 2] - calm[:, 2], 0.05 * 2 * wind * a * states[:, 0] ** 2, atol=1e-12)


def test_the_leader_is_paid_where_the_step_leads():
    def paid(x, interval):
        state = np.array([x, 1.0, 0.0, 0.0])  # moves by 0.02
        return GuidedCartPole(interval=interval).advance(state, 0.0, 0.0)[1]

    assert [paid(x, (0.25, 0.75)) for x in (0.22, 0.24, 0.72, 0.74, -0.5)] == [0, 1, 1, 0, 0]
    assert [paid(x, (-0.25, 0.25)) for x in (-0.28, -0.26, 0.22, 0.24)] == [0, 1, 1, 0]
    # the ends themselves do not count: 0.5 = 0.48 + 0.02 in floating point, too
    assert 0.48 + 0.02 * 1.0 == 0.5
    assert paid(0.48, (0.5, 0.75)) == 0


def test_the_pendulums_leader_pays_on_one_side_only():
    angle = np.array([0.0, np.pi / 2, np.pi / 6, -np.pi / 2, -0.1])
    _, r_leader, r_follower = GuidedPendulum().advance_many(pendulum_states(angle, 0 * angle), *np.zeros((2, 5)))
    np.testing.assert_allclose(r_leader, [0, -1, -0.5, 0, 0], atol=1e-15)
    np.testing.assert_allclose(r_leader, np.minimum(np.sin(angle + np.pi), 0), atol=1e-15)
    np.testing.assert_allclose(r_follower, -(angle**2))
    # beyond half a turn the angle is counted from the other side
    once_more = GuidedPendulum().advance_many(pendulum_states(angle + 2 * np.pi, 0 * angle), *np.zeros((2, 5)))
    np.testing.assert_allclose(once_more[2], -(angle**2), atol=1e-12)


@pytest.mark.parametrize(("game", "states"), [(GuidedCartPole, carts(40)), (GuidedPendulum, pendulums(40))])
def test_flipped_players_swap_moves_and_rewards(game, states):
    one, two = np.random.default_rng(2).uniform(-1, 1, (2, 40))
    following, r_leader, r_follower = game().advance_many(states, one, two)
    flipped = game(flip=True).advance_many(states, two, one)
    for got, expected in zip(flipped, (following, r_follower, r_leader), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert (following != game().advance_many(states, two, one)[0]).any()
    assert game().reaches == game(flip=True).reaches[::-1]


def test_actions_are_cut_to_their_reach():
    state = pendulums(1)
    cut = GuidedPendulum().advance_many(state, np.ones(1), np.array([2.0]))
    for got, expected in zip(GuidedPendulum().advance_many(state, np.full(1, 9.0), np.full(1, 9.0)), cut, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_first_states_have_the_specified_distributions():
    uniform = np.random.default_rng(0).random((20_000, 4))
    start = GuidedCartPole().start_many(uniform)
    assert (np.abs(start).max(0) < 0.05).all()
    np.testing.assert_allclose(start.std(0), 0.05 / 3**0.5, rtol=0.02)
    start = GuidedPendulum().start_many(uniform[:, :2])
    angle = np.arctan2(start[:, 1], start[:, 0])
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3
    assert stats.kstest(start[:, 2], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    np.testing.assert_allclose((start[:, :2] ** 2).sum(1), 1.0)


# Leaders' networks -------------------------------------------------------------------------------------------------


def some_weights(network, runs=1, seed=0):
    """Weights with biases, unlike those of the start."""
    theta = network.start(Noise(range(seed, seed + runs)))
    return theta + 0.2 * np.random.default_rng(seed).standard_normal(theta.shape)


def test_the_network_agrees_with_layers_of_torch():
    """Layer by layer, weights row by row: input first."""
    network = GaussianNetwork((3, 5, 4, 2))
    theta, rng = some_weights(network, 2), np.random.default_rng(1)
    assert network.count == 3 * 5 + 5 + 5 * 4 + 4 + 4 * 2 + 2 + 2 == theta.shape[1]
    state, action = torch.from_numpy(rng.normal(size=(2, 6, 7, 3))), torch.from_numpy(rng.normal(size=(2, 6, 7, 2)))
    for run in range(2):
        layers, read = [], 0
        for inner, outer in ((3, 5), (5, 4), (4, 2)):
            layer = torch.nn.Linear(inner, outer, dtype=torch.float64)
            parts = np.split(theta[run, read : read + (inner + 1) * outer], [inner * outer])
            layer.weight.data, layer.bias.data = (
                torch.from_numpy(parts[0].reshape(inner, outer).T.copy()),
                torch.from_numpy(parts[1]),
            )
            layers += [layer, torch.nn.ReLU()]
            read += (inner + 1) * outer
        mean = torch.nn.Sequential(*layers[:-1])(state[run]).detach()
        law = torch.distributions.Normal(mean, torch.from_numpy(theta[run, -2:]).exp())
        got = network.log_prob(torch.from_numpy(theta), state, action)[run]
        torch.testing.assert_close(got, law.log_prob(action[run]).sum(-1), rtol=0, atol=1e-12)
        still = network.sample(theta, state.reshape(2, 42, 3).numpy(), np.zeros((2, 42, 2)))
        np.testing.assert_allclose(still[run], mean.reshape(42, 2), atol=1e-13)


@pytest.mark.parametrize("reach", [1.0, 2.0])
def test_a_squashed_density_integrates_to_one_and_is_the_samplers(reach):
    network = GaussianTanhNetwork((3, 8, 1), reach)
    theta = some_weights(network, seed=3)
    state = np.array([0.3, -1.0, 0.7])

    def density(a):
        at = torch.tensor([[[a]]], dtype=torch.float64)
        return float(network.log_prob(torch.from_numpy(theta), torch.from_numpy(state)[None, None], at).exp())

    total, _ = integrate.quad(density, -reach, reach, limit=200)
    assert total == pytest.approx(1.0, abs=1e-6)
    count, bins = 20_000, 20
    states = np.broadcast_to(state, (1, count, 3))
    normal = np.random.default_rng(0).standard_normal((1, count, 1))
    drawn = network.sample(theta, states, normal)[0, :, 0]
    assert (np.abs(drawn) < reach).all()
    edges = np.quantile(drawn[::2], np.linspace(0, 1, bins + 1)[1:-1])
    edges = np.concatenate([[-reach], edges, [reach]])
    mass = np.array([integrate.quad(density, *pair)[0] for pair in pairwise(edges)])
    seen = np.histogram(drawn[1::2], edges)[0]  # bins are from the other half
    assert stats.chisquare(seen, mass / mass.sum() * seen.sum()).pvalue > 1e-3


def test_the_score_has_mean_zero_under_the_sampler():
    network, count = GaussianTanhNetwork((2, 3, 1)), 40_000
    theta, state = some_weights(network), np.random.default_rng(1).normal(size=(1, count, 2))
    action = network.sample(theta, state, np.random.default_rng(2).standard_normal((1, count, 1)))
    weights = torch.from_numpy(np.repeat(theta, count, 0)).requires_grad_()
    log_prob = network.log_prob(weights, torch.from_numpy(state[0, :, None]), torch.from_numpy(action[0, :, None]))
    (score,) = torch.autograd.grad(log_prob.sum(), weights)
    moving = score.std(0) > 0  # a unit may be dead
    z = score.mean(0) / (score.std(0) / count**0.5)
    assert moving.sum() > 10
    assert float(z[moving].abs().max()) < 4


@pytest.mark.parametrize("network", [GaussianTanhNetwork((3, 4, 1), 2.0), GaussianNetwork((3, 4, 1), 0.1)])
def test_the_gradient_of_the_log_density_is_that_of_differences(network):
    rng, h = np.random.default_rng(4), 1e-6
    theta = torch.from_numpy(some_weights(network, 2))
    state, action = torch.from_numpy(rng.normal(size=(2, 5, 3))), torch.from_numpy(rng.uniform(-0.9, 0.9, (2, 5, 1)))
    moving = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network.log_prob(moving, state, action).sum(), moving)
    for entry in range(network.count):
        step = torch.zeros_like(theta)
        step[:, entry] = h
        ends = [network.log_prob(theta + sign * step, state, action).sum(1) for sign in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close(gradient[:, entry], difference, rtol=1e-5, atol=1e-6)


def test_densities_are_finite_at_all_weights_and_actions():
    network = GaussianTanhNetwork((4, 64, 64, 1))
    rng = np.random.default_rng(0)
    for theta in (rng.choice([-100.0, 100.0], (1, network.count)), np.full((1, network.count), 100.0)):
        state = rng.normal(size=(1, 50, 4))
        action = network.sample(theta, state, rng.standard_normal((1, 50, 1)))
        assert (np.abs(action) <= EDGE).all()
        weights = torch.from_numpy(theta).requires_grad_()
        for given in (action, np.sign(action)):  # also at the edge, where float32 may have put it
            log_prob = network.log_prob(weights, torch.from_numpy(state), torch.from_numpy(given))
            assert log_prob.isfinite().all()
            (gradient,) = torch.autograd.grad(log_prob.sum(), weights)
            assert gradient.isfinite().all()
    assert np.float32(EDGE) < 1


def test_a_sample_does_not_depend_on_its_neighbours():
    network = GaussianTanhNetwork((4, 64, 64, 1))
    theta, rng = some_weights(network), np.random.default_rng(0)
    state, normal = rng.normal(size=(1, 37, 4)), rng.standard_normal((1, 37, 1))
    together = network.sample(theta, state, normal)
    alone = np.concatenate([network.sample(theta, state[:, [k]], normal[:, [k]]) for k in range(37)], 1)
    np.testing.assert_array_equal(together, alone)


def test_bad_networks_are_refused():
    with pytest.raises(ValueError, match="`sizes` must name the entries of s and of a at least"):
        GaussianNetwork((3,))
    with pytest.raises(ValueError, match="`sizes` must be at least 1, got 0"):
        GaussianTanhNetwork((3, 0, 1))
    with pytest.raises(ValueError, match="`deviation` must be above 0, got 0"):
        GaussianNetwork((3, 1), 0.0)
    with pytest.raises(ValueError, match="`reach` must be above 0"):
        GaussianTanhNetwork((3, 1), -1.0)
    with pytest.raises(ValueError, match=r"`theta` must have shape \[..., 4\] \[weights\], got \[1, 5\]"):
        SimulatedModel(GaussianNetwork((3, 1), 1.0), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"`theta` must have shape \[runs, 4\], got \[4\]"):
        SimulatedModel(GaussianNetwork((3, 1), 1.0), torch.zeros(4))
    with pytest.raises(ValueError, match=r"`theta` must be finite; at \(0, 1\) it is nan"):
        SimulatedModel(GaussianNetwork((3, 1), 1.0), torch.tensor([[0, torch.nan, 0, 0]]))


# The follower's chair ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(NORMALISED, UNBOUNDED)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", CHOICES, ids=str)
def test_every_form_passes_the_checkers(name, arguments):
    env = gym.make(name, **arguments)
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env.unwrapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", CHOICES[1:], ids=str)
def test_a_vector_environment_takes_the_steps_of_its_scalar_ones(name, arguments):
    count, runs = 6, 2
    theta = gym.make(name, **arguments).unwrapped.parameterization(runs, seed=3)().detach().numpy()
    envs = gym.make_vec(name, num_envs=count, theta=theta, **arguments)
    singles = [gym.make(name, theta=theta[i // 3], **arguments) for i in range(count)]
    observation, _ = envs.reset(seed=8)
    np.testing.assert_array_equal(observation, [env.reset(seed=8 + i)[0] for i, env in enumerate(singles)])
    envs.action_space.seed(0)
    ended = 0
    for _ in range(450):
        action = envs.action_space.sample()
        observation, reward, terminated, truncated, infos = envs.step(action)
        for i, env in enumerate(singles):
            seen, r, over, cut, info = env.step(action[i])
            assert (r, over, cut) == (reward[i], terminated[i], truncated[i])
            if over or cut:
                np.testing.assert_array_equal(infos["final_obs"][i], seen)
                assert infos["final_info"]["leader_reward"][i] == info["leader_reward"]
                seen, _ = env.reset()
                ended += 1
            np.testing.assert_array_equal(observation[i], seen)
    assert ended >= 2 * count


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_takes_the_steps_of_its_game(name):
    env = gym.make(name, theta=None)
    game = env.unwrapped.problem
    state, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(60):
        action = env.action_space.sample()
        following, r_leader, r_follower = game.advance(state[:-1], state[-1], action)
        state, reward, terminated, _, info = env.step(action)
        np.testing.assert_allclose(state[:-1], following, atol=1e-13)
        assert (reward, info["leader_reward"]) == (pytest.approx(r_follower), r_leader)
        assert terminated == bool(game.ends(following))
        if terminated:
            assert reward == 1.0  # the last step is paid, too
            state, _ = env.reset()


def test_the_cart_falls_and_the_clock_runs_out():
    env = gym.make(NAMES[0])
    env.reset(seed=0)
    steps, terminated = 0, False
    while not terminated:
        state, reward, terminated, truncated, _ = env.step(np.array([1.0]))
        steps += 1
        assert reward == 1.0
        assert terminated == (abs(state[0]) > 2.4 or abs(state[2]) > 12 * np.pi / 180)
        assert not truncated
    assert steps < 30
    env = gym.make(NAMES[1])
    env.reset(seed=0)
    for k in range(200):
        *_, terminated, truncated, info = env.step(np.zeros(1))
        assert (terminated, truncated, info["step"]) == (False, k == 199, k)


def always(problem, mean):
    """Weights of a leader who plays tanh(mean), whatever it sees, with hardly any noise."""
    theta = np.zeros(problem.network.count)
    theta[-2:] = mean, -10.0
    return theta


@pytest.mark.parametrize("name", NAMES)
def test_theta_is_sticky_and_in_force_from_the_next_reset(name):
    env = gym.make(name)
    game = env.unwrapped.problem
    assert env.reset(seed=0, options={"theta": always(game, 1.0)})[0][-1] == pytest.approx(np.tanh(1), abs=1e-3)
    env.unwrapped.configure(always(game, -1.0))
    push = np.zeros(1)
    assert env.step(push)[0][-1] == pytest.approx(np.tanh(1), abs=1e-3)  # the running episode keeps its leader
    for _ in range(2):  # a reset without options keeps the new one
        assert env.reset()[0][-1] == pytest.approx(-np.tanh(1), abs=1e-3)
        assert env.step(push)[0][-1] == pytest.approx(-np.tanh(1), abs=1e-3)
    np.testing.assert_array_equal(gym.make(name, theta=always(game, 2.0)).unwrapped.theta, always(game, 2.0))


def test_each_run_has_its_own_leader():
    game = GuidedCartPole()
    envs = gym.make_vec(NAMES[0], num_envs=6)
    seen, _ = envs.reset(seed=0, options={"theta": np.stack([always(game, m) for m in (1.0, -1.0, 0.0)])})
    np.testing.assert_allclose(seen[:, -1], np.tanh([1, 1, -1, -1, 0, 0]), atol=1e-3)
    with pytest.raises(ValueError, match=r"`theta` must have shape \[4546\], or one more leading axis that divides"):
        envs.unwrapped.configure(np.zeros((4, 4546)))


def test_discrete_followers_choose_among_evenly_spaced_pushes():
    assert gym.make(NAMES[0], discrete=3).action_space == gym.spaces.Discrete(3)
    np.testing.assert_allclose(GuidedPendulum(discrete=5).choices, [-2, -1, 0, 1, 2])
    np.testing.assert_allclose(GuidedPendulum(discrete=2, flip=True).choices, [-1, 1])
    for index, push in enumerate((-1.0, 0.0, 1.0)):
        chosen, free = gym.make(NAMES[0], discrete=3), gym.make(NAMES[0])
        for env in (chosen, free):
            env.reset(seed=4)
        np.testing.assert_array_equal(chosen.step(index)[0], free.step(np.array([push]))[0])
        chosen, free = GuidedCartPole(discrete=3), GuidedCartPole()
        one, two = chosen.advance(np.zeros(4), 0.1, index), free.advance(np.zeros(4), 0.1, [push])
        np.testing.assert_array_equal(one[0], two[0])


@pytest.mark.parametrize(("name", "reach"), [(NAMES[0], 1.0), (NAMES[1], 2.0)])
def test_rollouts_are_stepped_and_their_terms_are_the_leaders_log_probabilities(name, reach):
    env = BilevelWrapper(gym.make(name), AtRandom(reach))
    theta = env.unwrapped.parameterization(2, seed=5)()
    best = env.best_response(theta)
    batch = env.rollout(theta, best, Noise([0, 1]), rows=3, horizon=60)  # "fused" has nothing to draw from
    again = env.rollout(theta, best, Noise([0, 1]), rows=3, horizon=60, sampler="steps", model=env.model(theta))
    torch.testing.assert_close(batch.state, again.state, rtol=0, atol=0)
    n = env.observation_space.shape[0] - 1
    assert batch.state.shape == (2, 3, 60, n + 1)
    assert batch.action.shape == (2, 3, 60, 1)
    within = ~(batch.terminated | batch.truncated)[..., :-1]
    torch.testing.assert_close(batch.state[:, :, 1:][within], batch.next_state[:, :, :-1][within], rtol=0, atol=0)
    model = env.model(theta)
    assert model.runs == 2
    terms = model.terms(batch)
    assert (terms.r_leader, terms.r_follower, terms.expected_r_follower) == (None, None, None)
    network = env.problem.network
    for run in range(2):
        own = theta[run : run + 1]
        for got, state in ((terms.log_start, batch.state), (terms.log_arrival, batch.next_state)):
            expected = network.log_prob(own, state[run : run + 1, ..., :n], state[run : run + 1, ..., n:])
            torch.testing.assert_close(got[run], expected[0], rtol=0, atol=1e-12)
    weights = next(env.unwrapped.parameterization(2, seed=5).parameters()).detach().requires_grad_()
    env.model(weights).terms(batch).log_arrival[0].sum().backward()
    assert weights.grad[0].abs().max() > 0
    assert (weights.grad[1] == 0).all()
    assert not model.detach().terms(batch).log_arrival.requires_grad


def test_whole_episodes_end_where_the_cart_falls():
    env = BilevelWrapper(gym.make(NAMES[0]), AtRandom())
    theta = env.problem.default_theta
    batch = env.rollout(theta, env.best_response(theta), Noise([0]), rows=5, horizon=150, whole_episodes=True)
    assert (batch.starts.sum(-1) == 1).all()
    assert (batch.finished.sum(-1) == 1).all()
    assert (batch.r_follower[batch.valid] == 1).all()


def test_a_follower_must_be_given_where_no_model_is_known():
    for name in NAMES:
        message = rf"`follower` must be given: {name} offers neither tables nor matrices.*SB3Follower\(\"SAC\"\)"
        with pytest.raises(ValueError, match=message):
            BilevelWrapper(gym.make(name))
    with pytest.raises(ValueError, match="`follower` must be given: GuidedPendulum offers neither"):
        LeaderEnv(guided_pendulum_v0.env())


@pytest.mark.filterwarnings(NORMALISED, UNBOUNDED)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("module", "reach"), [(guided_cartpole_v0, 1.0), (guided_pendulum_v0, 2.0)])
def test_the_leaders_side_of_a_guided_game_takes_its_steps_and_can_be_repeated(module, reach, flip):
    env = LeaderEnv(module.env(flip=flip, render_mode="rgb_array"), AtRandom(1.0 if flip else reach))
    check_env(env, skip_render_check=True)
    assert float(env.action_space.high[0]) == (reach if flip else 1.0)
    lives = []
    for _ in range(2):
        state, _ = env.reset(seed=7)
        env.action_space.seed(7)
        life, over = [state.tolist()], False
        while not over:
            action = env.action_space.sample()
            before = state
            state, reward, terminated, truncated, info = env.step(action)
            following, r_leader, r_follower = env.game.advance(before, action, info["follower_action"])
            np.testing.assert_array_equal(state, following)
            assert (reward, info["follower_reward"]) == (r_leader, r_follower)
            life.append(state.tolist())
            over = terminated or truncated
        assert terminated == (module is guided_cartpole_v0)
        lives.append(life)
    assert lives[0] == lives[1]


def test_games_with_the_same_seed_begin_alike_and_others_do_not():
    for module in (guided_cartpole_v0, guided_pendulum_v0):
        env = module.parallel_env()
        first, again, other = (env.reset(seed=seed)[0]["leader_0"] for seed in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert (first != other).all()
        assert (env.reset()[0]["leader_0"] != other).all()  # the stream goes on
        seen, _ = env.reset(seed=3)
        assert seen["follower_0"][-1] == -np.inf


def test_the_turns_of_the_game_end_where_the_cart_falls():
    env = guided_cartpole_v0.env()
    env.reset(seed=0)
    total = dict.fromkeys(env.possible_agents, 0.0)
    for agent in env.agent_iter():
        _, reward, terminated, truncated, _ = env.last()
        total[agent] += reward
        env.step(None if terminated or truncated else np.ones(1, np.float32) * (agent == "follower_0"))
    assert terminated
    assert not truncated
    assert 5 < total["follower_0"] < 30


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"interval": (0.5, 0.25)}, ValueError, "`interval` must begin before it ends"),
        ({"interval": (0.5,)}, ValueError, "`interval` must be two numbers"),
        ({"interval": (0.5, "x")}, TypeError, "`interval` must be a number, got 'x'"),
        ({"wind": -1.0}, ValueError, "`wind` must be at least 0, got -1"),
        ({"flip": 1}, TypeError, "`flip` must be True or False, got 1"),
        ({"discrete": 1}, ValueError, "`discrete` must be at least 2, got 1"),
        ({"beta": 0.0}, ValueError, "`beta` must be above 0"),
        ({"gamma_leader": 1.0}, ValueError, "`gamma_leader` must be at least 0 and below 1"),
        ({"theta": np.zeros(3)}, ValueError, r"`theta` must have shape \[4546\]"),
        ({"theta": np.full(4546, 200.0)}, ValueError, r"`theta` must lie in theta_space; at \(0,\) it is 200"),
        ({"gust": 1.0}, TypeError, "GuidedCartPole has no argument 'gust'; it takes interval, wind, flip, discrete"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        gym.make(NAMES[0], **arguments)


def test_bad_actions_are_refused():
    env, few = gym.make(NAMES[0]).unwrapped, gym.make(NAMES[0], discrete=3).unwrapped
    env.reset(seed=0)
    few.reset(seed=0)
    for action in (np.nan, 0.5, np.zeros(2), np.array([np.inf]), "x"):
        with pytest.raises(ValueError, match=r"`action` must be finite numbers of shape \[1\]"):
            env.step(action)
    for action in (3, -1, 0.5, np.array([0, 1]), "x"):
        with pytest.raises(ValueError, match="`action` must be 1 of 0 … 2"):
            few.step(action)
    envs = gym.make_vec(NAMES[0], num_envs=2, discrete=3)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="`actions` must be 2 of 0 … 2"):
        envs.step(np.array([0, 3]))


# The linear-quadratic game, led by a network ----------------------------------------------------------------------


def linear_weights(gain):
    """Weights of a 2–64–64–1 network with mean K s: K s = (K s)⁺ − (−K s)⁺, and ReLU leaves what is positive alone."""
    first, second, third = np.zeros((2, 64)), np.zeros((64, 64)), np.zeros((64, 1))
    first[:, 0], first[:, 1] = gain, -np.array(gain)
    second[0, 0] = second[1, 1] = 1.0
    third[:2, 0] = 1.0, -1.0
    hidden = np.zeros(64)
    return np.concatenate([first.reshape(-1), hidden, second.reshape(-1), hidden, third.reshape(-1), [0.0]])


@pytest.mark.slow
def test_a_network_that_is_linear_leads_the_lqr_as_its_gain_does():
    gain = np.array([-9.0, -8.0])
    linear = BilevelWrapper(gym.make("BiLevel/BilevelLQR-v0"))
    best = linear.best_response(gain[None])
    expected = linear.rollout(gain[None], best, Noise([0]), rows=3_000, horizon=100)
    network = BilevelWrapper(gym.make("BiLevel/BilevelLQR-v0", policy="mlp"), linear.follower)
    got = network.rollout(linear_weights(gain), best, Noise([1]), rows=3_000, horizon=100)
    for name in ("r_leader", "r_follower"):
        one, two = (getattr(batch, name).sum(-1)[0] for batch in (got, expected))
        error = ((one.var() + two.var()) / 3_000) ** 0.5
        assert abs(float(one.mean() - two.mean())) < 4 * float(error), name
    state, following = got.state[0], got.next_state[0]
    moved = torch.stack([state[..., 1] + 0.1 * state[..., 2], 0.1 * got.action[0, ..., 0]], -1)
    torch.testing.assert_close(following[..., :2], moved, rtol=0, atol=1e-12)
    # log f_θ is the density of N(K s, W²)
    law = torch.distributions.Normal(following[..., :2] @ torch.from_numpy(gain), 1e-3)
    arrival = network.model(linear_weights(gain)).terms(got).log_arrival[0]
    torch.testing.assert_close(arrival, law.log_prob(following[..., 2]), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings(NORMALISED, UNBOUNDED)
def test_the_lqr_led_by_a_network_passes_the_checks_of_an_environment():
    name = "BiLevel/BilevelLQR-v0"
    env = gym.make(name, policy="mlp")
    assert env.unwrapped.theta_space.shape == (2 * 64 + 64 + 64 * 64 + 64 + 64 + 1,)
    assert env.unwrapped.best_known is None
    sb3_check_env(env.unwrapped)
    envs, singles = gym.make_vec(name, num_envs=3, policy="mlp"), [gym.make(name, policy="mlp") for _ in range(3)]
    seen, _ = envs.reset(seed=2)
    np.testing.assert_array_equal(seen, [env.reset(seed=2 + i)[0] for i, env in enumerate(singles)])
    for k in range(99):
        action = np.random.default_rng(k).normal(size=(3, 1))
        seen, reward, *_ = envs.step(action)
        alone = [env.step(action[i]) for i, env in enumerate(singles)]
        np.testing.assert_array_equal(seen, [step[0] for step in alone])
        np.testing.assert_array_equal(reward, [step[1] for step in alone])
    with pytest.raises(ValueError, match="`follower` must be given: BiLevel/BilevelLQR-v0 offers neither"):
        BilevelWrapper(env)
    with pytest.raises(ValueError, match="`policy` must be one of 'linear', 'mlp', got 'table'"):
        gym.make(name, policy="table")


@pytest.mark.parametrize(("module", "size"), [(guided_cartpole_v0, (320, 480, 3)), (guided_pendulum_v0, (360, 360, 3))])
def test_pictures_show_both_players_actions(module, size):
    pictures = []
    for flip, wind in ((False, 1.0), (False, -1.0), (True, 1.0)):
        env = module.parallel_env(render_mode="rgb_array", flip=flip)
        env.reset(seed=0)
        calm = env.render()
        assert calm.shape == size
        env.step({"leader_0": np.array([wind]), "follower_0": np.array([0.2])})
        pictures.append(env.render())
        assert (pictures[-1] != calm).any()
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] != pictures[2]).any()
