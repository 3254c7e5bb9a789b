"""Draws batches: from any vector environment by `reset` and `step`, or straight from tables."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from bilevel_envs.model import Rollout
from bilevel_envs.noise import Noise
from bilevel_envs.policies import BoltzmannPolicy
from bilevel_envs.tabular import ALMOST_ONE, TabularModel, closed_cdf, draw, ladder_of


def vector_rollout(
    envs: gym.vector.VectorEnv,
    policy: BoltzmannPolicy,
    noise: Noise,
    *,
    horizon: int,
    whole_episodes: bool = False,
) -> Rollout:
    """T steps of every environment from a fresh reset, by standard calls.

    Args:
      envs: R x N environments, the N of one run side by side; autoreset mode SAME_STEP; the leader's reward in
        `infos["leader_reward"]`.
      policy: how the follower acts on what it observes.
      noise: one stream per run; seeds the environments and draws the actions.
      horizon: T.
      whole_episodes: rows stop after their first episode instead of starting another.

    Returns:
      A batch [R, N, T], rows cut to the longest one in use.

    Raises:
      ValueError: if `envs` has another autoreset mode, or no leader reward.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise ValueError(f"`envs` must autoreset in the mode {AutoresetMode.SAME_STEP}, got {mode}")
    rows = envs.num_envs // noise.runs
    shape = (noise.runs, rows)
    seeds: Any = noise.seeds(rows).reshape(-1).tolist()  # Gymnasium takes one per environment; its type hint does not
    observation, _ = envs.reset(seed=seeds)
    uniform = noise.uniform(horizon, rows)
    step, valid = np.zeros(shape, int), np.ones(shape, bool)
    columns: list[list[np.ndarray]] = [[] for _ in range(9)]
    for k in range(horizon):
        state = np.asarray(observation).reshape(shape)
        action = policy.sample(state, uniform[:, k]).numpy()
        observation, reward, terminated, truncated, infos = envs.step(action.reshape(-1))
        ended = terminated | truncated
        leader_reward, following = np.zeros(envs.num_envs), np.array(observation)
        if not ended.all():
            leader_reward[~ended] = _leader_reward(infos)[~ended]
        if ended.any():
            # What belongs to the step itself stands in the final info; the top level is the next episode's.
            leader_reward[ended] = _leader_reward(infos["final_info"])[ended]
            for index in np.flatnonzero(ended):
                following[index] = infos["final_obs"][index]
        row = (state, action, following, leader_reward, reward, terminated, truncated, step, valid)
        for column, value in zip(columns, row, strict=True):
            column.append(np.reshape(value, shape))
        ended = ended.reshape(shape)
        step = np.where(ended, 0, step + 1)
        if whole_episodes:
            valid = valid & ~ended
            if not valid.any():
                break
    return Rollout(*(torch.from_numpy(np.stack(column, -1)) for column in columns))


def table_rollout(
    model: TabularModel,
    policy: BoltzmannPolicy,
    noise: Noise,
    *,
    rows: int,
    horizon: int,
    time_limit: int | None = None,
    whole_episodes: bool = False,
    initial: np.ndarray | None = None,
    first_state: np.ndarray | None = None,
    first_action: np.ndarray | None = None,
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
      initial: another distribution of first states than the model's, [S].
      first_state: the state in which each row begins, int [R, N], for oracles that may choose it.
      first_action: the first action of each row, int [R, N]; −1 for the policy's own.

    Returns:
      A batch [R, N, T], rows cut to the longest one in use.
    """
    runs, states, actions = noise.runs, model.states, model.actions
    tables, count = model.structure.stepping, noise.runs * rows
    first_row = np.repeat(np.arange(runs), rows) * states  # states of all runs are numbered through

    def row_of(table: np.ndarray | torch.Tensor) -> np.ndarray | int:
        return first_row if table.shape[0] > 1 else 0

    policy_ladder, policy_row = ladder_of(policy.cdf), row_of(policy.cdf)
    next_ladder, next_row = tables.ladder, row_of(tables.cdf) * actions
    successor = tables.successor.reshape(-1)
    ends = model.continues.numpy() == 0
    ends_row, ends = row_of(ends), ends.reshape(-1, actions)

    # Time leads while drawing, so that each step reads and writes one contiguous row.
    draws = noise.uniform(3, horizon, rows).transpose(1, 2, 0, 3).reshape(3, horizon, count)
    np.minimum(draws, ALMOST_ONE, out=draws)
    start_cdf = tables.start_cdf if initial is None else closed_cdf(initial[None])
    begin = _inverse_cdf(start_cdf, draws[2], first_row // states)
    if first_state is not None:
        begin[0] = first_state.reshape(-1)
    limited = time_limit is not None and time_limit < horizon + 1
    state, action, following, step = (np.empty((horizon, count), int) for _ in range(4))
    terminated, truncated, valid = (np.zeros((horizon, count), bool) for _ in range(3))
    s, at, alive = begin[0], np.zeros(count, int), np.ones(count, bool)
    length = horizon
    for k in range(horizon):
        b = draw(policy_ladder, policy_row + s, draws[0, k]) % actions
        if k == 0 and first_action is not None:
            b = np.where(first_action.reshape(-1) < 0, b, first_action.reshape(-1))
        arrived = successor[draw(next_ladder, next_row + s * actions + b, draws[1, k])]
        over = ends[ends_row + s, b]
        state[k], action[k], following[k], step[k], terminated[k], valid[k] = s, b, arrived, at, over, alive
        if limited:
            truncated[k] = (at + 1 >= time_limit) & ~over
            over = over | truncated[k]
        at = np.where(over, 0, at + 1)
        if not whole_episodes:
            s = np.where(over, begin[k + 1 - (k + 1 == horizon)], arrived)
            continue
        s, alive = arrived, alive & ~over
        if not alive.any():
            length = k + 1
            break

    def rowwise(column: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(column[:length].T).reshape(runs, rows, length))

    state_t, action_t = rowwise(state), rowwise(action)
    return Rollout(
        state_t,
        action_t,
        rowwise(following),
        _visited(model.r_leader, state_t, action_t),
        _visited(model.r_follower, state_t, action_t),
        rowwise(terminated),
        rowwise(truncated),
        rowwise(step),
        rowwise(valid),
    )


def _visited(table: torch.Tensor, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    run = torch.arange(state.shape[0]).view(-1, 1, 1) if table.shape[0] > 1 else torch.zeros((), dtype=torch.long)
    return table[run, state, action]


def _inverse_cdf(cdf: np.ndarray, uniform: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Draws for every run from its row of `cdf` [R|1, K]; `uniform` is [..., R·N]."""
    if cdf.shape[0] == 1:
        return np.searchsorted(cdf[0], uniform, side="right")
    return (cdf[run] <= uniform[..., None]).sum(-1)


def _leader_reward(infos: dict) -> np.ndarray:
    try:
        return np.asarray(infos["leader_reward"], float)
    except KeyError:
        raise ValueError(
            'the environment must put the leader\'s reward into `info["leader_reward"]` at every step; '
            f"got the keys {sorted(infos)}"
        ) from None
