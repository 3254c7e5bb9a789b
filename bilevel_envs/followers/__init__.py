"""Followers: ways of responding to a configured world."""

from bilevel_envs.followers.soft_value_iteration import SoftValueIteration
from bilevel_envs.followers.truncated import Truncated

FOLLOWERS = {"soft_value_iteration": SoftValueIteration, "truncated": Truncated}

__all__ = ["FOLLOWERS", "SoftValueIteration", "Truncated"]
