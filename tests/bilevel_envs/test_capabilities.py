"""What followers declare of themselves, what is taken of those that declare nothing, and what they are given."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.follower import (
    Capabilities,
    NotAvailableError,
    UnsupportedModelError,
    capabilities_of,
    missing_value,
)
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import (
    Committed,
    Mixture,
    ObservedFollower,
    Quantal,
    Riccati,
    SB3Follower,
    SoftQLearning,
    SoftValueIteration,
    Sticky,
    Suboptimal,
    Truncated,
)
from leaders import BCHG

TABLES, MATRICES = ("tabular",), ("linear_quadratic",)


class Planner:
    """Plans, and declares nothing."""

    beta = None

    def best_response(self, model, preferences, init=None):
        return SoftValueIteration().best_response(model, preferences)


class Learner:
    """Learns, and declares nothing; keeps what it was given."""

    beta, gives_values = 0.7, False

    def respond(self, task, theta, model, init, learn=True):
        self.given = (task, theta, model, init, learn)
        return SoftValueIteration().best_response(model, task.preferences)

    def state_dict(self):
        return {}


@pytest.mark.parametrize(
    ("follower", "kinds", "optimal"),
    [
        (SoftValueIteration(), TABLES, True),
        (SoftValueIteration(rounds=100, sweeps=5), TABLES, False),
        (Riccati(), MATRICES, True),
        (Committed(), TABLES, False),
        (SoftQLearning(), TABLES, False),
        (Truncated(), TABLES, False),
        (Truncated(Riccati()), MATRICES, False),
        (Quantal(0.3), TABLES, False),
        (Quantal(0.3, Riccati()), MATRICES, False),
        (Mixture(0.1), TABLES, False),
        (Sticky(0.1), TABLES, False),
        (Suboptimal(0.1), TABLES, False),
        (Mixture(0.1, Riccati()), TABLES, False),
        (ObservedFollower(), TABLES + MATRICES, False),
        (ObservedFollower(Riccati()), MATRICES, False),
        (ObservedFollower(SB3Follower("PPO")), None, False),
        (SB3Follower("SAC"), None, False),
    ],
)
def test_followers_declare_whether_and_in_which_worlds_they_are_optimal(follower, kinds, optimal):
    declared = capabilities_of(follower)
    assert (declared.kinds, declared.optimal) == (kinds, optimal)
    assert declared.learns == hasattr(follower, "respond")
    assert declared.saves == hasattr(follower, "state_dict")


@pytest.mark.parametrize(("algorithm", "gives"), [("SAC", True), ("SoftDQN", True), ("PPO", False), ("DQN", False)])
def test_values_are_declared_where_the_algorithm_is_soft(algorithm, gives):
    assert capabilities_of(SB3Follower(algorithm)).gives_values == gives
    assert capabilities_of(ObservedFollower(SB3Follower(algorithm))).gives_values


def test_followers_that_declare_nothing_are_taken_by_their_methods():
    assert capabilities_of(Planner()) == Capabilities()
    assert capabilities_of(Learner()) == Capabilities(gives_values=False, learns=True, saves=True)


def test_missing_values_name_the_remedy():
    with pytest.raises(NotAvailableError, match="V_F is not available from PPO, whose values are not soft: wrap the"):
        missing_value(SB3Follower("PPO"), "V_F")(0)
    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), Learner())
    with pytest.raises(NotAvailableError, match=r"V_F is not available from Learner: wrap .* ObservedFollower"):
        BCHG(env)


def test_a_follower_of_another_kind_of_world_is_refused_before_it_answers():
    class Mine(Planner):
        capabilities = Capabilities(MATRICES)

        def best_response(self, model, preferences, init=None):
            raise AssertionError("asked")

    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), Mine())
    with pytest.raises(
        UnsupportedModelError,
        match=r"must be a LinearQuadraticModel for Mine to plan in, got TabularModel; .*: SoftValueIteration\(\)",
    ):
        env.best_response(np.array([0.5]))


@pytest.mark.slow
def test_a_follower_that_learns_is_given_its_world_and_no_more():
    follower = Learner()
    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), follower)
    first = env.best_response(np.array([0.5]))
    env.best_response(np.array([0.25]), first, learn=False)
    task, theta, model, init, learn = follower.given
    assert (theta.tolist(), learn) == ([[0.25]], False)
    assert init is first
    assert task.model is model
    assert (task.preferences.beta, task.problem.preferences.beta) == (0.7, env.problem.preferences.beta)
    assert task.time_limit == 10
    assert not isinstance(task, gym.Env)
    # HOME is state 0, and CROSS, its first action, is paid 1 − θ
    copies = task.copies(2, theta[0])
    assert copies.reset(seed=0)[0].tolist() == [0, 0]
    np.testing.assert_allclose(copies.step(np.zeros(2, int))[1], 0.75)
    batch = task.rollout(theta, first, Noise([0]), rows=3, horizon=2)
    assert batch.state.shape == (1, 3, 2)
    assert task.observations(4).tolist() == [0, 1, 2, 3]


def test_a_follower_inside_another_goes_by_its_own_beta_or_the_problems():
    inside = Learner()
    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), ObservedFollower(inside, 20, beta=0.1))
    env.best_response(np.array([0.5]))
    assert inside.given[0].preferences.beta == 0.7
    inside.beta = None
    env.best_response(np.array([0.5]))
    assert inside.given[0].preferences == env.problem.preferences


def test_observing_without_learning_changes_nothing():
    follower = ObservedFollower(None, 50, method="network", steps=2)
    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), follower)
    env.best_response(np.array([0.5]))
    before = follower.state_dict()
    first, second = (env.best_response(np.array([0.5]), learn=False) for _ in range(2))
    assert torch.equal(first.policy.log_probs, second.policy.log_probs)
    after = follower.state_dict()
    assert after["responses"] == before["responses"] == 1
    for name in ("cloned", "layers"):
        own = [state["values"]["layers"] if name == "layers" else state[name] for state in (before, after)]
        assert all(torch.equal(a, b) for a, b in zip(*own, strict=True))
