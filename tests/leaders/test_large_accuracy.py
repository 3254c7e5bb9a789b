"""Hypergradients of large tables by iteration against elimination, which solves to rounding."""

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.scaling import Rooms
from bilevel_envs import BilevelWrapper, TabularEnv
from bilevel_envs.envs.warehouse import Warehouse
from leaders import BCHG, ExactGradient, exact


def large(world: str) -> tuple[BilevelWrapper, np.ndarray]:
    """Rooms, where θ is in rewards, or a warehouse with tolls, where it is in p and in rewards; and a θ."""
    if world == "rooms":
        problem, spread = Rooms(900), 0.01
    else:
        gammas = {"gamma_leader": 0.99, "gamma_follower": 0.99}
        problem, spread = Warehouse(rows=25, columns=31, tolls=True, **gammas), 0.3
    theta = problem.default_theta + spread * np.random.default_rng(0).normal(size=problem.default_theta.shape)
    return BilevelWrapper(TabularEnv(problem)), np.clip(theta, problem.theta_space.low, problem.theta_space.high)


@pytest.mark.parametrize("world", ["rooms", "warehouse"])
def test_the_hypergradient_of_a_large_table_is_that_by_elimination(world, monkeypatch):
    env, theta = large(world)
    assert env.model(theta).is_large
    actual, value = exact.hypergradient(env, theta), exact.objective(env, theta)
    for module in ("model", "transitions"):
        monkeypatch.setattr(f"bilevel_envs.worlds.tabular.{module}.LARGEST_DIRECT", 10**6)
    env, theta = large(world)
    assert not env.model(theta).is_large
    expected = exact.hypergradient(env, theta)
    parts = (slice(None),) if world == "rooms" else (slice(0, env.problem.cells), slice(env.problem.cells, None))
    for part in parts:
        assert np.abs(actual[part] - expected[part]).max() <= 1e-7 * np.abs(expected[part]).max() > 0
    assert value == pytest.approx(exact.objective(env, theta), rel=1e-7)


def test_the_value_that_the_exact_gradient_records_is_the_objective():
    env = BilevelWrapper(gym.make("BiLevel/Warehouse-v0", rows=25, columns=31))
    leader = ExactGradient(env, seed=0)
    for _ in range(3):
        before = leader.theta
        leader.learn(1)
        assert leader.history["leader_value"][-1, 0] == pytest.approx(exact.objective(env, before), abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ExactGradient, BCHG])
def test_a_leader_of_a_large_table_goes_on_bit_for_bit(kind, tmp_path):
    env = BilevelWrapper(gym.make("BiLevel/Warehouse-v0", rows=25, columns=31))
    through = kind(env, seed=1).learn(4)
    kind(env, seed=1).learn(2).save(tmp_path / "half.zip")
    resumed = kind.load(tmp_path / "half.zip", env).learn(2)
    np.testing.assert_array_equal(resumed.theta, through.theta)
    np.testing.assert_array_equal(resumed.history["leader_value"], through.history["leader_value"])
