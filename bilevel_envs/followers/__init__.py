"""Followers: ways of responding to a configured world."""

from bilevel_envs.followers.soft_value_iteration import SoftValueIteration

FOLLOWERS = {"soft_value_iteration": SoftValueIteration}

__all__ = ["FOLLOWERS", "SoftValueIteration"]
