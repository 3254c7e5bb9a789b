"""Agents of several runs that learn in processes of their own, as they would one after another."""

import os

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Preferences
from bilevel_envs.core.follower import FollowerError
from bilevel_envs.followers import SB3Follower
from bilevel_envs.followers.sb3 import settings
from bilevel_envs.followers.sb3.side_by_side import side_by_side
from leaders import BCHG, RandomSearch
from tests.helpers import toll_bridge

SMALL = {"learning_starts": 10, "policy_kwargs": {"net_arch": [8]}}


def cart(follower):
    env = ConfigurableRewards(
        "CartPole-v1",
        gym.spaces.Box(0.0, 2.0, (1,), np.float64),
        lambda theta, c: c[..., 0] - theta[..., 0] * c[..., 1],
        lambda theta, c: -c[..., 1],
        Preferences(0.9, 0.9, 0.1),
        lambda observation, action, reward, after, info: [reward, after[0] ** 2],
    )
    return BilevelWrapper(env, follower)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "kind", "further"),
    [
        (toll_bridge, BCHG, {}),
        (toll_bridge, BCHG, {"start": "cold", "accuracy": 1e-9, "most_steps": 60}),
        (cart, BCHG, {"buffer": "relabel", "normalize": True}),
        (cart, RandomSearch, {"buffer": "keep"}),
    ],
)
def test_results_do_not_depend_on_the_number_of_processes(world, kind, further):
    found = []
    for processes in (1, 2):
        follower = SB3Follower("SoftDQN", 30, processes=processes, **SMALL, **further)
        size = {"batch_size": 60} if kind is BCHG else {"episodes": 1}
        leader = kind(world(follower), runs=3, **size).learn(3)
        found.append((leader.history.state(), leader.theta, follower.spent, len(follower.agents)))
    (history, theta, spent, agents), (other, *others) = found
    np.testing.assert_array_equal(history, other)
    np.testing.assert_array_equal(theta, others[0])
    assert [spent, agents] == others[1:]


def test_shares_are_worked_on_in_order_and_in_other_processes():
    assert side_by_side(lambda run: run**2, [0, 1, 2, 5], 3) == [0, 1, 4, 25]
    assert os.getpid() not in side_by_side(lambda run: os.getpid(), [0, 1], 2)


def test_what_a_process_raises_is_raised():
    def fails(run):
        if run == 2:
            raise FollowerError(f"run {run} failed")
        return run

    with pytest.raises(FollowerError, match="run 2 failed"):
        side_by_side(fails, [0, 1, 2], 2)


def test_a_process_that_is_killed_is_named():
    with pytest.raises(FollowerError, match=r"runs \[1\] has ended without a word.*Take fewer `processes`"):
        side_by_side(lambda run: os._exit(1) if run else run, [0, 1], 2)


def test_systems_that_do_not_fork_take_one_process(monkeypatch):
    monkeypatch.setattr(settings, "can_fork", lambda: False)
    SB3Follower("SoftDQN")
    with pytest.raises(ValueError, match="`processes` must be 1 on a system that does not fork processes, got 2"):
        SB3Follower("SoftDQN", processes=2)
