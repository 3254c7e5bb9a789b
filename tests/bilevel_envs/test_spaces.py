"""Spaces of other people's environments: every kind is led, or refused by name."""

from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import SB3Follower
from bilevel_envs.testing import check_bilevel_env
from bilevel_envs.worlds.declared.spaces import Actions, seen_space

REALS = spaces.Box(-1.0, 1.0, (2, 3), np.float32)
SMALL = {"learning_starts": 20, "policy_kwargs": {"net_arch": [8]}}
SEEN = {
    "box": spaces.Box(0.0, 1.0, (3,), np.float64),
    "picture": spaces.Box(0, 255, (4, 4, 1), np.uint8),
    "integer box": spaces.Box(0, 9, (2,), np.int64),
    "number": spaces.Box(0.0, 1.0, (), np.float32),
    "discrete": spaces.Discrete(5, start=2),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(4),
    "dictionary": spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0.0, 1.0, (2,))}),
    "tuple": spaces.Tuple((spaces.MultiBinary(2), spaces.Dict({"c": spaces.Box(0.0, 1.0, (1,))}))),
}
DONE = {
    "discrete from 3": spaces.Discrete(4, start=3),
    "multi-discrete": spaces.MultiDiscrete([3, 2], start=[1, 5]),
    "multi-binary": spaces.MultiBinary((2, 2)),
    "integer box": spaces.Box(np.array([-1, 2]), np.array([1, 3]), dtype=np.int8),
    "dictionary": spaces.Dict({"gate": spaces.Discrete(2, start=1), "lamps": spaces.MultiBinary(2)}),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.MultiDiscrete([2, 2]))),
    "matrix": REALS,
    "boxes": spaces.Dict({"a": REALS, "b": spaces.Tuple((spaces.Box(0.0, 4.0, (1,), np.float64),))}),
}
REFUSED = [
    spaces.Box(0, 9, (4,), np.int64),
    spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64),
    spaces.Tuple((spaces.Discrete(2), REALS)),
    spaces.Dict({"a": spaces.Text(4)}),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.MultiDiscrete([100, 100]),
    spaces.MultiBinary(64),
]


class Strict(gym.Env):
    """Refuses actions that are no members of its space, and writes into those that are; pays the first entry seen."""

    def __init__(self, seen, done):
        self.observation_space, self.action_space = seen, done

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = 7
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        if isinstance(action, np.ndarray):
            action[...] = 0
        self.left -= 1
        seen = self.observation_space.sample()
        return seen, float(np.ravel(spaces.flatten(self.observation_space, seen))[0]), self.left == 0, False, {}


def led(seen, done, follower):
    env = ConfigurableRewards(
        Strict(seen, done),
        spaces.Box(0.0, 1.0, (1,), np.float64),
        lambda theta, c: theta[..., 0] * c[..., 0],
        lambda theta, c: c[..., 0],
        Preferences(0.9, 0.9, 0.1),
    )
    return BilevelWrapper(env, follower)


@pytest.mark.parametrize("name", [name for name in DONE if name not in ("matrix", "boxes")])
def test_numbers_stand_for_every_joint_action_in_row_major_order(name):
    given, actions = DONE[name], Actions(DONE[name], "a world")
    all_of_them = [actions.of(number) for number in range(actions.space.n)]
    assert all(given.contains(one) for one in all_of_them)
    parts = {
        "discrete from 3": [[3, 4, 5, 6]],
        "multi-discrete": [[1, 2, 3], [5, 6]],
        "multi-binary": [[0, 1]] * 4,
        "integer box": [[-1, 0, 1], [2, 3]],
        "dictionary": [[1, 2], [0, 1], [0, 1]],
        "tuple": [[0, 1, 2], [0, 1], [0, 1]],
    }[name]
    leaves = [np.concatenate([np.ravel(leaf) for leaf in leaves_of(one)]).tolist() for one in all_of_them]
    assert leaves == [list(one) for one in product(*parts)]


def leaves_of(value):
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in leaves_of(one)]
    return [leaf for one in value for leaf in leaves_of(one)] if isinstance(value, tuple) else [value]


