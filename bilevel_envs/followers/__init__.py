"""Followers: ways of responding to a configured world."""

from typing import Any

from bilevel_envs.followers.behavioural import Mixture, Quantal, Sticky, Suboptimal
from bilevel_envs.followers.committed import Committed
from bilevel_envs.followers.observed import ObservedFollower
from bilevel_envs.followers.riccati import Riccati
from bilevel_envs.followers.sb3 import SB3Follower
from bilevel_envs.followers.soft_q_learning import SoftQLearning
from bilevel_envs.followers.soft_value_iteration import SoftValueIteration
from bilevel_envs.followers.truncated import Truncated

FOLLOWERS: dict[str, Any] = {
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

__all__ = [
    "FOLLOWERS",
    "Committed",
    "Mixture",
    "ObservedFollower",
    "Quantal",
    "Riccati",
    "SB3Follower",
    "SoftQLearning",
    "SoftValueIteration",
    "Sticky",
    "Suboptimal",
    "Truncated",
]
