"""Problems with contexts: models, episodes and trajectories in one of them, and networks that read them."""

from itertools import product

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, ConfigurableMDP, Contexts, Noise, Preferences, TabularEnv, TabularModel
from bilevel_envs.envs import four_rooms
from bilevel_envs.followers import SB3Follower
from bilevel_envs.parameterizations import CNN, MLP, Box, Budget
from leaders import exact

PUBLISHED = four_rooms.PAIRS.tolist().index([four_rooms.START_STATE, four_rooms.GOAL_STATE])
OTHER = four_rooms.PAIRS.tolist().index([four_rooms.STATE[10, 1], four_rooms.STATE[5, 3]])  # past the target


class Lottery(ConfigurableMDP):
    """Each episode is one step in a state, its context, that is drawn by the world unless one is in force."""

    theta_space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
    default_theta = np.zeros(1)
    preferences = Preferences(0.9, 0.9, 0.2)
    contexts = Contexts(3, lambda index: torch.eye(3)[index], within=True)

    def model(self, theta, context=None):
        initial = torch.full((1, 3), 1 / 3, dtype=torch.float64)
        if context is not None:
            initial = torch.eye(3, dtype=torch.float64)[context]
        stays = torch.eye(3, dtype=torch.float64)[None, :, None]
        reward = theta[:, None].expand(-1, 3, 1)
        return TabularModel(stays, initial, -reward, reward, torch.zeros(1, 3, 1, dtype=torch.float64))


@pytest.fixture
def pairs(make):
    return make("FourRooms", pairs=True, beta=0.02)


def test_the_published_pair_is_the_published_world(pairs, make):
    plain, theta = make("FourRooms", beta=0.02), pairs.problem.default_theta
    with pairs.in_context(PUBLISHED):
        assert exact.objective(pairs, theta) == exact.objective(plain, theta)
        np.testing.assert_array_equal(exact.hypergradient(pairs, theta), exact.hypergradient(plain, theta))


def test_taxes_of_one_type_are_those_of_a_world_with_that_type_alone(make):
    env = make("TaxDesign-small", probabilities=(0.3, 0.7))
    theta = np.array([0.5, 0.1, 0.4, 0.9])
    for kind in range(2):
        alone = BilevelWrapper(gym.make("BiLevel/TaxDesign-small-v0", households=(env.problem.households[kind],)))
        with env.in_context(kind):
            np.testing.assert_allclose(exact.objective(env, theta), exact.objective(alone, theta), rtol=1e-10)
            gradients = exact.hypergradient(env, theta), exact.hypergradient(alone, theta)
        np.testing.assert_allclose(*gradients, rtol=1e-7, atol=1e-9)


def test_the_world_that_draws_its_contexts_is_their_mean(make):
    env = make("TaxDesign-small", probabilities=(0.3, 0.7))
    theta = np.array([0.5, 0.1, 0.4, 0.9])
    with env.in_context([0, 1]):
        of_types = exact.objective(env, np.tile(theta, (2, 1)))
        slopes = exact.hypergradient(env, np.tile(theta, (2, 1)))
    np.testing.assert_allclose([0.3, 0.7] @ of_types, exact.objective(env, theta), rtol=1e-10)
    np.testing.assert_allclose([0.3, 0.7] @ slopes, exact.hypergradient(env, theta), rtol=1e-7, atol=1e-9)