def test_vectors_stand_for_boxes_side_by_side():
    given, actions = DONE["boxes"], Actions(DONE["boxes"], "a world")
    assert actions.space.shape == (7,)
    np.testing.assert_array_equal(actions.space.high, [1] * 6 + [4])
    made = actions.of(np.arange(7) / 10)
    assert given.contains(made)
    np.testing.assert_allclose(made["a"], [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(made["b"][0], [0.6])


@pytest.mark.parametrize("name", DONE)
def test_an_environment_is_given_members_of_its_action_space(name):
    algorithm = "SAC" if name in ("matrix", "boxes") else "SoftDQN"
    env = led(SEEN["box"], DONE[name], SB3Follower(algorithm, 40, **SMALL))
    batch = env.rollout(np.full(1, 0.5), env.best_response(np.full(1, 0.5)), Noise([0]), rows=2, horizon=10)
    assert batch.action.shape[:3] == (1, 2, 10)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    env.action_space.seed(0)
    env.step(env.action_space.sample())


@pytest.mark.parametrize("name", SEEN)
def test_every_observation_is_shown_as_a_vector(name):
    given = SEEN[name]
    space = seen_space(given, "a world")
    env = led(given, spaces.Discrete(2), SB3Follower("SoftDQN", 30, **SMALL))
    assert env.observation_space == space
    best = env.best_response(np.full(1, 0.5))
    batch = env.rollout(np.full(1, 0.5), best, Noise([0]), rows=1, horizon=10)
    assert batch.state.shape == (1, 1, 10, spaces.flatdim(given))
    for one in batch.state[0, 0].numpy():
        assert space.contains(one)


def test_stacked_frames_are_shown_as_one_vector():
    env = gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 3)
    found = ConfigurableRewards(
        env,
        spaces.Box(0.0, 1.0, (1,), np.float64),
        lambda theta, c: theta[..., 0] * c[..., 0],
        lambda theta, c: c[..., 0],
        Preferences(0.9, 0.9, 0.1),
    )
    first, _ = found.reset(seed=0)
    second, *_ = found.step(0)
    assert first.shape == (12,)
    np.testing.assert_array_equal(second[:8], first[4:])  # the oldest frame is gone


@pytest.mark.parametrize("given", REFUSED, ids=str)
def test_actions_without_a_form_are_refused_by_name(given):
    with pytest.raises(TypeError, match=r"`env` must have .* Strict has .*(TransformAction|joint actions)"):
        led(SEEN["box"], given, SB3Follower("SoftDQN", 30))


@pytest.mark.parametrize(
    "given", [spaces.Sequence(spaces.Discrete(2)), spaces.Graph(spaces.Discrete(2), None)], ids=str
)
def test_observations_that_are_no_vectors_are_refused_by_name(given):
    with pytest.raises(TypeError, match="`env` must have observations that Gymnasium flattens to a vector; Strict has"):
        led(given, spaces.Discrete(2), SB3Follower("SoftDQN", 30))


@pytest.mark.slow
@pytest.mark.parametrize("name", DONE)
def test_the_checker_gives_an_environment_members_of_its_action_space(name):
    report = check_bilevel_env(led(SEEN["box"], DONE[name], SB3Follower("SoftDQN", 30)).unwrapped, raises=False)
    assert not [one for one in report.findings if "components" in one], report


def test_a_constructor_that_knows_no_render_mode_is_copied():
    gym.register("Strict-v0", lambda: Strict(SEEN["box"], spaces.Discrete(2)))
    try:
        arguments = (spaces.Box(0.0, 1.0, (1,), np.float64), lambda theta, c: theta[..., 0] * c[..., 0])
        env = ConfigurableRewards("Strict-v0", *arguments, lambda theta, c: c[..., 0], Preferences(0.9, 0.9, 0.1))
        copies = env.copies(2)
        copies.configure(np.full(1, 0.5))
        assert copies.reset(seed=0)[0].shape == (2, 3)
    finally:
        gym.registry.pop("Strict-v0")


def test_what_a_reward_raises_is_told_with_the_shapes_that_it_was_given():
    with pytest.raises(ValueError, match=r"`r_leader\(theta, components\)` raised IndexError .* θ \[1, 1, 1\] and"):
        ConfigurableRewards(
            Strict(SEEN["box"], spaces.Discrete(2)),
            spaces.Box(0.0, 1.0, (1,), np.float64),
            lambda theta, c: theta[..., 0] * c[..., 0],
            lambda theta, c: theta[..., 3] * c[..., 0],
            Preferences(0.9, 0.9, 0.1),
        )
