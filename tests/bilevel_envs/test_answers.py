"""What a leader takes for an answer: a follower of one's own is told by name what is wrong with it."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.follower import FollowerError, Missing, UnsupportedModelError
from bilevel_envs.followers import Mixture, ObservedFollower, Quantal, Riccati, SoftValueIteration, Truncated
from bilevel_envs.worlds.responses import check_response
from bilevel_envs.worlds.tabular.model import Table
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from leaders import BCHG, NaivePGD
from tests.helpers import toll_bridge


class Own:
    """Plans well, and answers something else at the third call."""

    beta = None

    def __init__(self, spoil, at=3):
        self.spoil, self.left = spoil, at

    def best_response(self, model, preferences, start=None):
        best = SoftValueIteration().best_response(model, preferences)
        self.left -= 1
        return self.spoil(best) if self.left == 0 else best


def louder(best):
    return replace(best, policy=BoltzmannPolicy(best.policy.log_probs + 3.0))


SPOILT = [
    (lambda best: (best,), "it answered with tuple, not with a BestResponse"),
    (louder, "its policy must be a distribution in every state; in state 0 of run 0 its probabilities sum to 20.0855"),
    (
        lambda best: replace(best, actual_policy=louder(best).policy),
        "its actual_policy must be a distribution in every state",
    ),
    (lambda best: replace(best, policy=best.policy.probs), "its policy must have `sample`, .* got Tensor"),
    (
        lambda best: replace(best, q=None),
        r"its q must be a function such as a Table, or Missing\(reason\); got NoneType",
    ),
    (lambda best: replace(best, v=best.v.values), "its v must be a function .* got Tensor"),
    (
        lambda best: replace(best, q=Table(best.q.values[:, :2])),
        r"its q must be a table of shape \[1, .* got \[1, 2, 2\]",
    ),
    (
        lambda best: replace(best, v=Table(best.v.values.repeat(3, 1))),
        r"its v must be a table of shape \[1, .* got \[3, ",
    ),
    (
        lambda best: replace(best, q=Table(best.q.values / 0)),
        r"its q \(values\) holds NaN or infinite entries in run 0",
    ),
    (lambda best: replace(best, residual=0.0), r"its residual must be a tensor of shape \[1\], got 0.0"),
    (lambda best: replace(best, residual=torch.zeros(7)), r"its residual must be a tensor of shape \[1\], got \[7\]"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_an_invalid_response_is_named_and_leaves_the_run_undisturbed(spoil, message):
    leader = BCHG(toll_bridge(Own(spoil)), seed=0)
    with pytest.raises(FollowerError, match=f"outer iteration 2: the follower failed .*{message}"):
        leader.learn(5)
    undisturbed = BCHG(toll_bridge(Own(spoil, at=-1)), seed=0).learn(5)
    np.testing.assert_array_equal(leader.learn(3).theta, undisturbed.theta)


def test_a_response_without_values_and_with_a_certain_action_is_valid():
    env = toll_bridge(None)
    best = env.best_response(np.array([0.5]))
    certain = torch.full_like(best.policy.log_probs, -float("inf"))
    certain[..., 0] = 0.0
    best = replace(best, policy=BoltzmannPolicy(certain), q=Missing("no Q_F"), v=Missing("no V_F"))
    check_response(best, 1, env.model(np.array([0.5])))


def test_mistakes_in_a_followers_own_code_name_the_iteration():
    class Wrong:
        beta = None

        def best_response(self, model):
            return model

    with pytest.raises(FollowerError, match=r"outer iteration 0: the follower failed \(TypeError: .*positional arg"):
        NaivePGD(toll_bridge(Wrong())).learn(1)


@pytest.mark.parametrize(
    ("world", "follower", "message"),
    [
        (
            "GuidedPendulum",
            SoftValueIteration(),
            r"got SimulatedModel; `follower` must be one that suits it: one that learns",
        ),
        (
            "GuidedPendulum",
            ObservedFollower(),
            r"for ObservedFollower to plan in, .*: one that learns",
        ),
        ("BuildingThermalControl", Quantal(0.3), r"got LinearQuadraticModel; .* suits it: Riccati\(\)"),
        ("BuildingThermalControl", Truncated(), r"for Truncated to plan in, .*: Riccati\(\)"),
        ("BuildingThermalControl", Mixture(0.1, Riccati()), r"must be a TabularModel for Mixture .*: Riccati\(\)"),
        ("TollBridge", Riccati(), r"got TabularModel; .*: SoftValueIteration\(\)"),
    ],
)
def test_followers_name_the_kind_of_world_that_they_need(world, follower, message):
    env = BilevelWrapper(gym.make(f"BiLevel/{world}-v0"), follower)
    with pytest.raises(UnsupportedModelError, match=message):
        NaivePGD(env).learn(1)


def test_a_follower_that_saves_and_cannot_load_is_not_saved(tmp_path):
    class HalfSaved(Own):
        def state_dict(self):
            return {}

    leader = NaivePGD(toll_bridge(HalfSaved(None, at=-1))).learn(1)
    with pytest.raises(TypeError, match="`follower` must have `load_state_dict` beside `state_dict`"):
        leader.save(tmp_path / "leader.zip")
    assert not (tmp_path / "leader.zip").exists()
