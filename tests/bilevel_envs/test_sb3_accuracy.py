"""Followers from Stable-Baselines3 beside exact truths: relabelled components, normalisation, budgets and drift."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Preferences, TabularEnv
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import ObservedFollower, SB3Follower, SoftValueIteration
from bilevel_envs.followers.sb3.drift import drift
from leaders import BCHG
from tests.helpers import random_mdp, toll_bridge
from tests.lake import PREFERENCES, SPACE, Lake, led_lake, logged, r_follower, r_leader

QUICK = {"learning_starts": 50, "buffer_size": 2_000, "policy_kwargs": {"net_arch": [16]}}


def agent_of(algorithm="SoftDQN", steps=300, **arguments):
    own = QUICK if algorithm in ("SoftDQN", "DQN", "SAC") else {"policy_kwargs": QUICK["policy_kwargs"], "n_steps": 50}
    own |= {"batch_size": 50} if algorithm == "PPO" else {}
    return SB3Follower(algorithm, steps, **{**own, **arguments})


def cart(follower, **arguments):
    """CartPole, whose observations have very different sizes, with a price on the cart's distance."""
    env = ConfigurableRewards(
        "CartPole-v1",
        gym.spaces.Box(0.0, 2.0, (1,), np.float64),
        lambda theta, c: c[..., 0] - theta[..., 0] * c[..., 1],
        lambda theta, c: -c[..., 1],
        Preferences(0.95, 0.95, 0.5),
        lambda before, action, reward, after, info: [reward, after[0] ** 2],
    )
    return BilevelWrapper(env, follower, **arguments)


def test_logged_components_give_stored_rewards_at_a_new_theta():
    env = led_lake(agent_of(buffer="relabel", reward_scale=2.0, steps=200))
    one, two = np.array([[0.1, 0.2, 0.3], [0.9, 0.1, 0.7]]), np.array([[0.8, 0.5, 0.9], [0.2, 0.6, 0.4]])
    env.best_response(one)
    env.best_response(two)
    for run, theta in enumerate(two):
        store = env.follower.agents[run].replay_buffer
        assert store.size() == 400
        cell = store.next_observations[:400, 0].argmax(-1)  # where the step led, by which the lake's components go
        c = np.stack([cell == 15, cell % 4 == 0, cell % 4 == 2, np.ones(400)], -1).astype(float)
        np.testing.assert_array_equal(store.components[:400, 0], c)
        wanted = r_follower(torch.from_numpy(theta), torch.from_numpy(c)) / 2
        np.testing.assert_allclose(store.rewards[:400, 0], wanted, atol=1e-6)


def test_a_buffer_of_ones_own_cannot_be_relabelled_by_components():
    env = led_lake(agent_of(buffer="relabel", steps=60, replay_buffer_class=ReplayBuffer))
    with pytest.raises(ValueError, match="`replay_buffer_class` must not be given"):
        env.best_response(np.full(3, 0.5))


def test_relabelled_components_are_saved_with_their_buffer():
    thetas = np.random.default_rng(0).random((3, 3))
    whole, begun, resumed = (led_lake(agent_of(buffer="relabel", steps=100)) for _ in range(3))
    for theta in thetas:
        wanted = whole.best_response(theta)
    for theta in thetas[:2]:
        begun.best_response(theta)
    resumed.follower.load_state_dict(begun.follower.state_dict())
    found = resumed.best_response(thetas[2])
    at = torch.eye(16, dtype=torch.float64)[None]
    assert torch.equal(found.policy.log_probs(at), wanted.policy.log_probs(at))
    assert torch.equal(found.drift, wanted.drift)


@pytest.mark.parametrize("algorithm", ["SoftDQN", "DQN", "PPO", "A2C"])
def test_an_answer_reads_observations_as_the_agent_saw_them(algorithm):
    env = cart(agent_of(algorithm, normalize=True, steps=200))
    best = env.best_response(np.array([0.5]))
    agent, scale = env.follower.agents[0], env.follower._scales[0]
    assert scale.count > 200
    seen = np.random.default_rng(0).normal(size=(50, 4)) * [2.0, 1.0, 0.1, 1.0]
    shown = np.clip((seen - scale.mean) / np.sqrt(scale.var + 1e-8), -10, 10).astype(np.float32)
    tensor = agent.policy.obs_to_tensor(shown)[0]
    with torch.no_grad():
        if algorithm == "SoftDQN":
            wanted = torch.log_softmax(agent.q_net(tensor).double() / 0.5, -1)
        elif algorithm == "DQN":
            share = agent.exploration_rate
            wanted = torch.log(torch.eye(2).double()[agent.q_net(tensor).argmax(-1)] * (1 - share) + share / 2)
        else:
            wanted = torch.log_softmax(agent.policy.get_distribution(tensor).distribution.logits.double(), -1)
    np.testing.assert_allclose(best.policy.log_probs(torch.from_numpy(seen)[None])[0], wanted, rtol=1e-5, atol=1e-6)


