"""Vector environments of tables against recorded trajectories, and what `copy=False` means."""

from copy import deepcopy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import bilevel_envs  # noqa: F401  (registers BiLevel/*)

RECORD = Path(__file__).parents[1] / "data" / "vector_trajectories.npz"  # see `__main__`, and tests/data/README.md
MASK = np.array([True, False, False, True, False, False])
CASES = {
    "four_rooms": ("FourRooms", {"max_episode_steps": 7}, 40, 0),
    "vectors": ("FourRooms", {"max_episode_steps": 5, "observation": "vector"}, 12, 1),
    "without_limit": ("TollBridge", {"max_episode_steps": -1}, 700, 2),  # beyond a block of random numbers
    "both_ends": ("TollBridge", {"max_episode_steps": 2}, 9, 3),  # terminated and truncated at once
    "moving_starts": ("RandomMDP", {"max_episode_steps": 3}, 700, 4),
    "game": ("ToyMarkovGame", {"max_episode_steps": 4}, 30, 5),
    "large_seeds": ("RandomMDP", {"states": 40, "branching": 20, "actions": 2}, 250, 2**40),
}
EPSILON = float(np.finfo(float).eps)


def thetas(envs, rng):
    """One θ for each of three runs, inside the space."""
    space = envs.unwrapped.theta_space
    low, high = np.maximum(space.low, -1), np.minimum(space.high, 1)
    drawn = low + (high - low) * rng.random((3, *space.shape))
    if len(space.shape) == 2:  # a policy's table
        return drawn / drawn.sum(-1, keepdims=True)
    return drawn / space.shape[0]  # within the four rooms' budget


def flat(step):
    """What a step or a reset returns, with every array of the infos by its path."""
    *values, infos = step
    found = {str(index): value for index, value in enumerate(values)}
    for key, value in infos.items():
        inner = {f"{key}.{name}": array for name, array in value.items()} if isinstance(value, dict) else {key: value}
        found |= inner
    finals = found.pop("final_obs", None)
    if finals is not None:
        seen = [index for index, one in enumerate(finals) if one is not None]
        assert seen == np.flatnonzero(found["_final_obs"]).tolist()
        found["final_obs"] = np.stack([finals[index] for index in seen])
    return found


def trajectory(name, kwargs, steps, seed, **more):
    """Six environments: three runs, a new θ half-way, a reset of some, a reset with a θ, a reset with a seed."""
    rng = np.random.default_rng(seed)
    envs = gym.make_vec(f"BiLevel/{name}-v0", num_envs=6, **kwargs, **more)
    actions = rng.integers(int(envs.single_action_space.n), size=(steps, 6))
    events = {
        steps // 4: lambda: envs.reset(options={"reset_mask": MASK}),
        steps // 3: lambda: envs.reset(seed=seed + 3, options={"reset_mask": ~MASK}),
        steps // 2: lambda: envs.reset(options={"theta": thetas(envs, rng)}),
        steps - 2: lambda: envs.reset(seed=[seed, None, 5, None, None, 6]),
    }
    told = [flat(envs.reset(seed=seed))]
    for k, action in enumerate(actions):
        if k in events:
            told.append(flat(events[k]()))
        told.append(flat(envs.step(action)))
    return {
        key: (
            np.concatenate([np.array(one[key]) for one in told if key in one]),
            np.array([key in one for one in told]),
        )
        for key in sorted({key for one in told for key in one})
    }


@pytest.mark.parametrize("case", CASES)
def test_trajectories_are_the_recorded_ones(case):
    record = np.load(RECORD)
    found = trajectory(*CASES[case])
    assert {f"{case}/{key}" for key in found} == {
        key.removesuffix("/at") for key in record.files if key.startswith(f"{case}/")
    }
    for key, (values, present) in found.items():
        expected = record[f"{case}/{key}"]
        assert values.dtype == expected.dtype, key
        rounding = 4 * EPSILON if values.dtype.kind == "f" else 0.0  # exponentials differ from processor to processor
        np.testing.assert_allclose(values, expected, rounding, rounding, err_msg=key)
        np.testing.assert_array_equal(present, record[f"{case}/{key}/at"], key)


