"""The last picture of an episode shows where it ended."""

import gymnasium as gym
import numpy as np

from bilevel_envs.envs.four_rooms import GOAL_STATE, FourRooms


def ended(env):
    """An episode of random actions, to its end."""
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    while True:
        before = observation
        observation, _, terminated, _, _ = env.step(int(rng.integers(env.action_space.n)))
        if terminated:
            return before, observation


def test_the_follower_is_drawn_at_the_goal_when_it_has_arrived():
    env = gym.make("BiLevel/FourRooms-v0", render_mode="rgb_array", max_episode_steps=100_000)
    before, _ = ended(env)
    assert before == GOAL_STATE  # whatever the last action, it was taken there
    np.testing.assert_array_equal(env.render(), FourRooms().draw(GOAL_STATE, FourRooms().default_theta))
    first, _ = env.reset(seed=1)
    np.testing.assert_array_equal(env.render(), FourRooms().draw(first, FourRooms().default_theta))


def test_elsewhere_the_last_picture_is_of_the_state_that_was_reached():
    env = gym.make("BiLevel/TollBridge-v0", render_mode="rgb_array")
    _, after = ended(env)
    problem = env.unwrapped.problem
    np.testing.assert_array_equal(env.render(), problem.draw(after, problem.default_theta))