def test_sac_is_read_out_through_its_normalisation():
    env = ConfigurableRewards(
        "MountainCarContinuous-v0",
        gym.spaces.Box(0.0, 2.0, (1,), np.float64),
        lambda theta, c: c[..., 0] * theta[..., 0],
        lambda theta, c: c[..., 0],
        Preferences(0.95, 0.95, 0.5),
    )
    wrapped = BilevelWrapper(env, agent_of("SAC", normalize=True, steps=150))
    best = wrapped.best_response(np.array([0.5]))
    agent, scale = wrapped.follower.agents[0], wrapped.follower._scales[0]
    seen = np.array([[-0.5, 0.01], [0.3, -0.02]])
    shown = np.clip((seen - scale.mean) / np.sqrt(scale.var + 1e-8), -10, 10).astype(np.float32)
    with torch.no_grad():
        mean, _, _ = agent.actor.get_action_dist_params(torch.from_numpy(shown))
    middle = best.policy.sample(torch.from_numpy(seen)[None], torch.full((1, 2, 1), 0.5))
    np.testing.assert_allclose(middle[0], torch.tanh(mean), rtol=1e-5, atol=1e-6)
    action = torch.tensor([[0.1], [-0.3]])
    with torch.no_grad():
        q = torch.cat(agent.critic(torch.from_numpy(shown), action), 1).min(1).values.double()
    np.testing.assert_allclose(best.q(torch.from_numpy(seen)[None], action[None].double())[0], q, rtol=1e-4, atol=1e-4)


def test_each_run_of_dqn_answers_with_its_own_exploration():
    env = led_lake(agent_of("DQN", steps=60))
    env.best_response(np.full((2, 3), 0.5))
    for agent, rate in zip(env.follower.agents, (0.2, 0.6), strict=True):
        agent.exploration_rate = rate
    best = env.best_response(np.full((2, 3), 0.5), learn=False)
    probs = best.policy.log_probs(torch.eye(16, dtype=torch.float64)[:1].expand(2, 1, 16)).exp()
    np.testing.assert_allclose(probs.amin(-1)[:, 0], [0.2 / 4, 0.6 / 4])


def test_what_was_seen_is_kept_from_response_to_response_and_in_files():
    env = cart(agent_of(normalize=True, steps=100))
    env.best_response(np.array([0.5]))
    count = env.follower._scales[0].count
    env.best_response(np.array([0.6]))
    assert env.follower._scales[0].count > count + 99
    other = cart(agent_of(normalize=True, steps=100))
    other.follower.load_state_dict(env.follower.state_dict())
    at = torch.zeros(1, 3, 4, dtype=torch.float64)
    one, two = (wrapped.best_response(np.array([0.6]), learn=False) for wrapped in (env, other))
    assert torch.equal(one.policy.log_probs(at), two.policy.log_probs(at))
    env.follower.reset()
    assert env.follower._scales == []


@pytest.mark.parametrize("normalize", [True, False])
def test_agents_are_not_loaded_to_see_observations_in_other_units(normalize):
    env, other = (cart(agent_of(normalize=how, steps=60)) for how in (normalize, not normalize))
    env.best_response(np.array([0.5]))
    with pytest.raises(ValueError, match="`normalize` must be as the agents were saved with"):
        other.follower.load_state_dict(env.follower.state_dict())


def test_a_cold_start_forgets_what_was_seen():
    env = cart(agent_of(normalize=True, start="cold", steps=100))
    for _ in range(2):
        env.best_response(np.array([0.5]))
        assert 100 <= env.follower._scales[0].count < 110


def test_a_cold_start_keeps_what_was_seen_while_a_response_goes_on():
    env = cart(agent_of(normalize=True, start="cold", steps=100, accuracy=0.0, most_steps=300))
    steps = env.best_response(np.array([0.5])).steps
    assert steps > 100
    assert steps <= env.follower._scales[0].count < steps + 10


