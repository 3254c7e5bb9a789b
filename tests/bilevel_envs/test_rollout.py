"""Scalar env, vector env and fused sampler follow one law, which is the table's."""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

from bilevel_envs import BilevelWrapper, TabularEnv, TabularModel
from bilevel_envs.core.mdp import ConfigurableMDP, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.vector_rollout import vector_rollout
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.parameterizations import Free
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.tabular.rollout import First, table_rollout
from leaders import BCHG
from tests.helpers import ForeignEnv

STEPS = 1_000_000


def counts_of(state, action, following, shape):
    states, actions = shape
    flat = (np.asarray(state).ravel() * actions + np.asarray(action).ravel()) * states + np.asarray(following).ravel()
    return np.bincount(flat, minlength=states * actions * states).reshape(states, actions, states)


def chi_square_p(counts: np.ndarray, transition: np.ndarray) -> float:
    """P-value of all transition frequencies against the table, pairs with few visits left out."""
    visits = counts.sum(-1, keepdims=True)
    expected = visits * transition
    assert counts[transition == 0].sum() == 0  # an impossible move would be a bug, not a fluctuation
    use = (expected > 0) & (visits >= 200)
    statistic = ((counts - expected)[use] ** 2 / expected[use]).sum()
    freedom = use.sum() - (visits[..., 0] >= 200).sum()
    return float(stats.chi2.sf(statistic, freedom))


def scalar_counts(name, shape):
    env = gym.make(name)
    rng = np.random.default_rng(0)
    action = rng.integers(shape[1], size=STEPS).tolist()
    triples = np.empty((STEPS, 3), int)
    state, _ = env.reset(seed=1)
    for k in range(STEPS):
        following, _, terminated, truncated, _ = env.step(action[k])
        triples[k] = state, action[k], following
        state = env.reset()[0] if terminated or truncated else following
    return counts_of(*triples.T, shape)


