"""Checks that environments, games and followers of users keep the contract that leaders rely on."""

from bilevel_envs.testing.env import check_bilevel_env
from bilevel_envs.testing.follower import check_follower
from bilevel_envs.testing.report import ConformanceError, Finding, Report, Result

__all__ = ["ConformanceError", "Finding", "Report", "Result", "check_bilevel_env", "check_follower"]