def test_normalised_observations_must_be_vectors():
    with pytest.raises(ValueError, match="`normalize` must be False where observations are no Box"):
        toll_bridge(agent_of(normalize=True)).best_response(np.array([0.5]))


@pytest.mark.slow
def test_a_response_of_some_thousand_steps_backs_values_up_along_its_episodes():
    # With SB3's own target, which stands still for 10,000 steps, the gap is 0.055.
    best = BilevelWrapper(TabularEnv(Lake()), SB3Follower("SoftDQN", 4_000)).best_response(np.full(3, 0.5))
    assert 0 <= float(best.optimality_gap[0]) < 0.03


@pytest.mark.slow
def test_a_response_goes_on_until_it_is_accurate():
    how = {"learning_rate": 5e-3, "target_update_interval": 20, "gradient_steps": 1, "train_freq": 1}
    theta = np.zeros(random_mdp().theta_space.shape)
    lax = random_mdp(agent_of(accuracy=1e3, most_steps=5_000, **how)).best_response(theta)
    assert lax.steps == 300
    wanted = float(lax.optimality_gap[0]) / 3
    strict = random_mdp(agent_of(accuracy=wanted, most_steps=6_000, **how)).best_response(theta)
    assert 300 < strict.steps < 6_000
    assert strict.steps % 300 == 0
    assert float(strict.optimality_gap[0]) <= wanted
    never = random_mdp(agent_of(accuracy=0.0, most_steps=700, **how)).best_response(theta)
    assert never.steps == 700


def test_runs_that_are_accurate_do_not_go_on():
    theta = np.random.default_rng(0).normal(size=(2, *random_mdp().theta_space.shape))
    once = random_mdp(agent_of()).best_response(theta).optimality_gap
    env = random_mdp(agent_of(accuracy=float(once.mean()), most_steps=600))
    best = env.best_response(theta)
    near = int(once.argmin())
    taken = [agent.num_timesteps for agent in env.follower.agents]
    assert taken[near] == 300
    assert taken[1 - near] == 600
    assert best.steps == 600
    assert best.optimality_gap[near] == once[near]


def test_where_no_gap_is_known_the_rise_of_the_reward_decides():
    env = cart(agent_of(accuracy=1e9, most_steps=1_000, steps=100))
    assert env.best_response(np.array([0.5])).steps == 100
    env = cart(agent_of(accuracy=0.0, most_steps=350, steps=100))
    best = env.best_response(np.array([0.5]))
    assert best.steps in (100, 200, 300, 350)
    assert best.steps == 350 or float(best.improvement[0]) <= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accuracy": 0.1}, "`accuracy` and `most_steps` must be given together"),
        ({"most_steps": 1_000}, "`accuracy` and `most_steps` must be given together"),
        ({"accuracy": -0.1, "most_steps": 1_000}, "`accuracy` must be at least 0"),
        ({"accuracy": 0.1, "most_steps": 10}, "`most_steps` must be at least `steps`, 300, got 10"),
        (
            {"accuracy": 0.1, "most_steps": 500, "first_steps": 900},
            "`most_steps` must be at least `first_steps`, 900, got 500",
        ),
    ],
)
def test_budgets_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        agent_of(**arguments)


def test_the_drift_in_a_table_is_the_discounted_divergence():
    env = toll_bridge()
    new, old = (env.best_response(np.array([theta])) for theta in (0.3, 0.9))
    task = env.task(np.array([0.3]))
    found = drift(task, new.policy, old.policy, [], Noise([0]))
    batch = env.rollout(np.array([0.3]), new, Noise([3]), rows=20_000, horizon=30, whole_episodes=True)
    log_ratio = new.policy.log_prob(batch.state, batch.action) - old.policy.log_prob(batch.state, batch.action)
    gamma = env.preferences.gamma_follower
    each = ((1 - gamma) * gamma ** batch.step.double() * log_ratio * batch.valid).sum(-1)[0]
    assert abs(float(each.mean() - found[0])) < 4 * float(each.std()) / len(each) ** 0.5
    assert float(found[0]) > 0.01