def sampled_counts(env, sampler, shape):
    uniform = BoltzmannPolicy(torch.full((1, *shape), 1 / shape[1]).double().log())
    best = env.best_response(env.unwrapped.theta)
    best = type(best)(uniform, best.q, best.v, best.residual, best.optimal)
    batch = env.rollout(env.unwrapped.theta, best, Noise([2]), rows=1000, horizon=STEPS // 1000, sampler=sampler)
    assert batch.valid.all()
    return counts_of(batch.state, batch.action, batch.next_state, shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FourRooms", "RandomMDP"])
@pytest.mark.parametrize("way", ["scalar", "steps", "fused"])
def test_transition_frequencies_are_those_of_the_table(make, name, way):
    env = make(name)
    shape = (env.unwrapped.states, env.unwrapped.actions)
    counts = scalar_counts(f"BiLevel/{name}-v0", shape) if way == "scalar" else sampled_counts(env, way, shape)
    assert counts.sum() == STEPS
    transition = env.unwrapped.simulator(env.unwrapped.theta).moves.dense()[0].numpy()
    assert chi_square_p(counts, transition) > 1e-3
    # the test has power: the same counts are far from a slightly different world
    tilted = 0.97 * transition + 0.03 * np.roll(transition, 1, axis=1)
    tilted[transition == 0] = 0
    tilted /= tilted.sum(-1, keepdims=True)
    assert chi_square_p(counts, tilted) < 1e-6


@pytest.mark.parametrize("sampler", ["fused", "steps"])
@pytest.mark.parametrize("name", ["FourRooms", "RandomMDP", "TollBridge"])
def test_a_batch_is_consistent(make, name, sampler):
    env = make(name)
    theta = env.unwrapped.theta
    best = env.best_response(theta)
    limit = env.spec.max_episode_steps
    batch = env.rollout(theta, best, Noise([0, 1]), rows=3, horizon=450, sampler=sampler)
    assert batch.state.shape == (2, 3, 450)
    model = env.unwrapped.simulator(theta)
    ended = batch.terminated | batch.truncated
    assert torch.equal(batch.step[..., 1:] == 0, ended[..., :-1])
    assert torch.equal(batch.step[..., 1:], torch.where(ended[..., :-1], 0, batch.step[..., :-1] + 1))
    assert torch.equal(batch.state[..., 1:][~ended[..., :-1]], batch.next_state[..., :-1][~ended[..., :-1]])
    assert torch.equal(batch.terminated, model.continues[0][batch.state, batch.action] == 0)
    assert torch.equal(batch.truncated, (batch.step == limit - 1) & ~batch.terminated)
    assert torch.equal(batch.r_leader, model.r_leader[0][batch.state, batch.action])
    assert torch.equal(batch.r_follower, model.r_follower[0][batch.state, batch.action])
    assert (model.initial[0][batch.state[batch.starts]] > 0).all()


def test_a_reward_paid_only_on_the_last_step_arrives(make):
    # four rooms: the goal step is the last one of its episode and carries the leader's cost
    env = make("FourRooms")
    best = env.best_response(env.unwrapped.theta)
    for sampler in ("fused", "steps"):
        batch = env.rollout(env.unwrapped.theta, best, Noise([0]), rows=4, horizon=400, sampler=sampler)
        assert int(batch.terminated.sum()) > 10
        torch.testing.assert_close(
            batch.r_leader[batch.terminated],
            torch.full((int(batch.terminated.sum()),), -5 * 0.2 * 104 / 105).double(),
        )
        assert (batch.r_follower[batch.terminated] == 1.0).all()


@pytest.mark.parametrize("sampler", ["fused", "steps"])
def test_a_run_draws_the_same_alone_or_beside_others(make, sampler):
    env = make("FourRooms")
    theta = -0.2 * torch.randn(3, 105, generator=torch.Generator().manual_seed(0)).double().softmax(-1)[:, :-1]
    together = env.rollout(theta, env.best_response(theta), Noise([4, 5, 6]), rows=2, horizon=150, sampler=sampler)
    alone = env.rollout(theta[1], env.best_response(theta[1]), Noise([5]), rows=2, horizon=150, sampler=sampler)
    for name in ("state", "action", "next_state", "r_leader", "terminated", "truncated", "step"):
        assert torch.equal(getattr(together, name)[1], getattr(alone, name)[0])


@pytest.mark.parametrize("sampler", ["fused", "steps"])
def test_whole_episodes_stop_at_their_end(make, sampler):
    env = make("FourRooms")
    best = env.best_response(env.unwrapped.theta)
    batch = env.rollout(
        env.unwrapped.theta, best, Noise([0]), rows=50, horizon=1200, whole_episodes=True, sampler=sampler
    )
    lengths = batch.valid.sum(-1)
    assert int(lengths.max()) == batch.state.shape[-1] < 1200
    assert torch.equal(batch.starts.sum(-1), torch.ones_like(lengths))
    assert torch.equal((batch.valid & batch.terminated).sum(-1), torch.ones_like(lengths))
    assert torch.equal(batch.cut.sum(), torch.tensor(0))


def test_the_sampler_insists_on_same_step_autoreset(make):
    env = make("TollBridge")
    envs = gym.make_vec("BiLevel/TollBridge-v0", num_envs=2, vectorization_mode="sync")
    with pytest.raises(ValueError, match="must autoreset in the mode"):
        vector_rollout(envs, env.best_response(env.unwrapped.theta).policy, Noise([0]), horizon=3)


def test_noise_is_one_stream_per_run():
    together, alone = Noise([3, 4]), Noise([4])
    np.testing.assert_array_equal(together.uniform(5)[1], alone.uniform(5)[0])
    np.testing.assert_array_equal(together.permutation(7)[1], alone.permutation(7)[0])
    state = together.state_dict()
    first = together.normal(2)
    together.load_state_dict(state)
    np.testing.assert_array_equal(together.normal(2), first)


class Foreign(ForeignEnv):
    """Somebody's configurable environment, known by its methods alone; every episode takes exactly five steps."""

    def __init__(self):
        super().__init__(gym.make("BiLevel/RandomMDP-v0").unwrapped)


def test_a_foreign_environment_is_stepped_copy_by_copy():
    gym.register("Foreign-v0", entry_point=Foreign, max_episode_steps=5)
    try:
        env = BilevelWrapper(gym.make("Foreign-v0", disable_env_checker=True))
        theta = np.array([np.zeros(5), np.full(5, 0.7)])
        batch = env.rollout(theta, env.best_response(theta), Noise([0, 1]), rows=2, horizon=12, sampler="steps")
        for run in range(2):  # all copies are cut at once, and each run has its own θ
            model = env.model(theta[run])
            assert torch.equal(batch.r_leader[run], model.r_leader[0][batch.state[run], batch.action[run]])
            assert torch.equal(batch.r_follower[run], model.r_follower[0][batch.state[run], batch.action[run]])
        assert batch.truncated[0, 0].nonzero().flatten().tolist() == [4, 9]
        leader = BCHG(env, policy=Free(np.zeros((1, 5))), sampler="steps", batch_size=50).learn(2)
        assert leader.rows == 10
    finally:
        del gym.registry["Foreign-v0"]


def test_a_time_limit_put_on_by_hand_counts():
    env = BilevelWrapper(gym.wrappers.TimeLimit(gym.make("BiLevel/RandomMDP-v0").unwrapped, 7))
    assert env.time_limit == 7
    for sampler in ("fused", "steps"):
        best = env.best_response(np.zeros(5))
        batch = env.rollout(np.zeros(5), best, Noise([0]), rows=1, horizon=20, sampler=sampler)
        assert batch.truncated[0, 0].nonzero().flatten().tolist() == [6, 13]


def test_theta_and_noise_must_have_the_same_runs(make):
    env = make("RandomMDP")
    theta = np.zeros((3, 5))
    with pytest.raises(ValueError, match=r"`noise` must have one stream per run of `theta` \(3\), got 2"):
        env.rollout(theta, env.best_response(theta), Noise([0, 1]), rows=1, horizon=5)


@dataclass(frozen=True)
class Elsewhere(RandomMDP):
    """A task that overrides nothing but what is simulated."""

    def simulator(self, theta):
        model = self.model(theta)
        return model.with_rewards(torch.full_like(model.r_leader, 7.0), model.r_follower)


@pytest.mark.parametrize("sampler", ["fused", "steps"])
def test_leaders_draw_from_the_simulator_of_a_problem(sampler):
    leader = BCHG(BilevelWrapper(TabularEnv(Elsewhere())), runs=1, sampler=sampler).learn(1)
    horizon = leader.horizon
    expected = 7 * (1 - 0.9**horizon) / 0.1
    assert leader.history["leader_return"][0, 0] == pytest.approx(expected)
    assert RandomMDP().simulates_its_model
    assert not Elsewhere().simulates_its_model


@dataclass(frozen=True)
class Trapdoor(ConfigurableMDP):
    """Shared moves that end the episode in some runs only."""

    theta_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)
    default_theta = np.zeros(1)
    preferences = Preferences(0.9, 0.9, 50.0)  # acts almost at random

    def model(self, theta):
        stays = torch.full((1, 3, 2, 3), 1 / 3, dtype=torch.float64)
        reward = theta[:, :, None].expand(-1, 3, 2)
        continues = torch.ones(len(theta), 3, 2, dtype=torch.float64)
        continues[:, 2, 1] = (theta[:, 0] < 0).double()
        return TabularModel(stays, torch.eye(3, dtype=torch.float64)[:1], reward, reward, continues)


@pytest.mark.parametrize("sampler", ["fused", "steps"])
def test_episodes_may_end_in_some_runs_only(sampler):
    env = BilevelWrapper(TabularEnv(Trapdoor()))
    theta = np.array([[-0.5], [0.5]])
    batch = env.rollout(theta, env.best_response(theta), Noise([0, 1]), rows=20, horizon=50, sampler=sampler)
    assert not batch.terminated[0].any()
    assert batch.terminated[1].any()
    assert (batch.terminated[1] == ((batch.state[1] == 2) & (batch.action[1] == 1))).all()


def test_first_states_out_of_range_are_refused():
    env = BilevelWrapper(TabularEnv(Trapdoor()))
    model, best = env.model([0.0]).detach(), env.best_response([0.0])
    with pytest.raises(ValueError, match="`first.state` must lie in 0 … 2"):
        table_rollout(model, best.policy, Noise([0]), rows=1, horizon=3, first=First(state=np.array([[5]])))
