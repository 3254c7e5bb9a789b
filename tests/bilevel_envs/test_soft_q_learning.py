"""A follower that learns from interaction comes to the one that plans."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import SoftQLearning
from bilevel_envs.worlds.tabular.kernels.critics import soft_q_pass
from leaders import BCHG, exact


def test_one_step_of_soft_q_learning_is_that_made_by_hand():
    table = np.array([[[0.0, 1.0], [2.0, 0.0]]])
    one = np.zeros((1, 1, 1), dtype=np.int64)
    largest = soft_q_pass(
        table, one, one, one + 1, np.full((1, 1, 1), 3.0), np.full((1, 1, 1), 0.5), one == 0, beta=1.0, rate=0.25
    )
    error = 3 + 0.5 * np.log(np.exp(2) + 1) - 0  # r + γ log(e² + e⁰) − Q(0, 0)
    np.testing.assert_allclose(table, [[[0.25 * error, 1.0], [2.0, 0.0]]])
    np.testing.assert_allclose(largest, [error])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TollBridge", "RandomMDP", "ToyMarkovGame"])
def test_soft_q_learning_approaches_the_planners_values(name):
    gamma = {"gamma_follower": 0.8} if name == "ToyMarkovGame" else {}
    learner = SoftQLearning(rounds=300)
    env = BilevelWrapper(gym.make(f"BiLevel/{name}-v0", **gamma), learner)
    theta = np.stack([env.problem.default_theta] * 2)
    learnt, planned = env.best_response(theta), BilevelWrapper(env.env).best_response(theta)
    assert not learnt.optimal
    visited = planned.v.values.abs() > 0
    off = (learnt.v.values - planned.v.values)[visited].abs().max()
    assert float(off) < 0.05 * float(planned.v.values.abs().max())
    if name != "TollBridge":  # where nothing is random two lives are one
        assert not torch.equal(learnt.q.values[0], learnt.q.values[1])


def test_soft_q_learning_continues_from_the_last_response():
    env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", gamma_follower=0.8), SoftQLearning(rounds=3))
    theta = env.problem.default_theta
    planned = BilevelWrapper(env.env).best_response(theta)
    best, errors = None, []
    for _ in range(4):
        best = env.best_response(theta, best)
        errors.append(float((best.v.values - planned.v.values).abs().mean()))
    assert errors[-1] < errors[0]
    again = env.best_response(theta)
    torch.testing.assert_close(again.q.values, env.best_response(theta).q.values, rtol=0, atol=0)


def test_a_leader_learns_with_a_soft_q_learning_follower():
    env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", variant="R2"), SoftQLearning(rounds=20))
    leader = BCHG(env, runs=2, seed=0).learn(5)
    assert np.isfinite(leader.history["leader_value"]).all()
    assert not np.array_equal(leader.history["leader_value"], leader.history["leader_value_actual"])
    assert leader.history["leader_value"][0, 0] == pytest.approx(exact.objective(env, _first(env)), rel=1e-9)


def _first(env):
    return BCHG(env, runs=2, seed=0).theta[0]


def test_bad_settings_are_refused():
    for arguments, message in (
        ({"rounds": 0}, "`rounds`"),
        ({"learning_rate": 1.5}, "`learning_rate`"),
        ({"exploration": -0.1}, "`exploration`"),
        ({"beta": 0.0}, "`beta`"),
    ):
        with pytest.raises(ValueError, match=message):
            SoftQLearning(**arguments)
    env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), SoftQLearning())
    with pytest.raises(TypeError, match="`model` must be a TabularModel for SoftQLearning"):
        env.best_response(env.problem.default_theta)
