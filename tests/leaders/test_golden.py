"""One update of the published code, reproduced from its trajectory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel_envs import Rollout
from bilevel_envs.core.noise import Noise
from bilevel_envs.envs.four_rooms import GOAL_STATE
from bilevel_envs.parameterizations import Budget
from leaders import BCHG, HPGD, NaivePGD, SoBiRL
from leaders.critics.cross_fit import Judges
from leaders.estimators.oracle import oracle_weights, published_oracle_guiding
from leaders.functional.surrogate import surrogate
from leaders.functional.weights import discount_weights

DATA = Path(__file__).parents[1] / "data"


def recorded_batch(record, model, prefix="") -> Rollout:
    """The record's trajectory [T, E] as a batch [1, E, T]."""

    def rows(name):
        return torch.from_numpy(np.ascontiguousarray(record[prefix + name].T)[None])

    state, action, done = rows("states"), rows("actions").long(), rows("done")
    step = torch.zeros_like(state)
    for k in range(1, state.shape[-1]):
        step[..., k] = torch.where(done[..., k - 1], 0, step[..., k - 1] + 1)
    terminated = done & (state == GOAL_STATE)
    following = torch.cat([state[..., 1:], state[..., -1:]], -1)
    rewards = (table[0][state, action] for table in (model.r_leader, model.r_follower))
    return Rollout(state, action, following, *rewards, terminated, done & ~terminated, step, torch.ones_like(done))


class Record:
    """One record: the published numbers, and our leader's world at the same point."""

    def __init__(self, make, name, leader, **arguments):
        self.data = np.load(DATA / f"golden_{name}_b0_005_B400.npz")
        self.env = make("FourRooms", dynamics="mismatched", beta=float(self.data["beta"]))
        self.policy = Budget(self.data["theta"][None].astype(float), -0.2)
        self.leader = leader(self.env, preset="paper", policy=self.policy, batch_size=400, **arguments)
        theta = self.policy()
        self.model, self.best = self.env.model(theta), self.env.best_response(theta.detach())
        self.batch = recorded_batch(self.data, self.model.detach())
        self.expected = self.data["grad_from_update"]

    def gradient(self, total):
        """In raw coordinates, [105]."""
        (gradient,) = torch.autograd.grad(total.sum(), self.policy.raw, retain_graph=True)
        return gradient[0].numpy()

    def fit(self):
        """Fits the leader's critic to the recorded batch, as its mean returns are."""
        self.leader.critic.fit(self.batch, self.best, None, Noise([0]))

    def own(self):
        """The leader's surrogate on the recorded batch."""
        critic, gamma = self.leader.critic, self.env.preferences.gamma_leader
        judges = Judges([critic], torch.zeros_like(self.batch.step), critic, gamma)
        at = (self.policy(), self.model, self.batch, self.best, judges)
        sample = self.leader.sample(*at, Noise([0]), "reference")
        return surrogate(sample.terms, self.leader.weights(sample))

    def error(self, actual):
        return np.abs(actual - self.expected).max() / np.abs(self.expected).max()


@pytest.mark.parametrize(("name", "leader", "arguments"), [("bchg", BCHG, {}), ("hpgd_sarsa", HPGD, {"variant": "sa"})])
def test_gradients_with_a_sarsa_table_are_the_recorded_ones(make, name, leader, arguments):
    record = Record(make, name, leader, **arguments)
    critic = record.leader.critic
    critic.table = record.data["QL_before"][None].astype(float)
    critic.pass_over(record.batch, record.best.policy, record.data["perm"][None])
    np.testing.assert_allclose(critic.table[0], record.data["QL_after"], atol=1e-6)  # float32 there
    actual = record.gradient(record.own())
    assert record.error(actual) <= 1e-5
    assert np.linalg.norm(actual) == pytest.approx(float(record.data["grad_norm"]), rel=1e-4)


def test_the_gradient_of_hpgd_mc_is_the_recorded_one(make):
    record = Record(make, "hpgd", HPGD, variant="mc")
    record.fit()
    assert record.error(record.gradient(record.own())) <= 1e-5


@pytest.mark.parametrize(("name", "leader"), [("baseline", NaivePGD), ("sobirl", SoBiRL)])
def test_gradients_without_a_guiding_term_are_the_recorded_ones(make, name, leader):
    record = Record(make, name, leader)
    record.fit()
    assert record.error(record.gradient(record.own())) <= 1e-3  # a small sum of large terms, in float32 there


def test_the_gradient_of_hpgd_with_an_oracle_is_the_recorded_one(make):
    record = Record(make, "hpgd_oracle", HPGD, variant="oracle", oracle_size=2000)
    record.fit()
    oracle = recorded_batch(record.data, record.model.detach(), "oracle_")
    preferences = record.env.preferences
    discounts = discount_weights(record.batch, preferences.gamma_leader, "reference")
    guiding = published_oracle_guiding(oracle, record.batch, discounts, preferences, 104, 4)
    weights = oracle_weights(oracle, guiding, record.best, preferences, score_weight="value")
    total = record.own() + surrogate(record.model.terms(oracle), weights)
    assert record.error(record.gradient(total)) <= 1e-5
