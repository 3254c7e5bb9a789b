"""Vector environments of tables against recorded trajectories, and what `copy=False` means."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import bilevel_envs  # noqa: F401  (registers BiLevel/*)

RECORD = Path(__file__).parents[1] / "data" / "vector_trajectories.npz"  # written by `python -m` this module
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
def test_trajectories_are_the_recorded_ones_to_the_last_bit(case):
    record = np.load(RECORD)
    found = trajectory(*CASES[case])
    assert {f"{case}/{key}" for key in found} == {
        key.removesuffix("/at") for key in record.files if key.startswith(f"{case}/")
    }
    for key, (values, present) in found.items():
        expected = record[f"{case}/{key}"]
        assert values.dtype == expected.dtype, key
        np.testing.assert_array_equal(values, expected, key)
        np.testing.assert_array_equal(present, record[f"{case}/{key}/at"], key)


if __name__ == "__main__":
    arrays = {
        f"{case}/{key}{end}": array
        for case, setting in CASES.items()
        for key, pair in trajectory(*setting).items()
        for end, array in zip(("", "/at"), pair, strict=True)
    }
    np.savez_compressed(RECORD, **arrays)
