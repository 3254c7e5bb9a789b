"""Followers: ways of responding to a configured world."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from bilevel_envs.core.follower import Follower, LearningFollower
from bilevel_envs.followers.bounded.behavioural import Mixture, Quantal, Sticky, Suboptimal
from bilevel_envs.followers.bounded.truncated import Truncated
from bilevel_envs.followers.learners.observed import ObservedFollower
from bilevel_envs.followers.learners.soft_q_learning import SoftQLearning
from bilevel_envs.followers.planners.committed import Committed
from bilevel_envs.followers.planners.riccati import Riccati
from bilevel_envs.followers.planners.soft_value_iteration import SoftValueIteration
from bilevel_envs.followers.sb3.follower import SB3Follower

if TYPE_CHECKING:
    from bilevel_envs.followers.sb3.soft_dqn import SoftDQN

FOLLOWERS: dict[str, Callable[..., Follower | LearningFollower]] = {
    "committed": Committed,
    "mixture": Mixture,
    "observed": ObservedFollower,
    "quantal": Quantal,
    "riccati": Riccati,
    "sb3": SB3Follower,
    "soft_q_learning": SoftQLearning,
    "soft_value_iteration": SoftValueIteration,
    "sticky": Sticky,
    "suboptimal": Suboptimal,
    "truncated": Truncated,
}


def __getattr__(name: str) -> object:
    """`SoftDQN`, which loads Stable-Baselines3, on first use."""
    if name == "SoftDQN":
        return import_module("bilevel_envs.followers.sb3.soft_dqn").SoftDQN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FOLLOWERS",
    "Committed",
    "Mixture",
    "ObservedFollower",
    "Quantal",
    "Riccati",
    "SB3Follower",
    "SoftDQN",
    "SoftQLearning",
    "SoftValueIteration",
    "Sticky",
    "Suboptimal",
    "Truncated",
]
