"""Draws batches from the tables of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_room
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.checks import check_table_policy
from bilevel_envs.worlds.tabular.kernels.drawing import walk
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.tabular.starts import Starts
from bilevel_envs.worlds.tabular.transitions import look_up


@dataclass(frozen=True)
class First:
    """Where the rows of a batch begin.

    Attributes:
      initial: another distribution of first states than the model's, [S].
      state: the state in which each row begins, int [R, N]; −1 for a draw.
      action: the first action of each row, int [R, N]; −1 for the policy's own.
    """

    initial: np.ndarray | None = None
    state: np.ndarray | None = None
    action: np.ndarray | None = None


def table_rollout(
    model: TabularModel,
    policy: BoltzmannPolicy,
    noise: Noise,
    *,
    rows: int,
    horizon: int,
    time_limit: int | None = None,
    whole_episodes: bool = False,
    first: First | None = None,
) -> Rollout:
    """The same law as `vector_rollout`, drawn from the tables of a model without an environment between.

    Args:
      model: the world, without gradients; R runs, or 1 that all share.
      policy: how the follower acts, [R|1, S, B].
      noise: one stream per run.
      rows: N.
      horizon: T.
      time_limit: an episode is truncated after so many steps; None for no limit.
      whole_episodes: rows stop after their first episode instead of starting another.
      first: where rows begin, for oracles that may choose it; None to draw that.

    Returns:
      A batch [R, N, T], rows cut to the longest one in use.

    Raises:
      TypeError: if the policy is no table.
      ValueError: if the policy does not fit the model, or a first state or action lies outside it.
    """
    check_table_policy(policy, noise.runs, model)
    check_room(noise.runs, rows, horizon)
    moves, shape = model.structure.stepping, (noise.runs, rows, horizon)
    first = First() if first is None else first
    starts = moves.starts if first.initial is None else Starts.of(first.initial[None])
    began = _chosen(first.state, shape[:2], model.states, "first.state")
    acted = _chosen(first.action, shape[:2], model.actions, "first.action")
    columns = tuple(np.zeros(shape, np.int64) for _ in range(4)) + tuple(np.zeros(shape, bool) for _ in range(3))
    length = walk(
        noise.uniform(3, horizon, rows),
        policy.probs.contiguous().numpy(),
        moves.successor,
        moves.probability,
        (starts.states, starts.cdf),
        moves.ends,
        began,
        acted,
        time_limit or 0,
        whole_episodes,
        columns,
    )
    state, action, following, step, terminated, truncated, valid = (
        torch.from_numpy(column if length == horizon else column[..., :length].copy()) for column in columns
    )
    r_leader, r_follower = look_up(model.r_leader, state, action), look_up(model.r_follower, state, action)
    return Rollout(state, action, following, r_leader, r_follower, terminated, truncated, step, valid)


def _chosen(first: np.ndarray | None, shape: tuple[int, int], count: int, name: str) -> np.ndarray:
    """First states or actions as int [R, N], −1 for a draw."""
    if first is None:
        return np.full(shape, -1)
    array = np.asarray(first, dtype=np.int64).reshape(shape)
    if array.min() < -1 or array.max() >= count:
        raise ValueError(
            f"`{name}` must lie in 0 … {count - 1}, or be −1 for a draw; got {array.min()} … {array.max()}"
        )
    return array