def test_without_copies_observations_stand_in_one_array_and_are_the_same():
    copied, shared = (gym.make_vec("BiLevel/RandomMDP-v0", num_envs=4, copy=copy) for copy in (True, False))
    first, rng = shared.reset(seed=0)[0], np.random.default_rng(0)
    kept = [(copied.reset(seed=0)[0], first.copy())]
    for action in rng.integers(3, size=(150, 4)):
        seen, *values = shared.step(action)
        assert seen is first
        expected, *others = copied.step(action)
        kept.append((expected, seen.copy()))
        for one, other in zip(values[:3], others[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    for expected, seen in kept:  # copies are not written to by later calls
        np.testing.assert_array_equal(expected, seen)
    first[:] = 99  # nor does writing into what was returned move the environments
    action = np.zeros(4, int)
    np.testing.assert_array_equal(shared.step(action)[0], copied.step(action)[0])
    np.testing.assert_array_equal(shared.reset(seed=1)[0], copied.reset(seed=1)[0])


def test_only_tables_can_do_without_copies():
    with pytest.raises(TypeError, match="copy"):
        gym.make_vec("BiLevel/BilevelLQR-v0", num_envs=2, copy=False)


def test_what_a_step_returned_is_not_written_to_by_later_ones():
    envs = gym.make_vec("BiLevel/TollBridge-v0", num_envs=3, max_episode_steps=3)
    envs.reset(seed=0)
    told = [flat(envs.step(np.array([0, 1, 0]))) for _ in range(6)]
    again = gym.make_vec("BiLevel/TollBridge-v0", num_envs=3, max_episode_steps=3)
    again.reset(seed=0)
    for one in told:
        for key, value in flat(again.step(np.array([0, 1, 0]))).items():
            np.testing.assert_array_equal(one[key], value, key)


@pytest.mark.parametrize("bad", [[0, 1, 3], [0, -1, 1], [0, 1, 2**63]])
def test_a_refused_action_moves_nothing(bad):
    envs, other = (gym.make_vec("BiLevel/RandomMDP-v0", num_envs=3) for _ in range(2))
    for one in (envs, other):
        one.reset(seed=0)
    with pytest.raises(ValueError, match="must lie in 0 … 2"):
        envs.step(np.array(bad, np.uint64 if max(bad) > 9 else np.int64))
    for _ in range(3):
        one, expected = (flat(each.step(np.array([2, 0, 1], np.uint8))) for each in (envs, other))
        for key, value in expected.items():
            np.testing.assert_array_equal(one[key], value, key)


def test_a_copied_environment_goes_on_by_itself():
    envs = gym.make_vec("BiLevel/RandomMDP-v0", num_envs=3)
    envs.reset(seed=0)
    twin = deepcopy(envs)
    steps = [np.array([0, 1, 2])] * 20
    np.testing.assert_array_equal(*([each.step(a)[0] for a in steps] for each in (envs, twin)))


def test_a_scalar_environment_is_the_same_with_lists_and_without(monkeypatch):
    def states(name):
        env = gym.make(f"BiLevel/{name}-v0")
        seen, rng = [env.reset(seed=0)[0]], np.random.default_rng(0)
        for _ in range(600):
            following, reward, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
            assert (type(reward), type(terminated), type(info["leader_reward"])) == (float, bool, float)
            assert type(following) is int
            seen += [following, reward, terminated, info["leader_reward"]]
            seen += [env.reset()[0]] if terminated or truncated else []
        return seen

    names = ("RandomMDP", "FourRooms", "TollBridge")
    with_lists = [states(name) for name in names]
    monkeypatch.setattr("bilevel_envs.worlds.tabular.env.MOST_LISTED", 0)
    assert [states(name) for name in names] == with_lists


if __name__ == "__main__":
    arrays = {
        f"{case}/{key}{end}": array
        for case, setting in CASES.items()
        for key, pair in trajectory(*setting).items()
        for end, array in zip(("", "/at"), pair, strict=True)
    }
    np.savez_compressed(RECORD, **arrays)
