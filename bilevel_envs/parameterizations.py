"""Parameterisations of θ: modules whose raw numbers an optimiser moves."""

from bilevel_envs.core.parameterizations import Box, Budget, Free, Parameterization, Softmax, SoftmaxNetwork

__all__ = ["Box", "Budget", "Free", "Parameterization", "Softmax", "SoftmaxNetwork"]
