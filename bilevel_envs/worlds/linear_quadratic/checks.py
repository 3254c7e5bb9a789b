"""Whether a policy fits a linear-quadratic world."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from bilevel_envs.core.checks import check_finite, check_table_size
from bilevel_envs.core.follower import Policy
from bilevel_envs.core.mdp import kind_of
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy


def check_gaussian(policy: Policy, runs: int, model: LinearQuadraticModel) -> None:
    """Refuses a policy for another kind of world, and a Gaussian that is none of so many runs in a model.

    Raises:
      TypeError: if it is one for another kind of world.
      ValueError: if it has another number of runs, states or actions, or is no distribution.
    """
    if kind_of(policy) not in (None, model.kind):
        raise TypeError(f"`policy` must be one for a LinearQuadraticModel, got a {type(policy).__name__}")
    if kind_of(policy) is None:
        return
    gaussian = cast(GaussianPolicy, policy)
    n, m = model.state_size, model.action_size
    check_table_size(gaussian.gain, runs, (m, n), "policy.gain", "action, state")
    check_table_size(gaussian.covariance, runs, (m, m), "policy.covariance", "action, action")
    check_finite(gaussian.gain, "policy.gain")
    check_finite(gaussian.covariance, "policy.covariance")
    _check_covariance(gaussian.covariance)


def _check_covariance(covariance: Tensor) -> None:
    """Refuses what is not symmetric, or has an eigenvalue below 0."""
    rounding = 1e-9 * float(covariance.abs().max())
    least = float(torch.linalg.eigvalsh(covariance).min())
    if least < -rounding or float((covariance - covariance.mT).abs().max()) > rounding:
        raise ValueError(
            "`policy.covariance` must be symmetric with no eigenvalue below 0, the covariance of a distribution; its "
            f"least is {least:.6g}, and it differs from its transpose by "
            f"{float((covariance - covariance.mT).abs().max()):.6g}"
        )
