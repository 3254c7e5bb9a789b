"""Leaders that are led through contexts: what they draw, what they learn, and that one backward pass is right."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, ConfigurableMDP, Contexts, Preferences, TabularEnv, TabularModel
from bilevel_envs.envs import four_rooms
from bilevel_envs.parameterizations import MLP, Box
from leaders import BCHG, CMAES, HPGD, MBHG, ExactGradient, SoBiRL, ZerothOrder, exact
from leaders.critics.empirical import Empirical
from leaders.experiments import plots, video

BETA = 0.2
OTHER = four_rooms.PAIRS.tolist().index([four_rooms.STATE[10, 1], four_rooms.STATE[5, 3]])  # past the target


class Doors(ConfigurableMDP):
    """One decision, which of three doors; θ pays for each, and the leader wants the door that the context names.

    J_L(θ; k) = g_k − Σ_b g_b θ_b with g = softmax(θ / β).
    """

    theta_space = gym.spaces.Box(0.0, 1.0, (3,), np.float64)
    default_theta = np.full(3, 0.5)
    preferences = Preferences(0.9, 0.9, BETA)
    contexts = Contexts(3, lambda index: torch.eye(3, dtype=torch.float64)[index], [0.5, 0.3, 0.2])

    def model(self, theta, context):
        wanted = torch.eye(3, dtype=torch.float64)[context]
        one = torch.ones(1, 1, 3, 1, dtype=torch.float64)
        ends = torch.zeros(1, 1, 3, dtype=torch.float64)
        return TabularModel(one, one[:, 0, :1, 0], (wanted - theta)[:, None], theta[:, None], ends)

    def parameterization(self, runs, noise):
        return MLP(Box(np.zeros((runs, 3)), 0.0, 1.0), noise, 3, (8,))


@pytest.fixture
def doors():
    return BilevelWrapper(TabularEnv(Doors()))


@pytest.fixture
def pairs(make):
    return make("FourRooms", pairs=True, beta=0.02)


def worth(theta, context):
    """J_L by its formula."""
    g = np.exp(theta / BETA) / np.exp(theta / BETA).sum(-1, keepdims=True)
    return np.take_along_axis(g, context[:, None], -1)[:, 0] - (g * theta).sum(-1)


def test_the_value_in_each_context_is_that_of_the_formula(doors):
    theta = np.random.default_rng(0).random((3, 3))
    with doors.in_context([0, 1, 2]):
        np.testing.assert_allclose(exact.objective(doors, theta), worth(theta, np.arange(3)), rtol=1e-9)


def test_one_backward_pass_moves_the_weights_along_central_differences(pairs):
    leader = ExactGradient(pairs, policy="cnn", contexts=[OTHER], seed=0)
    network = leader.policy
    for leaf in network.parameters():
        torch.nn.init.normal_(leaf, std=0.2, generator=torch.Generator().manual_seed(0))
    with pairs.in_context(leader.contexts.now):
        theta = network(leader.contexts.features)
        gradient = torch.from_numpy(exact.hypergradient(pairs, theta))
        slopes = torch.autograd.grad((gradient * theta).sum(), list(network.parameters()))
        for leaf, slope in zip(network.parameters(), slopes, strict=True):
            direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            values = []
            for sign in (1, -2):
                with torch.no_grad():
                    leaf += sign * 1e-5 * direction
                    values.append(exact.objective(pairs, network(leader.contexts.features))[0])
            with torch.no_grad():
                leaf += 1e-5 * direction
            torch.testing.assert_close(
                (slope * direction).sum().item(), (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-7
            )


@pytest.mark.slow
@pytest.mark.parametrize("leader", [BCHG, HPGD])
def test_the_sampled_estimate_in_a_context_averages_to_the_exact_one(pairs, leader):
    made = leader(pairs, policy="budget", contexts=[OTHER], seed=0, batch_size=2000, learning_rate=1e-9).learn(2)
    with pairs.in_context(OTHER):
        truth = exact.hypergradient(pairs, made.theta)
    cells = np.argsort(-np.abs(truth))[:3]
    samples = made.gradient_samples(60, episodes=100)[:, cells]
    scores = (samples.mean(0) - truth[cells]) / (samples.std(0) / 60**0.5)
    assert (np.abs(scores) < 4).all(), scores
    assert (np.abs(samples.mean(0) / truth[cells] - 1) < 0.3).all()  # a flipped sign fails both


def test_contexts_are_drawn_by_probability_from_those_given(doors):
    leader, drawn = ExactGradient(doors, runs=400, contexts=[0, 2], seed=0), []
    leader.learn(3, callback=lambda locals_, globals_: drawn.append(leader.contexts.now.copy()))
    shares = np.stack([(np.stack(drawn) == k).mean() for k in range(3)])
    np.testing.assert_allclose(shares, [5 / 7, 0, 2 / 7], atol=4 * (0.2 / 1200) ** 0.5)


def test_values_in_the_history_are_those_of_the_drawn_contexts(doors):
    thetas, drawn, leader = [], [], ExactGradient(doors, runs=3, seed=5)

    def note(locals_, globals_):
        drawn.append(leader.contexts.now.copy())

    for _ in range(4):
        before = np.stack([leader.theta_in([k])[0] for k in range(3)])  # [3 contexts, 3 runs, 3]
        leader.learn(1, callback=note)
        thetas.append(before[drawn[-1], np.arange(3)])
    expected = [worth(theta, context) for theta, context in zip(thetas, drawn, strict=True)]
    np.testing.assert_allclose(leader.history["leader_value"], expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("leader", [ExactGradient, BCHG, SoBiRL])
def test_a_network_that_reads_the_context_beats_any_single_theta(doors, leader):
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 41)] * 3), -1).reshape(-1, 3)
    single = sum(p * worth(grid, np.full(len(grid), k)) for k, p in enumerate((0.5, 0.3, 0.2))).max()
    made = leader(doors, seed=0, learning_rate=0.02, **({} if leader is ExactGradient else {"batch_size": 100}))
    theta = made.learn(400).theta_in([0, 1, 2])
    led = np.array([0.5, 0.3, 0.2]) @ worth(theta, np.arange(3))
    best = max(worth(np.eye(3)[:1] * x, np.zeros(1, int))[0] for x in np.linspace(0, 1, 1001))
    assert led > single + 0.5 * (best - single), (led, single, best)
    assert led <= best + 1e-9


@pytest.mark.slow
def test_taxes_by_type_rise(make):
    env = make("TaxDesign-small")
    theta = ExactGradient(env, policy="mlp", seed=0, learning_rate=0.003).learn(50).theta_in([0, 1])
    with env.in_context([0, 1]):
        targeted = exact.objective(env, theta).mean()
    assert targeted > exact.objective(env, env.problem.default_theta) + 0.5
    assert (theta[0] != theta[1]).any()


class Counting(Empirical):
    """A critic of the user's that counts how often it was fitted."""

    fits = 0

    def fit(self, *args):
        super().fit(*args)
        self.fits += 1

    def copies(self, count):
        other = Counting(self.gamma)
        vars(other).update(vars(super().copies(count)), fits=self.fits)
        return other


