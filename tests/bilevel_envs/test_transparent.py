"""Wrappers between the environment and the leader: heeded, harmless or refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

from bilevel_envs import BilevelWrapper, LeaderEnv
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import SoftValueIteration
from leaders import BCHG, exact

ROOMS = "BiLevel/FourRooms-v0"


class Logged(gym.Wrapper):
    """Has no `step` of its own."""

    def close(self):
        self.closed = True


class Shaped(wrappers.TimeLimit):
    """Poses as a time limit."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, reward + 1.0, *rest


class Elsewhere(gym.Wrapper):
    """Begins where it likes."""

    def reset(self, *, seed=None, options=None):
        return 7, {}


class Wider(gym.Wrapper):
    """Claims more actions than there are."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Discrete(9)


HARMLESS = [
    lambda env: env,
    lambda env: wrappers.TimeLimit(env, 7),
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RenderCollection,
    wrappers.Autoreset,
    Monitor,
    Logged,
    lambda env: BilevelWrapper(env, SoftValueIteration()),
]
REFUSED = {
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda r: 2 * r),
    "ClipReward": lambda env: wrappers.ClipReward(env, -1.0, 1.0),
    "NormalizeReward": wrappers.NormalizeReward,
    "TransformAction": lambda env: wrappers.TransformAction(env, lambda b: b, env.action_space),
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.25),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda s: s, env.observation_space),
    "TimeAwareObservation": lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 7)),
    "Shaped": lambda env: Shaped(env, 7),
    "Elsewhere": Elsewhere,
    "Wider": Wider,
}


@pytest.mark.parametrize("wrap", HARMLESS)
def test_harmless_wrappers_change_nothing(wrap):
    bare = gym.make(ROOMS, render_mode="rgb_array").unwrapped
    env = BilevelWrapper(wrap(bare))
    theta = env.theta
    plain = BilevelWrapper(gym.make(ROOMS).unwrapped)
    batch, expected = (
        one.rollout(theta, one.best_response(theta), Noise([0]), rows=2, horizon=5) for one in (env, plain)
    )
    assert torch.equal(batch.state, expected.state)
    assert exact.objective(env, theta) == exact.objective(plain, theta)
    assert env.time_limit in (None, 7)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("around", [lambda env: env, Logged, lambda env: wrappers.TimeLimit(env, 9)])
def test_wrappers_that_may_change_something_are_refused_by_name(name, around):
    env = around(REFUSED[name](gym.make(ROOMS, render_mode="rgb_array").unwrapped))
    message = f"`env` must have no wrapper inside that may change rewards, .* got {name}: .* into the problem"
    with pytest.raises(TypeError, match=message):
        BilevelWrapper(env)
    with pytest.raises(TypeError, match=message):
        exact.objective(env, env.unwrapped.theta)


def test_a_game_is_not_looked_for_behind_wrappers():
    game = gym.make("BiLevel/ToyMarkovGame-v0")
    LeaderEnv(Logged(game))
    with pytest.raises(TypeError, match="got ClipReward"):
        LeaderEnv(wrappers.ClipReward(game, -1.0, 1.0))


def test_wrappers_around_the_bilevel_wrapper_work_and_are_no_env_of_a_leader():
    inner = BilevelWrapper(gym.make(ROOMS))
    doubled = wrappers.TransformReward(inner, lambda r: 2 * r)
    before = doubled.reset(seed=0), doubled.step(0)[1]
    assert before[1] == 2 * (inner.reset(seed=0), inner.step(0)[1])[1]
    with pytest.raises(TypeError, match="`env` must be a BilevelWrapper"):
        BCHG(doubled)


def test_theta_goes_through_the_wrapper():
    env = BilevelWrapper(gym.make(ROOMS))
    half = np.full(104, -0.1 / 104)
    env.configure(half)
    np.testing.assert_array_equal(env.theta, half)
    np.testing.assert_array_equal(env.unwrapped.theta, half)
    env.reset(seed=0)
    assert env.step(0)[1] == pytest.approx(-0.1 / 104)  # what a step in any other cell than the goal costs
    with pytest.raises(ValueError, match="`theta` must lie in theta_space"):
        env.configure(np.full(104, 0.1))
    np.testing.assert_array_equal(env.theta, half)
    with pytest.raises(AttributeError):  # plain assignment would change nothing
        env.theta = np.zeros(104)
