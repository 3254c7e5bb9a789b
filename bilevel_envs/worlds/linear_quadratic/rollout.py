"""Draws batches from the matrices of a model."""

from __future__ import annotations

import torch

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.linear_quadratic.checks import check_gaussian
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel, truncated_normal
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy


def linear_rollout(
    model: LinearQuadraticModel,
    policy: GaussianPolicy,
    noise: Noise,
    *,
    rows: int,
    horizon: int,
    time_limit: int | None = None,
) -> Rollout:
    """The same law as `vector_rollout`, drawn from the matrices of a model without an environment between.

    Args:
      model: the world, without gradients; R runs, or 1 that all share.
      policy: how the follower acts.
      noise: one stream per run.
      rows: N.
      horizon: T.
      time_limit: an episode is truncated after so many steps; None for no limit. Nothing else ends one.

    Returns:
      A batch [R, N, T].

    Raises:
      TypeError: if the policy is a table.
      ValueError: if the policy does not fit the model.
    """
    check_gaussian(policy, noise.runs, model)
    shape, n, m = (noise.runs, rows, horizon), model.state_size, model.action_size
    draws = noise.uniform(horizon, rows, 2 * n + m)
    deviation = model.noise.diagonal(dim1=-2, dim2=-1).sqrt().numpy()[:, None]
    spread = model.initial.diagonal(dim1=-2, dim2=-1).sqrt().numpy()[:, None]
    first = model.start.numpy()[:, None]
    state, action, following = (torch.empty(*shape, size, dtype=torch.float64) for size in (n, m, n))
    s, length = torch.empty(0), time_limit or horizon
    for k in range(horizon):
        if k % length == 0:
            s = torch.from_numpy(truncated_normal(first, spread, model.bound, draws[:, k, :, n + m :]))
        state[:, :, k], action[:, :, k] = s, policy.sample(s, draws[:, k, :, n : n + m])
        mean = model.mean_next(s, action[:, :, k]).numpy()
        s = torch.from_numpy(truncated_normal(mean, deviation, model.bound, draws[:, k, :, :n]))
        following[:, :, k] = s
    step = (torch.arange(horizon) % length).expand(shape)
    truncated = (step == length - 1) if time_limit else torch.zeros(shape, dtype=torch.bool)
    r_leader, r_follower = model.r_leader(state, action), model.r_follower(state, action)
    never, always = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    return Rollout(state, action, following, r_leader, r_follower, never, truncated.clone(), step.clone(), always)
