"""Parameterisations: modules whose `forward()` is θ, one row per run."""

from bilevel_envs.core.leader_networks import CNN, MLP, LeaderNetwork
from bilevel_envs.core.parameterizations import Box, Budget, Free, Parameterization, Softmax, SoftmaxNetwork

__all__ = ["CNN", "MLP", "Box", "Budget", "Free", "LeaderNetwork", "Parameterization", "Softmax", "SoftmaxNetwork"]
