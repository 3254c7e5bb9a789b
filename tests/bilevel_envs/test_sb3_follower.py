"""Followers from Stable-Baselines3: what they give is what they do, in the environment's units."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.logger import Logger

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper, Preferences, TabularModel
from bilevel_envs.core.follower import BestResponse, FollowerError, NotAvailableError
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import ObservedFollower, Riccati, SB3Follower, SoftValueIteration
from bilevel_envs.followers.sb3.answers import functions
from bilevel_envs.followers.sb3.soft_dqn import SoftDQN
from bilevel_envs.networks.policies import NetworkGaussian, NetworkQ, NetworkV
from leaders import BCHG, NaivePGD
from tests.helpers import building, random_mdp, toll_bridge

SMALL = {"net_arch": [16]}
QUICK = {"learning_starts": 50, "buffer_size": 2_000, "policy_kwargs": SMALL}


def soft_dqn(steps=300, **arguments):
    return SB3Follower("SoftDQN", steps, **{**QUICK, **arguments})


@pytest.mark.slow
def test_soft_dqn_comes_to_the_soft_optimum():
    how = {"learning_rate": lambda left: 3e-3 * left + 1e-5, "target_update_interval": 50, "batch_size": 128}
    how |= {"learning_starts": 200, "buffer_size": 10_000, "gradient_steps": 4, "train_freq": 1, "gamma": 0.9}
    how.pop("gamma")
    for scale in (1.0, 10.0):  # what the agent is paid in makes no difference
        env = toll_bridge(
            SB3Follower("SoftDQN", 6_000, envs=4, reward_scale=scale, policy_kwargs={"net_arch": [64]}, **how)
        )
        theta = np.array([0.7])
        best, truth = env.best_response(theta), toll_bridge().best_response(theta)
        assert float((best.policy.probs - truth.policy.probs)[0, 0].abs().max()) < 0.03  # at home
        assert float((best.q.values - truth.q.values)[0, :3].abs().max()) < 0.05
        assert 0 <= float(best.optimality_gap[0]) < 0.01
        assert best.steps == 6_000


def test_the_target_of_soft_dqn_is_soft():
    env = toll_bridge(soft_dqn())
    env.best_response(np.array([0.5]))
    agent = env.follower.agents[0]
    agent.set_logger(Logger(None, []))
    state = {name: weight.clone() for name, weight in agent.q_net.state_dict().items()}
    data = agent.replay_buffer.sample(64)
    later = agent.q_net_target(data.next_observations).detach().double()
    v_next = 0.2 * torch.log(torch.exp(later / 0.2).sum(1))
    wanted = data.rewards[:, 0].double() + (1 - data.dones[:, 0]) * 0.9 * v_next
    q = agent.q_net(data.observations).gather(1, data.actions)[:, 0]
    expected = torch.autograd.grad(((q - wanted.float()) ** 2).mean(), list(agent.q_net.parameters()))
    taken = []
    agent.replay_buffer.sample = lambda *_, **__: data
    agent.max_grad_norm = 1e9
    agent.policy.optimizer.step = lambda: taken.extend(p.grad.clone() for p in agent.q_net.parameters())
    agent.train(1, 64)
    for own, true in zip(taken, expected, strict=True):
        torch.testing.assert_close(own, true, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(weight, state[name]) for name, weight in agent.q_net.state_dict().items())


def test_soft_dqn_acts_by_its_boltzmann_policy():
    env = toll_bridge(soft_dqn(exploration_final_eps=0.25, exploration_fraction=0.01))
    best = env.best_response(np.array([0.5]))
    agent = env.follower.agents[0]
    torch.manual_seed(0)
    actions = agent.predict(np.zeros(40_000, int))[0]
    wanted = 0.75 * best.policy.probs[0, 0] + 0.25 / 2
    share = float((actions == 0).mean())
    assert abs(share - float(wanted[0])) < 4 * (0.25 / 40_000) ** 0.5
    assert agent.predict(np.zeros(5, int), deterministic=True)[0].std() == 0


def squashed(scale=0.3):
    def network(x):
        return torch.stack([x.sum(-1) / 2, torch.full(x.shape[:-1], np.log(scale))], -1)

    return NetworkGaussian((network,), torch.tensor([-2.0]).double(), torch.tensor([6.0]).double())


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_densities_of_actions_are_in_real_units(scale):
    policy = squashed(scale)
    state = torch.tensor([[[0.3, 0.4]]]).double()
    grid = torch.linspace(-2, 6, 400_001, dtype=torch.float64)[1:-1]
    density = policy.log_prob(state.expand(1, len(grid), 2), grid[None, :, None]).exp()[0]
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=2e-3)
    uniform = (np.arange(20_000) + 0.5) / 20_000
    drawn = policy.sample(state.expand(1, 20_000, 2), uniform[None, :, None])[0, :, 0]
    mean = float(torch.trapezoid(density * grid, grid))
    assert float(drawn.mean()) == pytest.approx(mean, abs=2e-2)
    cdf = float(torch.trapezoid(density[grid < 3], grid[grid < 3]))
    assert float((drawn < 3).double().mean()) == pytest.approx(cdf, abs=2e-3)


def test_sb3_itself_draws_from_the_density_that_is_told():
    env = building(SB3Follower("SAC", 150, action_range=20.0, **QUICK))
    best = env.best_response(np.full(8, 0.5))
    state = torch.tensor([[[1.0, -2.0, 0.5, 3.0]]]).double()
    agent = env.follower.agents[0]
    torch.manual_seed(0)
    scaled = agent.predict(np.repeat(state[0].numpy(), 20_000, 0).astype(np.float32))[0]
    own = torch.from_numpy(20.0 * scaled.astype(float))
    ours = best.policy.sample(state.expand(1, 20_000, 4), np.random.default_rng(0).random((1, 20_000, 2)))[0]
    error = (own.var(0) / 20_000 + ours.var(0) / 20_000).sqrt()
    assert ((own.mean(0) - ours.mean(0)).abs() < 4 * error).all()
    assert ((own.std(0) / ours.std(0)).log().abs() < 0.05).all()
    with torch.no_grad():
        seen = torch.from_numpy(np.repeat(state[0].numpy(), 5, 0)).float()
        action, log_density = agent.actor.action_log_prob(seen)
    real = 20.0 * action.double()
    told = best.policy.log_prob(state.expand(1, 5, 4), real[None])[0]
    np.testing.assert_allclose(told, log_density.double() - 2 * np.log(20.0), atol=1e-2)


def test_soft_values_are_in_real_units():
    # critics that know the truth in the agent's units must give the truth in the environment's
    env = building()
    theta = np.full(8, 0.5)
    truth, scale = env.best_response(theta), 50.0
    low, high = torch.tensor([-30.0, -40.0]).double(), torch.tensor([30.0, 40.0]).double()
    gain, spread = truth.policy.gain[0].float(), truth.policy.covariance[0].diagonal().sqrt()

    def actor(x):  # nearly linear: tanh of little, and independent entries, as SAC's
        mean = -(x @ gain.T) / high.float()
        return torch.cat([mean, (spread / high).log().float().expand_as(mean)], -1)

    policy = NetworkGaussian((actor,), low, high)
    bonus = 0.1 * policy.log_volume

    def critic(x, b):
        real = policy.real(b.double())
        return ((truth.q(x.double()[None], real[None])[0] + bonus) / scale)[:, None]

    q = NetworkQ((critic,), policy, scale, -bonus)
    state = 0.3 * torch.randn(1, 200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    action = truth.policy.sample(state, np.random.default_rng(0).random((1, 200, 2)))
    torch.testing.assert_close(q(state, action), truth.q(state, action), rtol=1e-5, atol=1e-4)
    v = NetworkV(q, 0.1)
    torch.testing.assert_close(v(state), truth.v(state), rtol=0, atol=0.02)
    torch.testing.assert_close(v.gradient(state), truth.v.gradient(state), rtol=0.02, atol=0.3)
    assert v.tiled(3)(state.repeat(3, 1, 1)).shape == (3, 200)


def test_the_agent_is_paid_entropy_in_real_units():
    env = building(SB3Follower("SAC", 60, action_range=(-10.0, 10.0), reward_scale=4.0, **QUICK))
    env.best_response(np.full(8, 0.5))
    agent = env.follower.agents[0]
    assert float(agent.ent_coef_tensor) == pytest.approx(0.1 / 4)
    stored = agent.replay_buffer
    s, b = (torch.from_numpy(part[:60, 0]).double()[None] for part in (stored.observations, stored.actions))
    reward = env.model(np.full(8, 0.5)).r_follower(s, 10 * b)[0]
    bonus = 0.1 * 2 * np.log(10.0)
    np.testing.assert_allclose(stored.rewards[:60, 0], (reward + bonus) / 4, rtol=1e-4, atol=1e-4)


def test_the_optimality_gap_is_the_shortfall_of_the_soft_return():
    env = random_mdp(soft_dqn())
    theta = np.random.default_rng(0).normal(size=env.theta_space.shape)
    best = env.best_response(theta)
    model, g = env.model(theta).detach(), best.policy.probs[0].numpy()
    moves = np.einsum("sb,sbt->st", g, model.moves.dense()[0].numpy())
    reward = (g * (model.r_follower[0].numpy() - 0.2 * np.log(g))).sum(1)
    own = np.linalg.solve(np.eye(10) - 0.9 * moves, reward)
    optimum = SoftValueIteration().best_response(model, env.preferences).v.values[0].numpy()
    assert float(best.optimality_gap[0]) == pytest.approx(float(model.initial[0].numpy() @ (optimum - own)), rel=1e-6)
    assert float(best.optimality_gap[0]) > 0.01


def test_the_optimality_gap_in_a_linear_world_is_a_sampled_shortfall():
    env = building(SB3Follower("SAC", 60, action_range=20.0, **QUICK))
    theta = np.full(8, 0.5)
    env.best_response(theta)
    truth = Riccati().best_response(env.model(theta).detach(), env.preferences)
    scale = torch.full((2,), 100.0, dtype=torch.float64)
    gain, spread = truth.policy.gain[0].float(), truth.policy.covariance[0].diagonal().sqrt()

    def actor(x):
        mean = -(x @ gain.T) / 100
        return torch.cat([mean, (spread / 100).log().float().expand_as(mean)], -1)

    nearly = NetworkGaussian((actor,), -scale, scale, squashed=False)
    best = BestResponse(nearly, None, None, torch.zeros(1), optimal=False)
    shortfall = env.follower._shortfall(env.task(theta), nearly)
    assert best.behavior_policy is nearly
    assert abs(float(shortfall[0])) < 10  # the optimum is −2,018

    def lazy(x):  # half the gain costs much
        return torch.cat([actor(x)[:, :2] / 2, actor(x)[:, 2:]], -1)

    worse = NetworkGaussian((lazy,), -scale, scale, squashed=False)
    shortfall = env.follower._shortfall(env.task(theta), worse)
    assert float(shortfall[0]) > 30


def test_a_follower_keeps_its_budgets_of_steps_and_runs_through_its_schedule():
    rates = []
    rate = lambda left: rates.append(left) or 1e-3  # noqa: E731
    follower = soft_dqn(200, first_steps=400, total_steps=700, batch_size=32, learning_rate=rate)
    env, theta = toll_bridge(follower), np.array([0.5])
    steps = []
    for _ in range(4):
        rates.clear()
        best = env.best_response(theta)
        steps.append(best.steps)
        if best.steps:
            assert rates[-1] < 0.02  # each response runs through the whole schedule
            assert max(rates[1:]) > 0.6
    assert steps == [400, 200, 100, 0]
    assert follower.agents[0].num_timesteps == follower.spent == 700
    total = soft_dqn(200, total_steps=400, schedule="total", learning_rate=lambda left: rates.append(left) or 1e-3)
    env = toll_bridge(total)
    env.best_response(theta)
    assert 0.5 <= rates[-1] < 0.52
    env.best_response(theta)
    assert rates[-1] < 0.02


def test_episodes_of_the_training_may_be_shorter():
    seen = []

    class Watched(building().__class__):
        def copies(self, count, theta, max_episode_steps=None, run=None):
            seen.append(max_episode_steps)
            return super().copies(count, theta, max_episode_steps, run)

    agent = SB3Follower("SAC", 40, envs=2, episode_steps=5, learning_starts=100, buffer_size=100)
    env = Watched(gym.make("BiLevel/BuildingThermalControl-v0"), agent)
    env.best_response(np.full(8, 0.5))
    assert seen == [5]
    (learnt,) = agent.agents
    done = learnt.replay_buffer.dones[:20]
    np.testing.assert_array_equal(done, [[step % 5 == 4] * 2 for step in range(20)])
    np.testing.assert_array_equal(learnt.replay_buffer.timeouts[:20], done)  # cut, not ended: values go on
    assert env.time_limit == 100


def test_an_agent_is_not_taken_into_another_world():
    agent = soft_dqn(60)
    toll_bridge(agent).best_response(np.array([0.5]))
    other = BilevelWrapper(gym.make("BiLevel/RandomMDP-v0"), agent)
    with pytest.raises(
        ValueError, match=r"`env` must be one like that in which the follower has learnt, .* `reset\(\)`"
    ):
        other.best_response(other.unwrapped.theta)


def test_an_error_of_sb3_says_that_sb3_refuses():
    with pytest.raises(ValueError, match="SB3's SoftDQN refuses its arguments `policy`: Policy Nope unknown"):
        toll_bridge(SB3Follower("SoftDQN", 60, policy="Nope")).best_response(np.array([0.5]))


def test_dqn_answers_with_its_best_action_where_states_are_vectors():
    env = gym.make("CartPole-v1")
    agent = DQN("MlpPolicy", env, seed=0)
    agent.exploration_rate = 0.2
    policy, q, v = functions("DQN", [agent], 2, env.action_space, None, 0.1, 1.0)
    assert (q, v) == (None, None)
    states = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 30, 4)))
    best = torch.from_numpy(agent.predict(states.view(-1, 4).numpy().astype(np.float32), deterministic=True)[0])
    chances = policy.log_probs(states).exp()
    torch.testing.assert_close(chances.gather(-1, best.view(2, 30, 1)), torch.full((2, 30, 1), 0.9).double())
    torch.testing.assert_close(chances.sum(-1), torch.ones(2, 30).double())


def test_time_limits_hold_in_foreign_environments():
    gym.register("Plain-v0", entry_point=Plain, max_episode_steps=20)
    try:
        env = BilevelWrapper(gym.make("Plain-v0", disable_env_checker=True))
        for limit, last in ((None, 20), (7, 7)):
            copies = env.copies(2, np.array([0.0]), limit)
            copies.reset(seed=0)
            cut = next(k for k in range(1, 30) if copies.step(copies.action_space.sample())[3].any())
            assert cut == last
            copies.close()
    finally:
        del gym.registry["Plain-v0"]


def test_copies_of_a_foreign_environment_are_kept_between_responses_and_closed_in_the_end():
    made, closed = [], []

    class Counted(Plain):
        def __init__(self):
            super().__init__()
            made.append(self)

        def close(self):
            closed.append(self)

    gym.register("Counted-v0", entry_point=Counted, max_episode_steps=20)
    try:
        follower = soft_dqn(40, learning_starts=10, envs=2)
        env = BilevelWrapper(gym.make("Counted-v0", disable_env_checker=True), follower)
        thetas = [np.array([[0.0], [1.0]]), np.array([[0.5], [0.2]]), np.array([[0.3], [0.9]])]
        for theta in thetas:
            warm = env.best_response(theta)
        assert len(made) == 1 + 2
        for limit in (5, 6):  # a time limit asks for no other copies
            copies = env.copies(4, thetas[0][0], limit)
            copies.reset(seed=0)
            cut = next(k for k in range(1, 30) if copies.step(copies.action_space.sample())[3].any())
            assert cut == limit
            copies.close()
        assert len(made) == 1 + 4
        env.close()
        assert set(closed) == set(made)
        fresh = BilevelWrapper(
            gym.make("Counted-v0", disable_env_checker=True), soft_dqn(40, learning_starts=10, envs=2)
        )
        for theta in thetas:  # what is answered does not depend on whether copies are kept
            fresh._inside.close_copies()
            anew = fresh.best_response(theta)
        assert len(made) == 5 + 1 + 3 * 2
        torch.testing.assert_close(warm.policy.probs, anew.policy.probs, atol=0, rtol=0)
    finally:
        del gym.registry["Counted-v0"]


def test_moments_of_a_squashed_gaussian_are_those_of_many_draws():
    def network(x):
        return torch.cat([x / 3, 0.2 * x - 1], -1)

    low, high = torch.tensor([-2.0, -1.0]).double(), torch.tensor([6.0, 3.0]).double()
    policy = NetworkGaussian((network,), low, high)
    state = torch.tensor([[[0.5, -2.0], [1.5, 1.0]]]).double()
    mean, covariance = policy.moments(state)
    drawn = policy.sample(state.expand(400_000, 2, 2)[None], np.random.default_rng(0).random((1, 400_000, 2, 2)))[0]
    torch.testing.assert_close(mean[0], drawn.mean(0), atol=0.01, rtol=0)
    for at in range(2):
        torch.testing.assert_close(covariance[0, at], torch.cov(drawn[:, at].mT), atol=0.02, rtol=0.01)


def test_agents_with_a_cold_start_begin_anew():
    env = toll_bridge(soft_dqn(100, start="cold"))
    for _ in range(2):
        env.best_response(np.array([0.5]))
        assert env.follower.agents[0].num_timesteps == 100
    assert env.follower.spent == 200


@pytest.mark.parametrize(("buffer", "stored"), [("clear", 100), ("keep", 200), ("relabel", 200)])
def test_earlier_transitions_are_kept_relabelled_or_dropped(buffer, stored):
    env = random_mdp(soft_dqn(100, buffer=buffer, reward_scale=2.0))
    one, two = np.random.default_rng(0).normal(size=(2, *env.theta_space.shape))
    env.best_response(one)
    env.best_response(two)
    store = env.follower.agents[0].replay_buffer
    assert store.size() == stored
    state, action = store.observations[:stored, 0, 0], store.actions[:stored, 0, 0]
    at = [env.model(theta).r_follower[0].numpy()[state, action] / 2 for theta in (one, two)]
    if buffer == "keep":
        np.testing.assert_allclose(store.rewards[:100, 0], at[0][:100], atol=1e-5)
        np.testing.assert_allclose(store.rewards[100:200, 0], at[1][100:], atol=1e-5)
    else:
        np.testing.assert_allclose(store.rewards[:stored, 0], at[1], atol=1e-5)


def test_transitions_are_relabelled_in_every_run():
    env = random_mdp(soft_dqn(100, buffer="relabel"))
    one, two = np.random.default_rng(0).normal(size=(2, 2, *env.theta_space.shape))
    env.best_response(one)
    env.best_response(two)
    for run, theta in enumerate(two):
        store = env.follower.agents[run].replay_buffer
        state, action = store.observations[:200, 0, 0], store.actions[:200, 0, 0]
        wanted = env.model(theta).r_follower[0].numpy()[state, action]
        np.testing.assert_allclose(store.rewards[:200, 0], wanted, atol=1e-5)


def test_the_agent_tells_time_limits_from_ends_of_episodes():
    agent = SB3Follower("SoftDQN", 300, **QUICK)
    env = random_mdp(agent)  # truncated after 100 steps, never terminated
    env.best_response(np.zeros(env.theta_space.shape))
    store = agent.agents[0].replay_buffer
    assert store.timeouts[99, 0]
    assert store.timeouts[:300].sum() == 3
    env = toll_bridge(SB3Follower("SoftDQN", 30, **QUICK))
    env.best_response(np.array([0.5]))
    store = env.follower.agents[0].replay_buffer
    assert store.dones[:30].sum() == 15  # two steps to work
    assert store.timeouts[:30].sum() == 0
    ended = store.dones[:30, 0] > 0
    assert set(store.next_observations[:30, 0, 0][ended]) == {3}  # what was reached, not the next episode's home


def test_relabelling_leaves_rewards_that_do_not_depend_on_theta():
    env = building(SB3Follower("SAC", 60, action_range=20.0, buffer="relabel", **QUICK))
    env.best_response(np.full(8, 0.5))
    before = env.follower.agents[0].replay_buffer.rewards[:60].copy()
    env.best_response(np.full(8, 0.9))
    after = env.follower.agents[0].replay_buffer.rewards[:60]
    np.testing.assert_allclose(before, after, rtol=1e-3, atol=1e-2)  # r_F is free of θ here


def test_relabelling_needs_known_rewards():
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", observation="vector"), soft_dqn(60, buffer="relabel"))
    with pytest.raises(ValueError, match='`buffer` must be "clear" or "keep" here'):
        env.best_response(env.unwrapped.theta)


@pytest.mark.slow
def test_runs_learn_apart_and_reproducibly():
    theta = np.array([[0.2], [1.4]])
    best = toll_bridge(soft_dqn()).best_response(theta)
    again = toll_bridge(soft_dqn()).best_response(theta)
    np.testing.assert_array_equal(best.policy.log_probs, again.policy.log_probs)
    alone = toll_bridge(soft_dqn()).best_response(theta[:1])
    np.testing.assert_array_equal(best.policy.log_probs[0], alone.policy.log_probs[0])
    assert not torch.equal(best.policy.log_probs[0], best.policy.log_probs[1])


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    toll_bridge(soft_dqn()).best_response(np.array([0.5]))
    found = torch.rand(2), np.random.rand(2), random.random()  # noqa: NPY002
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[2] == expected[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "make"),
    [
        (toll_bridge, lambda: soft_dqn(100)),
        (toll_bridge, lambda: soft_dqn(100, buffer="keep")),
        (building, lambda: SB3Follower("SAC", 60, action_range=20.0, **QUICK)),
        (toll_bridge, lambda: ObservedFollower(SB3Follower("A2C", 100, n_steps=50), 300, forget=0.5)),
    ],
)
def test_a_run_goes_on_bit_for_bit(env, make, tmp_path):
    size = {"batch_size": 200} if env is building else {}
    straight = BCHG(env(make()), runs=2, **size).learn(3)
    first = BCHG(env(make()), runs=2, **size).learn(2)
    first.save(tmp_path / "leader.zip")
    second = BCHG.load(tmp_path / "leader.zip", env(make())).learn(1)
    np.testing.assert_array_equal(straight.history.state(), second.history.state())
    np.testing.assert_array_equal(straight.theta, second.theta)
    assert straight.history["follower_steps"][-1][0] == (3 * 100 if env is toll_bridge else 180) + (
        900 if "Observed" in repr(make()) else 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["DQN", "PPO", "A2C"])
def test_algorithms_without_soft_values_say_so(algorithm):
    how = {"DQN": {**QUICK, "exploration_final_eps": 0.1}, "PPO": {"n_steps": 64}, "A2C": {}}[algorithm]
    env = toll_bridge(SB3Follower(algorithm, 128, **how))
    best = env.best_response(np.array([0.5]))
    np.testing.assert_allclose(best.policy.probs.sum(-1), 1)
    with pytest.raises(NotAvailableError, match=f"Q_F is not available from {algorithm}, whose values are not soft"):
        best.q(torch.zeros(1, 1, dtype=int), torch.zeros(1, 1, dtype=int))
    NaivePGD(env).learn(2)  # it asks for g alone
    with pytest.raises(NotAvailableError, match=r"V_F is not available from .*ObservedFollower\(SB3Follower"):
        BCHG(env).learn(1)
    leader = BCHG(toll_bridge(ObservedFollower(SB3Follower(algorithm, 128, **how), 500))).learn(2)
    assert np.isfinite(leader.history["grad_norm"]).all()


def test_dqn_is_greedy_but_for_its_exploration():
    env = toll_bridge(SB3Follower("DQN", 128, **QUICK, exploration_final_eps=0.1))
    best = env.best_response(np.array([0.5]))
    np.testing.assert_allclose(sorted(best.policy.probs[0, 0].tolist()), [0.05, 0.95], atol=1e-9)


def test_ppo_gives_the_density_that_it_draws_from():
    env = building(SB3Follower("PPO", 64, n_steps=64, batch_size=32))
    best = env.best_response(np.full(8, 0.5))
    agent = env.follower.agents[0]
    state = torch.randn(1, 6, 4, dtype=torch.float64)
    normal = agent.policy.get_distribution(state[0].float()).distribution
    action = best.policy.sample(state, np.random.default_rng(0).random((1, 6, 2)))
    np.testing.assert_allclose(
        best.policy.log_prob(state, action)[0],
        normal.log_prob(action[0].float()).sum(-1).detach(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_an_agent_may_begin_from_a_file(tmp_path):
    env = toll_bridge(soft_dqn(200))
    env.best_response(np.array([0.5]))
    path = tmp_path / "agent.zip"
    env.follower.agents[0].save(path)
    other = toll_bridge(soft_dqn(1, model_file=path, learning_starts=10))
    best = other.best_response(np.array([0.5]))
    wanted = env.follower.agents[0].q_net(torch.arange(4)).detach()
    np.testing.assert_allclose(best.q.values[0], wanted, atol=1e-6)
    path.unlink()
    lost = toll_bridge(soft_dqn(1, model_file=path, start="cold"))
    with pytest.raises(
        FollowerError, match=r"outer iteration 0: .*`model_file` must be a zip of SB3's save; there is none"
    ):
        BCHG(lost).learn(1)


class Failing:
    """Answers well so many times, and then not."""

    beta = None

    def __init__(self, how, after):
        self.how, self.after, self.calls = how, after, 0

    def __repr__(self):
        return "Failing()"

    def best_response(self, model, preferences, start=None):
        best = SoftValueIteration().best_response(model, preferences, start)
        self.calls += 1
        if self.calls > self.after:
            if self.how == "raises":
                raise ZeroDivisionError("its own reasons")
            best.policy.log_probs[0, 1] = float("nan")
        return best


@pytest.mark.parametrize(
    ("how", "message"),
    [("raises", "ZeroDivisionError: its own reasons"), ("nan", r"its policy \(log_probs\) holds NaN")],
)
def test_a_failing_follower_stops_the_run_and_nothing_is_lost(how, message, tmp_path):
    leader = BCHG(toll_bridge(Failing(how, 3)), runs=2)
    with pytest.raises(FollowerError, match=f"outer iteration 3: the follower failed .*{message}"):
        leader.learn(10)
    assert len(leader.history) == leader.progress.iterations == 3
    leader.save(tmp_path / "leader.zip")
    again = BCHG.load(tmp_path / "leader.zip", toll_bridge(Failing(how, 10**9))).learn(2)
    straight = BCHG(toll_bridge(Failing(how, 10**9)), runs=2).learn(5)
    np.testing.assert_array_equal(again.history.state(), straight.history.state())


def test_weights_that_are_not_finite_are_named():
    env = toll_bridge(SB3Follower("DQN", 100, **QUICK, learning_rate=lambda left: 1e-3 if left == 1 else float("nan")))
    with pytest.raises(FollowerError, match=r"outer iteration 0: .*left policy.* with NaN or infinite entries"):
        NaivePGD(env).learn(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SB3Follower("Sac"), "`algorithm` must be one of 'SAC', 'SoftDQN'"),
        (lambda: SB3Follower(dict), "`algorithm` must be a name or a subclass of SB3's BaseAlgorithm"),
        (lambda: SB3Follower("SAC", 0), "`steps` must be at least 1"),
        (lambda: SB3Follower("SAC", episode_steps=0), "`episode_steps` must be at least 1"),
        (lambda: SB3Follower("SAC", start="hot"), "`start` must be one of 'warm', 'cold'"),
        (lambda: SB3Follower("SAC", buffer="drop"), "`buffer` must be one of"),
        (lambda: SB3Follower("SAC", schedule="total"), '`total_steps` must be given with schedule="total"'),
        (lambda: SB3Follower("SAC", tensorboard_log="/tmp"), "`tensorboard_log` must not be given to the algorithm"),
        (lambda: SB3Follower("SAC", gamma=0.5), "`gamma` must not be given to the algorithm: it is γ_F"),
        (lambda: SB3Follower("SAC", ent_coef="auto"), "`ent_coef` must not be given: it is β"),
        (lambda: SB3Follower("SAC", reward_scale=0), "`reward_scale` must be above 0"),
        (lambda: SoftDQN("MlpPolicy", None, beta=0), "`beta` must be above 0"),
        (
            lambda: SB3Follower("SoftDQN", stepz=3),
            r"neither SB3Follower nor SoftDQN has an argument `stepz` \(did you mean 'steps'\?\)",
        ),
        (lambda: SB3Follower("PPO", ent_coef=0.1), "`ent_coef` must not be given"),
        (lambda: SB3Follower("PPO", buffer="keep"), "`buffer` must be .clear. for PPO"),
        (lambda: SB3Follower("DQN", action_range=2.0), "`action_range` must be None for DQN"),
        (lambda: SB3Follower(action_range="abc"), r"`action_range` must be a number, one per action, or a tuple"),
        (lambda: SB3Follower(action_range=-1), "`action_range` must be finite and above 0, .* got -1"),
        (lambda: SB3Follower(action_range=(3, -3)), r"`action_range` must be .* got \(3, -3\)"),
        (lambda: SB3Follower(action_range=(1,)), r"`action_range` must be a number, one per action, or a tuple"),
        (lambda: SB3Follower("SoftDQN", batch_size=0), "`batch_size` must be at least 1, got 0"),
        (lambda: SB3Follower(buffer_size=-5), "`buffer_size` must be at least 1, got -5"),
        (
            lambda: toll_bridge(SB3Follower("SoftDQN", 20, buffer_size=10**13)).best_response(np.zeros(1)),
            "SoftDQN refuses its arguments `policy`, `buffer_size`: Unable to allocate",
        ),
        (lambda: SB3Follower(model_file=3), "`model_file` must be a path or None, got 3"),
        (
            lambda: toll_bridge(SB3Follower("SAC")).best_response(np.zeros(1)),
            "`algorithm` must be one of SoftDQN, DQN, PPO, A2C for",
        ),
        (lambda: SB3Follower(stepz=3), "neither SB3Follower nor SAC has an argument `stepz`"),
        (
            lambda: toll_bridge(SB3Follower(steps=20, action_range=2.0)).best_response(np.zeros(1)),
            "`action_range` must be None for SoftDQN",
        ),
        (
            lambda: building(soft_dqn()).best_response(np.zeros(8)),
            "`algorithm` must be one of SAC, PPO, A2C for actions",
        ),
        (
            lambda: building(SB3Follower(action_range=[1, 2, 3])).best_response(np.zeros(8)),
            r"`action_range` must fit actions of shape \[2\], got \[1, 2, 3\]",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "theta", "state", "algorithm"),
    [
        (toll_bridge, np.zeros(1), torch.zeros(1, 1, dtype=torch.int64), "SoftDQN"),
        (building, np.full(8, 0.5), torch.zeros(1, 1, 4, dtype=torch.float64), "SAC"),
    ],
)
def test_an_agent_that_is_not_named_goes_with_the_actions(world, theta, state, algorithm):
    values = []
    for named in (None, algorithm):
        follower = SB3Follower(named, 60, learning_starts=20)
        said = repr(follower)
        assert said.startswith(f"SB3Follower({named!r}, steps=60")
        values.append(world(follower).best_response(theta).v(state))
        assert follower.kind == algorithm
        assert repr(follower) == said  # by which saved leaders know their follower
        assert NaivePGD(world(SB3Follower(named, 60))).progress.iterations == 0  # which asks it whether it can learn
    torch.testing.assert_close(*values, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("algorithm", "how"), [("SoftDQN", {"learning_starts": 10, "buffer": "keep"}), ("PPO", {"n_steps": 32})]
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_agents_that_were_saved_ask_for_as_many_environments(algorithm, how):
    saved = SB3Follower(algorithm, 32, envs=1, **how)
    toll_bridge(saved).best_response(np.zeros(1))
    loaded = SB3Follower(algorithm, 32, envs=2, **how)
    loaded.load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match=f"`envs` must be 1, as the {algorithm} was saved with, got 2"):
        toll_bridge(loaded).best_response(np.zeros(1))


def test_what_sb3_asserts_is_told_with_the_arguments():
    follower = SB3Follower("SoftDQN", 32, envs=3, train_freq=(1, "episode"))
    with pytest.raises(ValueError, match=r"refuses to learn with `envs` = 3 and \{'train_freq'.*use only one env"):
        toll_bridge(follower).best_response(np.zeros(1))


def test_an_action_range_must_fit_the_actions():
    env = building(SB3Follower("SAC", 60, action_range=[1.0, 2.0, 3.0], **QUICK))
    with pytest.raises(ValueError, match=r"`action_range` must fit actions of shape \[2\], got \[1.0, 2.0, 3.0\]"):
        env.best_response(np.full(8, 0.5))


def test_an_observed_agent_has_a_beta_of_its_own():
    for inside, outside, wanted in ((0.9, None, 0.9), (None, 0.9, 0.2), (0.5, 0.7, 0.5)):
        agent = soft_dqn(60, beta=inside)
        env = toll_bridge(ObservedFollower(agent, 100, beta=outside))
        env.best_response(np.array([0.5]))
        assert agent.agents[0].beta == wanted
        assert env.preferences.beta == (0.2 if outside is None else outside)


def test_a_response_is_a_snapshot():
    env = building(SB3Follower("SAC", 80, action_range=20.0, **QUICK))
    state = torch.randn(1, 5, 4, dtype=torch.float64)
    first = env.best_response(np.full(8, 0.5))
    before = first.v(state), first.policy.log_prob(state, torch.zeros(1, 5, 2, dtype=torch.float64))
    second = env.best_response(np.full(8, 0.5))
    torch.testing.assert_close(first.v(state), before[0], rtol=0, atol=0)
    torch.testing.assert_close(first.policy.log_prob(state, torch.zeros(1, 5, 2, dtype=torch.float64)), before[1])
    assert not torch.equal(second.v(state), before[0])


def test_a_saved_leader_is_loaded_with_the_same_follower_only(tmp_path):
    BCHG(toll_bridge(soft_dqn(100, beta=0.3))).learn(1).save(tmp_path / "leader.zip")
    for other in ({"beta": 0.4}, {"beta": 0.3, "reward_scale": 2.0}, {"beta": 0.3, "first_steps": 200}):
        with pytest.raises(ValueError, match="`env` must be the task that the leader was saved in; follower"):
            BCHG.load(tmp_path / "leader.zip", toll_bridge(soft_dqn(100, **other)))


def test_a_refused_call_trains_no_agent():
    env = toll_bridge(soft_dqn(100))
    leader = BCHG(env, runs=2).learn(1)
    steps = [agent.num_timesteps for agent in env.follower.agents]
    with pytest.raises(ValueError, match=r"`runs` must be as many as the follower was trained with \(2\), got 1"):
        env.best_response(leader.theta[0])
    assert [agent.num_timesteps for agent in env.follower.agents] == steps
    env.follower.reset()
    assert env.best_response(leader.theta[0]).steps == 100


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "fills"), [(32, 32), (256, 100)])  # a batch, but half of the steps at most
def test_an_emptied_buffer_fills_before_it_is_learnt_from(batch_size, fills):
    env = toll_bridge(soft_dqn(200, learning_starts=10, train_freq=1, batch_size=batch_size))
    env.best_response(np.array([0.5]))
    agent = env.follower.agents[0]
    updates = agent._n_updates
    env.best_response(np.array([0.5]))
    assert agent._n_updates - updates == 200 - fills
    assert agent.learning_starts == 10


def test_subclasses_are_known_by_their_kind():
    class Mine(SAC):
        pass

    assert SB3Follower(Mine).kind == "SAC"
    assert SB3Follower(DQN).kind == "DQN"
    assert SB3Follower(SoftDQN).kind == "SoftDQN"
    assert SB3Follower("SoftDQN").soft
    assert not SB3Follower("PPO").soft


def test_gradient_samples_train_the_follower_no_further():
    env = toll_bridge(soft_dqn(100))
    leader = BCHG(env)
    with pytest.raises(FollowerError, match="has learnt nothing yet"):
        leader.gradient_samples(2)
    leader.learn(1)
    spent = env.follower.spent
    assert leader.gradient_samples(3).shape == (3, 1)
    assert env.follower.spent == spent


def test_states_without_a_runs_axis_are_refused_by_a_learnt_policy():
    policy = building(SB3Follower("SAC", 60, action_range=20.0, **QUICK)).best_response(np.full(8, 0.5)).policy
    for state in (np.zeros(4), np.zeros((2, 4))):
        with pytest.raises(ValueError, match=r"`state` must have a leading runs axis, of length 1, .* state\[None\]"):
            policy.sample(state, np.zeros(4))


def test_a_learnt_policy_makes_the_trajectories():
    env = building(SB3Follower("SAC", 60, action_range=20.0, **QUICK))
    theta = np.full(8, 0.5)
    best = env.best_response(theta)
    for sampler in ("fused", "steps"):
        batch = env.rollout(theta, best, Noise([0]), rows=2, horizon=5, sampler=sampler)
        again = best.policy.log_prob(batch.state, batch.action)
        assert again.isfinite().all()
        assert float(batch.action.abs().max()) <= 20


class Plain(gym.Env):
    """Nobody's environment: two states, a move to either, and a price on staying."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)
    theta_space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
    preferences = Preferences(0.9, 0.9, 0.1)

    def __init__(self):
        self.configure(np.zeros(1))

    def configure(self, theta):
        self.theta = np.asarray(theta, float)

    def model(self, theta):
        theta = torch.as_tensor(theta).reshape(-1, 1)
        moves = torch.eye(2, dtype=torch.float64)[None, None].expand(1, 2, 2, 2)
        reward = torch.stack([1 - theta.expand(-1, 2), torch.zeros(len(theta), 2, dtype=torch.float64)], -1)
        initial = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        return TabularModel(moves, initial, reward.detach(), reward)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        reward = float(1 - self.theta[0]) if action == 0 else 0.0
        self.state = int(action)
        return self.state, reward, False, False, {"leader_reward": reward}


@pytest.mark.slow
def test_an_agent_learns_in_a_foreign_environment():
    gym.register("Plain-v0", entry_point=Plain, max_episode_steps=20)
    try:
        env = BilevelWrapper(
            gym.make("Plain-v0", disable_env_checker=True), soft_dqn(2_000, learning_rate=3e-3, envs=2)
        )
        for theta, likely in ((0.0, True), (1.0, False)):
            best = env.best_response(np.array([theta]))
            assert (float(best.policy.probs[0, 0, 0]) > 0.9) == likely
    finally:
        del gym.registry["Plain-v0"]
