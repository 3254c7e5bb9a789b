"""Masks of actions that an environment gives in `info`."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Noise, Preferences
from bilevel_envs.core.follower import FollowerError
from bilevel_envs.followers import SB3Follower
from leaders import BCHG

SMALL = {"policy_kwargs": {"net_arch": [8]}}


class Doors(gym.Env):
    """Three doors, of which one is shut; the step after next it is another. Who takes it breaks the world."""

    observation_space, action_space = gym.spaces.Box(0.0, 2.0, (1,), np.float64), gym.spaces.Discrete(3)

    def __init__(self, given=True):
        self.given = given

    def told(self):
        mask = np.ones(3, np.int8)
        mask[self.shut] = 0
        return np.array([float(self.steps % 2)]), {"action_mask": mask if self.given or self.steps < 3 else None}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.shut = 0, int(self.np_random.integers(3))
        return self.told()

    def step(self, action):
        assert action != self.shut, "this door is shut"
        self.steps, self.shut = self.steps + 1, int(self.np_random.integers(3))
        seen, info = self.told()
        over = self.steps == 20
        return seen, float(action), over, False, {} if over else info


def led(follower, env=None):
    made = ConfigurableRewards(
        Doors() if env is None else env,
        gym.spaces.Box(0.0, 2.0, (1,), np.float64),
        lambda theta, c: theta[..., 0] * c[..., 0],
        lambda theta, c: -c[..., 0],
        Preferences(0.9, 0.9, 0.5),
    )
    return BilevelWrapper(made, follower)


def test_an_agent_takes_possible_doors_alone():
    env = led(SB3Follower("SoftDQN", 120, learning_starts=60, seed=1, **SMALL))
    leader = BCHG(env, seed=0, batch_size=100).learn(1)  # in which a shut door would raise
    assert np.isfinite(leader.history["leader_return"]).all()
    assert leader.history["grad_norm"][0, 0] > 0
    assert env.observation_space.shape == (4,)
    best = env.best_response(leader.theta, learn=False)
    batch = env.rollout(leader.theta, best, Noise([5]), rows=4, horizon=20)
    possible = np.take_along_axis(batch.state[..., 1:].numpy(), batch.action.numpy()[..., None], -1)
    assert possible.all()


def test_shut_doors_have_no_value():
    env = led(SB3Follower("SoftDQN", 120, learning_starts=60, **SMALL))
    best = env.best_response(np.array([1.0]))
    state = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]], dtype=torch.float64)
    each = [best.policy.log_prob(state, torch.tensor([[door]])).exp().item() for door in range(3)]
    assert each[1] == 0
    assert sum(each) == pytest.approx(1, abs=1e-5)
    values = torch.stack([best.q(state, torch.tensor([[door]])) for door in (0, 2)])
    assert best.v(state).item() == pytest.approx((0.5 * torch.logsumexp(values / 0.5, 0)).item(), rel=1e-5)


@pytest.mark.parametrize(
    "follower",
    [
        SB3Follower("PPO", 64, n_steps=64, **SMALL),
        SB3Follower("DQN", 60, **SMALL),
        SB3Follower("SoftDQN", 60, normalize=True, **SMALL),
    ],
    ids=["PPO", "DQN", "normalised"],
)
def test_followers_that_read_no_masks_are_refused(follower):
    with pytest.raises(ValueError, match='`algorithm` must be "SoftDQN", .* where .* gives masks of actions'):
        BCHG(led(follower))


def test_a_mask_that_is_missing_later_is_named():
    env = led(SB3Follower("SoftDQN", 60, **SMALL), Doors(given=False))
    with pytest.raises(FollowerError, match=r"`env` must give 'action_mask' in `info` at every step.*got None"):
        BCHG(env, batch_size=50).learn(1)


def test_masks_of_joint_actions_are_refused():
    class Joint(Doors):
        action_space = gym.spaces.MultiDiscrete([2, 2])

    with pytest.raises(TypeError, match="`env` must have actions in a Discrete where `info` has 'action_mask'"):
        led(SB3Follower("SoftDQN", 60), Joint())
