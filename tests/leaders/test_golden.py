"""One update of the published code, reproduced from its trajectory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel_envs import Rollout
from bilevel_envs.envs.four_rooms import GOAL_STATE
from bilevel_envs.parameterizations import Budget
from leaders import BCHG
from leaders.surrogate import surrogate

DATA = Path(__file__).parents[1] / "data"


def recorded_batch(record, model) -> Rollout:
    """The record's trajectory [T, E] as a batch [1, E, T]."""

    def rows(name):
        return torch.from_numpy(np.ascontiguousarray(record[name].T)[None])

    state, action, done = rows("states"), rows("actions").long(), rows("done")
    step = torch.zeros_like(state)
    for k in range(1, state.shape[-1]):
        step[..., k] = torch.where(done[..., k - 1], 0, step[..., k - 1] + 1)
    terminated = done & (state == GOAL_STATE)
    following = torch.cat([state[..., 1:], state[..., -1:]], -1)
    rewards = (table[0][state, action] for table in (model.r_leader, model.r_follower))
    return Rollout(state, action, following, *rewards, terminated, done & ~terminated, step, torch.ones_like(done))


def test_paper_preset_reproduces_the_published_update(make):
    record = np.load(DATA / "golden_bchg_b0_005_B400.npz")
    env = make("FourRooms", dynamics="mismatched", beta=float(record["beta"]))
    policy = Budget(record["theta"][None].astype(float), -0.2)
    leader = BCHG(env, preset="paper", policy=policy)
    theta = policy()
    model = env.model(theta)
    best = env.best_response(theta.detach())
    batch = recorded_batch(record, model.detach())
    leader.critic.table = record["QL_before"][None].astype(float)
    leader.critic.pass_over(batch, best.policy, record["perm"][None])
    np.testing.assert_allclose(leader.critic.table[0], record["QL_after"], atol=1e-6)  # float32 there
    weights = leader._weights(batch, best, leader.critic, "reference")
    (actual,) = torch.autograd.grad(surrogate(model.terms(batch), weights).sum(), policy.raw)
    expected = record["grad_from_update"]
    assert np.abs(actual[0].numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.linalg.norm(actual[0].numpy()) == pytest.approx(float(record["grad_norm"]), rel=1e-4)
