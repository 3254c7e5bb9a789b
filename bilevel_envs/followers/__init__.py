"""Followers: ways of responding to a configured world."""

from bilevel_envs.followers.committed import Committed
from bilevel_envs.followers.riccati import Riccati
from bilevel_envs.followers.soft_q_learning import SoftQLearning
from bilevel_envs.followers.soft_value_iteration import SoftValueIteration
from bilevel_envs.followers.truncated import Truncated

FOLLOWERS = {
    "committed": Committed,
    "riccati": Riccati,
    "soft_q_learning": SoftQLearning,
    "soft_value_iteration": SoftValueIteration,
    "truncated": Truncated,
}

__all__ = ["FOLLOWERS", "Committed", "Riccati", "SoftQLearning", "SoftValueIteration", "Truncated"]