def test_a_follower_with_no_steps_left_is_measured_at_the_present_theta():
    env = random_mdp(agent_of(steps=100, total_steps=100))
    theta = np.random.default_rng(0).normal(size=(2, *env.theta_space.shape))
    env.best_response(theta[0])
    best, model = env.best_response(theta[1]), env.model(theta[1]).detach()
    assert best.steps == 0
    g = best.policy.probs[0].numpy()
    moves = np.einsum("sb,sbt->st", g, model.moves.dense()[0].numpy())
    own = np.linalg.solve(np.eye(10) - 0.9 * moves, (g * (model.r_follower[0].numpy() - 0.2 * np.log(g))).sum(1))
    optimum = SoftValueIteration().best_response(model, env.preferences).v.values[0].numpy()
    assert float(best.optimality_gap[0]) == pytest.approx(float(model.initial[0].numpy() @ (optimum - own)), rel=1e-6)
    assert best.drift.tolist() == [0.0]


def test_the_drift_of_networks_is_that_at_what_was_seen():
    env = cart(agent_of(steps=120))
    first = env.best_response(np.array([0.0]))
    assert first.drift is None
    second = env.best_response(np.array([2.0]))
    assert float(second.drift[0]) > 0
    seen = np.random.default_rng(0).normal(size=(40, 4))
    found = drift(env.task(np.array([2.0])), second.policy, first.policy, [seen], Noise([0]))
    p, q = (best.policy.log_probs(torch.from_numpy(seen)[None])[0].exp() for best in (second, first))
    np.testing.assert_allclose(found[0], (p * (p / q).log()).sum(-1).mean(), rtol=1e-6)
    still = env.best_response(np.array([2.0]), learn=False)
    assert still.drift is second.drift


def test_the_drift_of_actions_that_are_vectors_averages_to_the_divergence():
    made = {}
    for theta in (0.0, 2.0):
        env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), "riccati")
        made[theta] = env.best_response(np.full(env.theta_space.shape, 0.2 + 0.3 * theta))
    task = env.task(np.full(env.theta_space.shape, 0.8))
    seen = np.random.default_rng(0).normal(size=(20_000, *task.observation_space.shape))
    found = drift(task, made[2.0].policy, made[0.0].policy, [seen], Noise([0]))
    (m, s), (n, t) = (made[theta].policy.moments(torch.from_numpy(seen)[None]) for theta in (2.0, 0.0))
    inverse, off = torch.linalg.inv(t), (m - n)[..., None]
    size = m.shape[-1]
    trace = (inverse @ s).diagonal(dim1=-2, dim2=-1).sum(-1)
    exact = (trace - size + (off.mT @ inverse @ off)[..., 0, 0] + torch.logdet(t) - torch.logdet(s)) / 2
    np.testing.assert_allclose(found[0], exact.mean(), rtol=0.1)


def test_the_history_records_the_drift_of_a_follower_that_is_observed():
    leader = BCHG(random_mdp(ObservedFollower(agent_of(steps=100), observations=200)), seed=0).learn(3)
    column = leader.history["follower_drift"][:, 0]
    assert np.isnan(column[0])
    assert (column[1:] > 0).all()


@pytest.mark.slow
def test_normalised_observations_let_an_agent_learn_what_is_far_from_zero():
    lake = gym.wrappers.FlattenObservation(gym.make("FrozenLake-v1"))
    far = gym.wrappers.TransformObservation(lake, lambda seen: 1_000 + 5.0 * seen, gym.spaces.Box(0, 2_000, (16,)))
    theta, cells = np.array([0.9, 0.1, 0.2]), [0, 1, 2, 3, 4, 6, 8, 9, 10, 13, 14]
    seen = 1_000 + 5.0 * torch.eye(16, dtype=torch.float64)[None, cells]
    truth = SoftValueIteration().best_response(TabularEnv(Lake()).model(theta), PREFERENCES).policy.probs[0, cells]
    off = {}

    def seen_from_afar(before, action, reward, after, info):
        return logged(before, action, reward, after.argmax(), info)

    for normalize in (False, True):
        env = ConfigurableRewards(far, SPACE, r_follower, r_leader, PREFERENCES, seen_from_afar)
        how = {"learning_rate": 2e-3, "target_update_interval": 100, "train_freq": 1, "gradient_steps": 1}
        wrapped = BilevelWrapper(env, agent_of(normalize=normalize, steps=3_000, **{**how, "buffer_size": 3_000}))
        best = wrapped.best_response(theta)
        off[normalize] = float((best.policy.log_probs(seen)[0].exp() - truth).abs().mean())
    assert off[True] < 0.1, off
    assert off[False] > off[True] + 0.05, off


def test_a_normalised_world_is_sb3s_own():
    env = cart(agent_of(normalize=True, steps=100))
    env.best_response(np.array([0.5]))
    assert isinstance(env.follower.agents[0].get_vec_normalize_env(), VecNormalize)