def test_the_hypergradient_in_a_context_is_that_of_central_differences(pairs):
    theta, rng = np.full(104, -0.1 / 104), np.random.default_rng(0)
    direction = rng.standard_normal(104)
    with pairs.in_context(OTHER):
        values = [exact.objective(pairs, theta + sign * 1e-5 * direction) for sign in (1, -1)]
        slope = exact.hypergradient(pairs, theta) @ direction
    np.testing.assert_allclose(slope, (values[0] - values[1]) / 2e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", ["fused", "steps"])
def test_trajectories_in_two_contexts_bring_what_each_is_worth(pairs, sampler):
    theta = np.tile(pairs.problem.default_theta, (2, 1))
    with pairs.in_context([PUBLISHED, OTHER]):
        best, worth = pairs.best_response(theta), exact.objective(pairs, theta)
        batch = pairs.rollout(theta, best, Noise([0, 1]), rows=2000, horizon=400, whole_episodes=True, sampler=sampler)
    returns = (batch.r_leader * batch.valid * 0.99**batch.step).sum(-1).numpy()  # [2, 2000]
    scores = (returns.mean(1) - worth) / (returns.std(1) / 2000**0.5)
    assert abs(worth[0] - worth[1]) > 0.5
    assert (np.abs(scores) < 4).all()
    assert (batch.context[0] == PUBLISHED).all()
    assert (batch.context[1] == OTHER).all()
    np.testing.assert_array_equal(batch.state[:, :, 0], np.tile(four_rooms.PAIRS[[PUBLISHED, OTHER], :1], 2000))


def test_an_episode_begins_and_ends_where_its_context_says():
    env = gym.make("BiLevel/FourRooms-v0", pairs=True, max_episode_steps=10_000)
    state, info = env.reset(seed=3, options={"context": OTHER})
    assert (state, info["context"]) == (four_rooms.STATE[10, 1], OTHER)
    env.action_space.seed(0)
    ended = False
    while not ended:
        at = state
        state, reward, ended, _, _ = env.step(env.action_space.sample())
    assert at == four_rooms.STATE[5, 3]
    assert reward == 1.0
    assert env.reset()[1]["context"] == OTHER  # in force until changed


def test_a_reset_tells_the_context_in_which_its_episode_begins():
    env = gym.make("BiLevel/FourRooms-v0", pairs=True, render_mode="rgb_array")
    inner = env.unwrapped
    inner.configure(inner.theta, context=OTHER)
    state, info = env.reset(seed=0)
    assert (state, info["context"]) == (four_rooms.STATE[10, 1], OTHER)
    inner.enter(PUBLISHED)  # models are of another context from now on, the episode is not
    np.testing.assert_array_equal(env.render(), inner.problem.draw(state, inner.theta, OTHER))
    state, info = env.reset()
    assert (state, info["context"]) == (four_rooms.START_STATE, PUBLISHED)
    np.testing.assert_array_equal(env.render(), inner.problem.draw(state, inner.theta, PUBLISHED))


def test_resets_by_mask_tell_the_context_of_the_last_reset_of_all():
    envs = gym.make_vec("BiLevel/FourRooms-v0", num_envs=2, pairs=True)
    envs.reset(seed=0, options={"context": OTHER})
    mask = np.array([True, False])
    states, infos = envs.reset(options={"reset_mask": mask, "context": PUBLISHED})
    assert (states[0], infos["context"][0]) == (four_rooms.STATE[10, 1], OTHER)


def test_a_reset_in_another_context_tells_the_response_there(pairs):
    best = pairs.reset(seed=0, options={"context": OTHER})[1]["best_response"]
    with pairs.in_context(OTHER):
        expected = pairs.best_response(pairs.problem.default_theta)
    torch.testing.assert_close(best.policy.probs, expected.policy.probs)


def test_copies_that_are_kept_leave_a_context_that_is_no_longer_in_force():
    env, theta = BilevelWrapper(TabularEnv(Lottery())), np.zeros(1)
    best, firsts = env.best_response(theta), []
    for context in (2, None):
        with env.in_context(context):
            batch = env.rollout(theta, best, Noise([0]), rows=60, horizon=1, sampler="steps")
        firsts.append(batch.state.unique().tolist())
    assert firsts == [[2], [0, 1, 2]]


def test_agents_learn_in_the_context_of_their_run():
    follower = SB3Follower("SoftDQN", 8, envs=1, learning_starts=1)
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", pairs=True), follower)
    with env.in_context([OTHER, PUBLISHED]):
        env.best_response(np.tile(env.problem.default_theta, (2, 1)))
    firsts = [int(agent.replay_buffer.observations[0].item()) for agent in follower.agents]
    assert firsts == four_rooms.PAIRS[[OTHER, PUBLISHED], 0].tolist()


def test_households_are_of_the_type_in_force():
    env = gym.make("BiLevel/TaxDesign-small-v0").unwrapped
    env.configure(env.theta, context=1)
    assert {env.reset(seed=seed)[1]["context"] for seed in range(20)} == {1}
    envs = gym.make_vec("BiLevel/TaxDesign-small-v0", num_envs=4)
    envs.configure(np.tile(env.theta, (2, 1)), context=[1, 0])
    assert envs.reset(seed=0)[1]["context"].tolist() == [1, 1, 0, 0]
    envs.enter(None)
    envs.configure(env.theta)
    assert {kind for seed in range(20) for kind in envs.reset(seed=seed)[1]["context"]} == {0, 1}


def test_copies_in_contexts_step_as_single_environments_do():
    envs = gym.make_vec("BiLevel/FourRooms-v0", 4, pairs=True)
    envs.unwrapped.configure(envs.unwrapped.problem.default_theta[None].repeat(2, 0), [PUBLISHED, OTHER])
    seen, infos = envs.reset(seed=5)
    np.testing.assert_array_equal(infos["context"], [PUBLISHED, PUBLISHED, OTHER, OTHER])
    singles = [gym.make("BiLevel/FourRooms-v0", pairs=True) for _ in range(4)]
    firsts = [
        env.reset(seed=5 + i, options={"context": [PUBLISHED, PUBLISHED, OTHER, OTHER][i]})[0]
        for i, env in enumerate(singles)
    ]
    np.testing.assert_array_equal(seen, firsts)
    for action in [0, 1, 2, 3] * 10:
        seen, *_ = envs.step(np.full(4, action))
        steps = [env.step(action) for env in singles]
        shown = [env.reset()[0] if step[2] else step[0] for env, step in zip(singles, steps, strict=True)]
        np.testing.assert_array_equal(seen, shown)


def test_a_context_that_was_entered_is_that_of_the_next_episode():
    env = gym.make("BiLevel/FourRooms-v0", pairs=True)
    env.unwrapped.enter(OTHER)
    state, info = env.reset(seed=0)
    assert (state, info["context"]) == (four_rooms.PAIRS[OTHER, 0], OTHER)
    envs = gym.make_vec("BiLevel/FourRooms-v0", 4, pairs=True)
    seen, infos = envs.reset(seed=0, options={"context": [PUBLISHED, OTHER]})  # one θ for both
    np.testing.assert_array_equal(infos["context"], np.repeat([PUBLISHED, OTHER], 2))
    np.testing.assert_array_equal(seen, four_rooms.PAIRS[infos["context"], 0])
    env.unwrapped.enter([PUBLISHED, OTHER])
    with pytest.raises(ValueError, match="one leading entry per context in force"):
        env.reset()


def test_a_picture_shows_start_and_goal_of_the_context():
    env = gym.make("BiLevel/FourRooms-v0", pairs=True, render_mode="rgb_array")
    pictures = []
    for context in (PUBLISHED, OTHER):
        env.reset(options={"context": context})
        pictures.append(env.render())
    assert (pictures[0] != pictures[1]).any()


def test_what_was_in_force_comes_back(pairs):
    assert pairs.context == 0
    with pairs.in_context(OTHER):
        with pairs.in_context([1, 2]):
            np.testing.assert_array_equal(pairs.context, [1, 2])
        assert pairs.context == OTHER
    with pytest.raises(RuntimeError), pairs.in_context(OTHER):
        raise RuntimeError
    assert pairs.context == 0


def test_a_refused_context_leaves_what_was_there(pairs):
    env = pairs.unwrapped
    env.configure(np.zeros(104), OTHER)
    with pytest.raises(ValueError, match="`context` must lie in 0 … 10505, got 10506"):
        env.configure(env.problem.default_theta, 10506)
    assert env.context == OTHER
    assert (env.theta == 0).all()


@pytest.mark.parametrize("context", [-1, 0.5, "a", [], [[1]], True])
def test_what_is_no_context_is_refused(pairs, context):
    with pytest.raises(ValueError, match="`context` must"), pairs.in_context(context):
        pass


def test_contexts_are_refused_where_there_are_none(make):
    with pytest.raises(ValueError, match="FourRooms has no `contexts`"), make("FourRooms").in_context(0):
        pass
    with pytest.raises(ValueError, match=r"may hold \['theta'\]"):
        make("FourRooms").reset(options={"context": 0})


def test_models_need_a_theta_for_each_context(pairs):
    with pairs.in_context([0, 1]), pytest.raises(ValueError, match="one leading entry per context in force"):
        pairs.model(np.zeros((3, 104)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probabilities": [0.5, 0.4, 0.1]}, r"`probabilities` must be finite numbers of shape \[2\]"),
        ({"probabilities": [0.5, 0.4]}, "sum to 1"),
        ({"features": lambda index: np.zeros(len(index))}, "must return a tensor"),
        ({"features": lambda index: torch.zeros(3)}, "one row per context"),
        ({"features": lambda index: torch.full((len(index),), torch.nan)}, "finite"),
        ({"count": 0}, "count"),
    ],
)
def test_contexts_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Contexts(**({"count": 2, "features": lambda index: torch.eye(2)[index]} | arguments))


def test_nothing_is_drawn_among_contexts_of_probability_zero():
    contexts = Contexts(3, lambda index: torch.eye(3)[index], probabilities=[1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="`contexts` must name one of a probability above 0"):
        contexts.drawn(np.array([0.5]), np.array([1, 2]))


def test_contexts_are_drawn_by_their_probabilities():
    contexts = Contexts(3, lambda index: torch.eye(3)[index], [0.5, 0.2, 0.3])
    uniform = np.array([0.0, 0.49, 0.51, 0.69, 0.71, 0.999])
    np.testing.assert_array_equal(contexts.drawn(uniform), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(contexts.drawn(uniform, np.array([1, 2])), [1, 2, 2, 2, 2, 2])  # 0.4 and 0.6


def networks(runs):
    cells = np.array(list(product(range(3), range(4))))
    base = Budget(np.zeros((runs, 13)), -0.2)
    return {"mlp": MLP(base, Noise(range(runs)), 2 * 12, (5,)), "cnn": CNN(base, Noise(range(runs)), cells, 2, (5, 4))}


def moved(network):
    """With a last layer that is not 0."""
    for index, leaf in enumerate(network.parameters()):
        torch.nn.init.normal_(leaf, std=0.5, generator=torch.Generator().manual_seed(index))
    return network


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_context_begins_at_the_base(kind):
    theta = networks(2)[kind](torch.rand(6, 2, 3, 4, dtype=torch.float64))
    np.testing.assert_allclose(theta.detach(), np.full((6, 12), -0.2 / 13))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_rows_are_contexts_of_runs_the_run_varying_fastest(kind):
    network, seen = moved(networks(2)[kind]), torch.rand(6, 2, 3, 4, dtype=torch.float64)
    together = network(seen)
    for first in (0, 2, 4):
        np.testing.assert_allclose(network(seen[first : first + 2]).detach(), together[first : first + 2].detach())
    with torch.no_grad():  # another run's numbers and features change nothing
        for leaf in network.parameters():
            leaf[1] += 1.0
        seen[1::2] += 1.0
    np.testing.assert_allclose(network(seen)[::2].detach(), together[::2].detach())
    assert not np.allclose(network(seen)[1::2].detach(), together[1::2].detach())


def test_a_convolution_is_that_of_torch_plus_means():
    network = moved(networks(2)["cnn"])
    seen = torch.rand(2, 2, 3, 4, dtype=torch.float64)
    raw = []
    for run in range(2):
        x = seen[run]
        for layer, (weight, mean, bias) in enumerate(zip(network.weights, network.means, network.biases, strict=True)):
            own = torch.nn.Conv2d(x.shape[0], bias.shape[-1], 3, padding=1, dtype=torch.float64)
            with torch.no_grad():
                own.weight.copy_(weight[run].T.reshape(own.weight.shape))
                own.bias.copy_(bias[run, 0] + x.mean((1, 2)) @ mean[run])
                x = own(x)
            x = x.relu() if layer < 2 else x
        raw.append(torch.cat([x.flatten(), torch.zeros(1)]) + network.base.raw[run].detach())
    np.testing.assert_allclose(network(seen).detach(), -0.2 * torch.stack(raw).softmax(-1)[:, :-1].detach())


def test_a_network_of_the_only_map_needs_no_context():
    picture = np.random.default_rng(0).random((2, 3, 4))
    base = Budget(np.zeros((3, 13)), -0.2)
    network = moved(MLP(base, Noise(range(3)), 24, features=picture))
    given = moved(MLP(base, Noise(range(3)), 24))
    np.testing.assert_allclose(network().detach(), given(torch.from_numpy(picture).expand(3, 2, 3, 4)).detach())
    assert given.reads_context
    assert not network.reads_context
    with pytest.raises(ValueError, match="`context` must be given"):
        given()


@pytest.mark.parametrize(
    ("make_network", "message"),
    [
        (lambda base, noise: CNN(base, noise, np.zeros((14, 2), int), 2), "at most the 13 raw numbers"),
        (lambda base, noise: CNN(base, noise, np.zeros((3, 2)), 2), "whole numbers"),
        (lambda base, noise: MLP(base, noise, 0), "inputs"),
        (lambda base, noise: MLP(base, noise, 5)(torch.zeros(2, 4)), "context"),
        (lambda base, noise: MLP(base, noise, 5)(torch.zeros(3, 5)), "R = 2 rows"),
    ],
)
def test_networks_that_do_not_fit_are_refused(make_network, message):
    with pytest.raises(ValueError, match=message):
        make_network(Budget(np.zeros((2, 13)), -0.2), Noise([0, 1]))


def test_a_box_keeps_to_its_bounds_whatever_the_network_says():
    network = moved(MLP(Box(np.zeros((2, 4)), 0.0, 2.0), Noise([0, 1]), 3))
    theta = network(100 * torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert ((theta >= 0) & (theta <= 2)).all()