def test_a_critic_given_as_an_object_begins_anew_in_every_context(doors):
    leader = BCHG(doors, critic=Counting(0.9), seed=0, batch_size=20).learn(3)
    assert leader.critic.fits == 1


@pytest.mark.parametrize("leader", [ExactGradient, BCHG])
def test_a_saved_leader_goes_on_bit_for_bit(doors, tmp_path, leader):
    straight, first = (leader(doors, runs=2, seed=0) for _ in range(2))
    straight.learn(7)
    first.learn(3).save(tmp_path / "leader.zip")
    second = leader.load(tmp_path / "leader.zip", doors)
    np.testing.assert_array_equal(second.contexts.now, first.contexts.now)
    np.testing.assert_array_equal(second.theta, first.theta)
    second.learn(4)
    np.testing.assert_array_equal(second.history.state(), straight.history.state())
    np.testing.assert_array_equal(second.theta_in([0, 1, 2]), straight.theta_in([0, 1, 2]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda leader: pickle.loads(pickle.dumps(leader))])
def test_a_copy_goes_on_bit_for_bit_as_the_leader_itself(pairs, copied):
    leader = BCHG(pairs, policy="cnn", contexts=[0, 5, 9], runs=2, seed=0, batch_size=200).learn(2)
    second = copied(leader).learn(2)
    np.testing.assert_array_equal(second.history.state(), leader.learn(2).history.state())


