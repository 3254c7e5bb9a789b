"""Sampled returns of batches: the same whatever a batch cuts, and those of whole episodes where it cuts nothing."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Noise, Preferences
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, CMAES, NaivePGD
from leaders.estimators.returns import mean_return, uncut_return
from tests.helpers import rollout, wrapped_env, z_scores

GAMMA = 0.9


def batch_of(ends, rewards):
    """Rows [N, T] of episodes that end where `ends` says."""
    return rollout(np.zeros((1, *ends.shape), int), terminated=ends[None].astype(float), r_leader=rewards[None])


def test_by_hand():
    ends = np.array([[0, 0, 1, 0, 0], [0, 1, 0, 0, 0]])
    rewards = np.array([[1.0, 2.0, 4.0, 8.0, 16.0], [32.0, 64.0, 128.0, 256.0, 512.0]])
    # Four episodes; (1, 2, 4), (8, 16 …), (32, 64), (128, 256, 512 …): the second is not seen for a third step.
    first, second, third = (1 + 8 + 32 + 128) / 4, (2 + 16 + 64 + 256) / 4, (4 + 512) / 3
    found = uncut_return(batch_of(ends, rewards), 0.5)
    assert found.tolist() == pytest.approx([first + 0.5 * second + 0.25 * third])


def test_whole_episodes_have_their_mean():
    env = wrapped_env("FourRooms")
    best = env.best_response(env.unwrapped.theta)
    batch = env.rollout(env.unwrapped.theta, best, Noise([0]), rows=20, horizon=500, whole_episodes=True)
    assert not batch.valid.all()  # rows end when their episode does
    torch.testing.assert_close(uncut_return(batch, GAMMA), mean_return(batch, GAMMA))


@pytest.mark.parametrize(("together", "bias"), [(40, 0.0), (4, 0.08), (1, 0.2)])
def test_cut_episodes_leave_a_bias_of_few_episodes_alone(together, bias):
    noise = np.random.default_rng(0)
    ends = noise.random((4_000, 12)) < 0.15  # rows of 12 steps; episodes of seven on average
    rewards = np.zeros(ends.shape)
    for row, row_ends in zip(rewards, ends, strict=True):
        age = 0
        for t, over in enumerate(row_ends):
            row[t], age = 1.0 + age, 0 if over else age + 1
    alive = 0.85 ** np.arange(12)
    truth = (GAMMA ** np.arange(12) * alive * (1.0 + np.arange(12))).sum()  # as far as a row goes
    parts = [batch_of(ends[i : i + together], rewards[i : i + together]) for i in range(0, 4_000, together)]
    found = np.array([[uncut_return(part, GAMMA).item(), mean_return(part, GAMMA).item()] for part in parts])
    own, cut = z_scores(found, np.full(2, truth))
    if bias:  # of long episodes, which count for too much where they are few
        assert own > 3
        assert found[:, 0].mean() < (1 + bias) * truth
    else:
        assert abs(own) < 4
        assert cut < -20


class Standing(gym.Env):
    """Nothing ever happens."""

    observation_space, action_space = gym.spaces.Box(0.0, 1.0, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


@pytest.mark.parametrize("kind", [BCHG, NaivePGD, CMAES])
@pytest.mark.parametrize("batch_size", [20, 30, 70, 97, 201])
def test_leaders_tell_the_same_return_of_a_constant_whatever_their_batches(kind, batch_size):
    env = ConfigurableRewards(
        gym.wrappers.TimeLimit(Standing(), 20),
        gym.spaces.Box(0.0, 1.0, (1,), np.float64),
        lambda theta, c: theta[..., 0] * c[..., 0],
        lambda theta, c: -c[..., 0] + 0 * theta[..., 0],
        Preferences(0.95, 0.95, 0.1),
        lambda observation, action, reward, after, info: [reward],
    )
    follower = SB3Follower("SoftDQN", 10, learning_starts=5, seed=0)
    how = {} if kind is CMAES else {"batch_size": batch_size}
    leader = kind(BilevelWrapper(env, follower), seed=0, **how).learn(1)
    assert leader.history["leader_return"][0, 0] == pytest.approx(-(1 - 0.95**20) / 0.05)
