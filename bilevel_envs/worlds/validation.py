"""Whether a policy and a batch fit a model: what is checked before compiled code indexes tables with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_finite
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy

SLACK = 1e-5  # by which probabilities may miss a sum of 1; networks answer in single precision


def check_policy(policy: Any, runs: int, model: Any) -> None:
    """Refuses a table or a Gaussian that is no policy of so many runs in a model; networks are taken as they are.

    Args:
      policy: g.
      runs: R.
      model: the world that it acts in.

    Raises:
      TypeError: if it is a table where the world has matrices, or the other way round.
      ValueError: if it has another number of runs, states or actions, or is no distribution.
    """
    kinds = {TabularModel: GaussianPolicy, LinearQuadraticModel: BoltzmannPolicy}  # what each cannot take
    for world, other in kinds.items():
        if isinstance(model, world) and isinstance(policy, other):
            raise TypeError(f"`policy` must be one for a {world.__name__}, got a {other.__name__}")
    probs = getattr(policy, "probs", None)
    if isinstance(model, TabularModel) and isinstance(probs, Tensor):
        _check_size(probs, runs, (model.states, model.actions), "policy.probs", "state, action")
        missed = no_distribution(probs)
        if missed is not None:
            raise ValueError(f"`policy` must be a distribution in every state; {missed}")
    if isinstance(model, LinearQuadraticModel) and isinstance(policy, GaussianPolicy):
        n, m = model.state_size, model.action_size
        for name, size, axes in (("gain", (m, n), "action, state"), ("covariance", (m, m), "action, action")):
            _check_size(getattr(policy, name), runs, size, f"policy.{name}", axes)
            check_finite(getattr(policy, name), f"policy.{name}")
        _check_covariance(policy.covariance)


def no_distribution(probs: Tensor) -> str | None:
    """Where probabilities [R, S, B] do not sum to 1 over actions, in words; None where all do."""
    sums = probs.detach().numpy().sum(-1)
    right = np.abs(sums - 1) <= SLACK  # False for NaN
    if right.all():
        return None
    run, state = np.argwhere(~right)[0]
    return f"in state {state} of run {run} its probabilities sum to {sums[run, state]:.6g}"


def check_batch(batch: Rollout, model: Any) -> None:
    """Refuses with a ValueError a batch of an environment whose states or actions lie outside its model.

    Args:
      batch: what `reset` and `step` of an environment gave.
      model: the environment's model; states and actions of a table must be whole numbers in its range.
    """
    check_finite(batch.r_leader, "leader_reward")
    check_finite(batch.r_follower, "reward")
    columns = {"observations": batch.state, "observations that steps led to": batch.next_state}
    if not isinstance(model, TabularModel):
        for name, column in columns.items():
            check_finite(column, name)
        return
    for name, column in columns.items():
        check_numbers(column, column.shape[3:], model.states, name, "states")
    check_numbers(batch.action, batch.action.shape[3:], model.actions, "actions", "actions")


def check_numbers(column: Tensor, entries: Sequence[int], count: int, name: str, what: str) -> None:
    """Refuses with a ValueError what are no numbers of a table's states or actions.

    Args:
      column: the numbers.
      entries: shape of what should be a single number.
      count: how many there are.
      name: whose numbers they are.
      what: "states" or "actions".
    """
    if len(entries) or column.is_floating_point():
        got = f"{column.dtype} of shape {list(entries)}"
        raise ValueError(f"`{name}` must be whole numbers, one a step, in a world of tables; got {got} each")
    low, high = (int(x) for x in column.aminmax())
    if low < 0 or high >= count:
        remedy = ". A last observation counts, too: give the table a state for it" if what == "states" else ""
        raise ValueError(
            f"`{name}` must lie in 0 … {count - 1}, the {what} of the environment's `model`; got {low} … {high}{remedy}"
        )


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


def _check_size(table: Tensor, runs: int, size: tuple[int, ...], name: str, axes: str) -> None:
    """Refuses a table that is not the world's, for each run or one for all."""
    if tuple(table.shape) not in ((1, *size), (runs, *size)):
        raise ValueError(
            f"`{name}` must have shape {[runs, *size]}, [run, {axes}] of this world, or lead with 1 where all runs "
            f"share it; got {list(table.shape)}"
        )