def test_a_leader_is_loaded_whatever_context_is_in_force(doors, tmp_path):
    with doors.in_context(2):
        ExactGradient(doors, seed=0).learn(1).save(tmp_path / "leader.zip")
    with doors.in_context([0, 1]):
        assert ExactGradient.load(tmp_path / "leader.zip", doors).progress.iterations == 1


def test_leaders_are_made_and_led_whatever_contexts_are_in_force(doors):
    straight = BCHG(doors, runs=2, seed=0).learn(2)
    with doors.in_context([0, 1, 2]):
        inside = BCHG(doors, runs=2, seed=0).learn(2)
        inside.gradient_samples(1)
    np.testing.assert_array_equal(inside.theta, straight.theta)


def test_a_run_is_the_same_alone_and_beside_others(doors):
    beside, alone = ExactGradient(doors, runs=3, seed=4).learn(5), ExactGradient(doors, runs=1, seed=6).learn(5)
    np.testing.assert_allclose(beside.history["leader_value"][:, 2], alone.history["leader_value"][:, 0], rtol=1e-12)


def test_learning_leaves_the_context_in_force_as_it_was(pairs):
    pairs.unwrapped.enter(OTHER)
    BCHG(pairs, seed=0, batch_size=100).learn(2)
    assert pairs.context == OTHER


def test_no_single_map_is_drawn_where_contexts_are(pairs):
    assert plots.incentives_figure(ExactGradient(pairs, contexts=[OTHER], seed=0).learn(1)) is None


def test_raw_samples_of_a_policy_that_reads_contexts_are_those_of_the_chain_rule(doors):
    leader = ExactGradient(doors, runs=2, seed=0, learning_rate=0.1).learn(3)
    theta = leader.policy(doors.problem.contexts.seen(leader.contexts.now))
    total = (theta * torch.from_numpy(leader.gradient_samples(1)[0])).sum()
    slopes = torch.autograd.grad(total, list(leader.policy.parameters()))
    expected = torch.cat([slope.reshape(2, -1) for slope in slopes], -1)
    np.testing.assert_allclose(leader.gradient_samples(1, raw=True)[0], expected, rtol=1e-12, atol=1e-15)


def test_a_film_is_of_the_context_in_force(pairs):
    theta = pairs.problem.default_theta
    with pairs.in_context(OTHER):
        first = video.episode_frames(pairs, theta, "after", steps=1)[0]
    start = int(four_rooms.PAIRS[OTHER, 0])
    np.testing.assert_array_equal(first[video.HEADER :], pairs.problem.draw(start, theta, OTHER))


def test_without_contexts_given_taxes_draw_none(make):
    plain, given = (BCHG(make("TaxDesign-small"), seed=0, batch_size=500, contexts=c) for c in (None, [0, 1]))
    assert plain.contexts is None
    assert given.contexts is not None
    assert given.learn(2).history["leader_value"].shape == (2, 1)


@pytest.mark.parametrize("leader", [MBHG, CMAES, ZerothOrder])
def test_leaders_that_compare_decisions_refuse_contexts(doors, leader):
    with pytest.raises(ValueError, match=f"for {leader.__name__}, which compares decisions in one world"):
        leader(doors)


@pytest.mark.parametrize(
    ("contexts", "message"),
    [([3], "must lie in 0 … 2"), ([0, 0], "each context once"), ([], "a flat list"), ("all", "a flat list")],
)
def test_contexts_to_draw_from_must_exist(doors, contexts, message):
    with pytest.raises(ValueError, match=message):
        ExactGradient(doors, contexts=contexts)


def test_what_needs_contexts_is_refused_without(make, doors):
    env = make("TollBridge")
    with pytest.raises(ValueError, match="`contexts` must be None"):
        BCHG(env, contexts=[0])
    with pytest.raises(ValueError, match="`policy` must not read contexts"):
        BCHG(env, policy=MLP(Box(np.zeros((1, 1)), 0.0, 1.0), BCHG(env).noise, 3))
    with pytest.raises(ValueError, match="`theta_in` needs a problem with contexts"):
        _ = BCHG(env).theta_in([0])
    with pytest.raises(ValueError, match='`exploration` must be "none"'):
        BCHG(doors, exploration="restarts")
