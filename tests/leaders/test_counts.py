"""Counts given as NumPy's whole numbers, however narrow, are Python's ints from then on."""

from dataclasses import fields, is_dataclass

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.noise import Noise
from bilevel_envs.envs.building_thermal_control import BuildingThermalControl
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.followers import Committed, SoftQLearning, Suboptimal, Truncated
from bilevel_envs.networks.temporal_differences import Fit
from leaders import BCHG, CMAES, HPGD, RandomSearch, ZerothOrder, exact
from leaders.experiments.compare import run_grid
from leaders.experiments.statistics import summary

SMALL = np.int8(100)  # twice as much is more than it can hold


def narrow_numbers(made):
    """What a dataclass keeps of NumPy's, also in tuples."""
    kept = [getattr(made, field.name) for field in fields(made)] if is_dataclass(made) else []
    kept += [entry for value in kept if isinstance(value, tuple) for entry in value]
    return [value for value in kept if isinstance(value, (np.integer, np.ndarray))]


@pytest.mark.parametrize(
    ("leader", "counts"),
    [
        (BCHG, {"batch_size": 100, "rows": 10}),
        (HPGD, {"variant": "oracle", "batch_size": 20, "rows": 2, "oracle_draws": 2}),
        (HPGD, {"variant": "oracle", "preset": "paper", "oracle_size": 100, "batch_size": 100, "rows": 10}),
        (ZerothOrder, {"directions": 2, "episodes": 100}),
        (CMAES, {"population": 4, "probes": 10, "episodes": 100}),
        (RandomSearch, {"episodes": 100}),
    ],
)
def test_a_leader_counts_alike_in_whatever_kind_of_whole_numbers(make, leader, counts):
    def histories(kind):
        told = {name: value if isinstance(value, str) else kind(value) for name, value in counts.items()}
        return leader(make("TollBridge"), runs=kind(2), seed=kind(120), **told)

    narrow, plain = (histories(kind).learn(kind(3), log_interval=kind(2)) for kind in (np.int8, int))
    assert narrow.seeds == plain.seeds == [120, 121]
    np.testing.assert_array_equal(narrow.history.state(), plain.history.state())
    assert not narrow_numbers(getattr(narrow, "sampling", None))


def test_samples_rollouts_and_statistics_count_in_ints(make):
    leader = BCHG(make("RandomMDP"))
    np.testing.assert_array_equal(
        leader.gradient_samples(np.int8(3), episodes=SMALL, seed=np.uint8(200)),
        leader.gradient_samples(3, episodes=100, seed=200),
    )
    env = make("RandomMDP")
    best = env.best_response(np.zeros(5))
    batch = env.rollout(np.zeros(5), best, Noise([0]), rows=SMALL, horizon=SMALL)
    assert batch.state.shape == (1, 100, 100)
    assert exact.objective(env, np.zeros(5), SMALL) == exact.objective(env, np.zeros(5), 100)
    scores = np.arange(10.0)
    assert summary(scores, resamples=np.int16(500), seed=np.int8(1)) == summary(scores, resamples=500, seed=1)
    result = run_grid(env, "bchg", runs=np.int8(2), iterations=np.int8(3), seed=np.int8(127), batch_size=SMALL)
    assert result.env_steps[:, 0].tolist() == [100, 200, 300]


@pytest.mark.slow
def test_vector_environments_count_in_ints():
    envs = gym.make_vec("BiLevel/RandomMDP-v0", num_envs=SMALL, max_episode_steps=np.int8(5))
    assert type(envs.unwrapped.num_envs) is int
    seeds = np.arange(100, dtype=np.int8)
    observation, _ = envs.reset(seed=list(seeds))
    np.testing.assert_array_equal(observation, envs.reset(seed=list(range(100)))[0])
    np.testing.assert_array_equal(envs.reset(seed=np.int8(100))[0], envs.reset(seed=100)[0])


@pytest.mark.parametrize(
    "made",
    [
        RandomMDP(seed=np.int8(1), states=SMALL, actions=np.int8(3), branching=np.int8(2), dim=np.int8(4)),
        BuildingThermalControl(zones=np.int8(4)),
        SoftQLearning(rounds=SMALL, rows=np.int8(10), horizon=SMALL, seed=np.int8(3)),
        Committed(sweeps=SMALL),
        Suboptimal(0.1, seed=np.int8(3)),
        Truncated(rounds=SMALL, sweeps=np.int8(2), seed=SMALL),
        Truncated(seed=np.array([100, 27], np.int8)),
        Fit(hidden=(SMALL, SMALL), steps=SMALL, minibatch=SMALL, refresh=SMALL, draws=SMALL),
    ],
    ids=lambda made: type(made).__name__,
)
def test_counts_that_a_leader_keeps_are_ints(made):
    assert not narrow_numbers(made)


@pytest.mark.slow
def test_the_steps_that_a_follower_took_do_not_overflow():
    narrow = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), SoftQLearning(rounds=SMALL, rows=SMALL, horizon=SMALL))
    assert narrow.best_response([0.5]).steps == 1_000_000
