"""Followers: ways of responding to a configured world."""

from importlib import import_module
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


def __getattr__(name: str) -> Any:
    """`SoftDQN`, which loads Stable-Baselines3, on first use."""
    if name == "SoftDQN":
        return import_module("bilevel_envs.followers.soft_dqn").SoftDQN
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
