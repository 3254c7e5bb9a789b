"""Followers: ways of responding to a configured world."""

from bilevel_envs.followers.riccati import Riccati
from bilevel_envs.followers.soft_value_iteration import SoftValueIteration
from bilevel_envs.followers.truncated import Truncated

FOLLOWERS = {"riccati": Riccati, "soft_value_iteration": SoftValueIteration, "truncated": Truncated}

__all__ = ["FOLLOWERS", "Riccati", "SoftValueIteration", "Truncated"]
