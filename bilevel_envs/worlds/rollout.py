"""Draws batches: from any vector environment by `reset` and `step`, or straight from tables."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel, truncated_normal
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.tabular.kernels import walk
from bilevel_envs.worlds.tabular.model import TabularModel, look_up
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.validation import check_batch, check_numbers, check_policy


def vector_rollout(
    envs: gym.vector.VectorEnv,
    policy: BoltzmannPolicy | GaussianPolicy,
    noise: Noise,
    *,
    horizon: int,
    whole_episodes: bool = False,
    model: Any = None,
) -> Rollout:
    """T steps of every environment from a fresh reset, by standard calls.

    Args:
      envs: R x N environments, the N of one run side by side; autoreset mode SAME_STEP; the leader's reward in
        `infos["leader_reward"]`.
      policy: how the follower acts on what it observes.
      noise: one stream per run; seeds the environments and draws the actions.
      horizon: T.
      whole_episodes: rows stop after their first episode instead of starting another.
      model: the environments' model, in which the policy, states and actions must lie; None checks nothing.

    Returns:
      A batch [R, N, T], rows cut to the longest one in use.

    Raises:
      TypeError: if the policy is of another kind than the model.
      ValueError: if `envs` has another autoreset mode, or no leader reward, or if the policy or what `envs` gave does
        not fit the model.
    """
    if model is not None:
        check_policy(policy, noise.runs, model)
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise ValueError(f"`envs` must autoreset in the mode {AutoresetMode.SAME_STEP}, got {mode}")
    rows = envs.num_envs // noise.runs
    shape = (noise.runs, rows)
    seeds: Any = noise.seeds(rows).reshape(-1).tolist()  # Gymnasium takes one per environment; its type hint does not
    observation, _ = envs.reset(seed=seeds)
    action_shape = getattr(policy, "action_shape", ())
    uniform = noise.uniform(horizon, rows, *action_shape)
    step, valid = np.zeros(shape, int), np.ones(shape, bool)
    columns: list[list[np.ndarray]] = [[] for _ in range(9)]
    for k in range(horizon):
        state = _by_run(np.asarray(observation), shape)
        try:
            action = policy.sample(state, uniform[:, k]).numpy()
        except IndexError:  # a table is asked for a state that it has not
            if isinstance(model, TabularModel):
                check_numbers(torch.from_numpy(state), state.shape[2:], model.states, "observations", "states")
            raise
        observation, reward, terminated, truncated, infos = envs.step(action.reshape(-1, *action_shape))
        ended = terminated | truncated
        leader_reward, following = np.zeros(envs.num_envs), np.array(observation)
        if not ended.all():
            leader_reward[~ended] = _leader_reward(infos)[~ended]
        if ended.any():
            # What belongs to the step itself stands in the final info; the top level is the next episode's.
            leader_reward[ended] = _leader_reward(infos["final_info"])[ended]
            for index in np.flatnonzero(ended):
                following[index] = infos["final_obs"][index]
        flat = (following, leader_reward, reward, terminated, truncated)
        row = (state, action, *(_by_run(value, shape) for value in flat), step, valid)
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        ended = ended.reshape(shape)
        step = np.where(ended, 0, step + 1)
        if whole_episodes:
            valid = valid & ~ended
            if not valid.any():
                break
    batch = Rollout(*(torch.from_numpy(np.stack(column, 2)) for column in columns))
    if model is not None:
        check_batch(batch, model)
    return batch


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

    Raises:
      TypeError: if the policy is no table.
      ValueError: if the policy does not fit the model, or a first state or action lies outside it.
    """
    check_policy(policy, noise.runs, model)
    moves, shape = model.structure.stepping, (noise.runs, rows, horizon)
    began, acted = (
        _chosen(first_state, shape[:2], model.states, "first_state"),
        _chosen(first_action, shape[:2], model.actions, "first_action"),
    )
    columns = tuple(np.zeros(shape, np.int64) for _ in range(4)) + tuple(np.zeros(shape, bool) for _ in range(3))
    length = walk(
        noise.uniform(3, horizon, rows),
        policy.probs.contiguous().numpy(),
        moves.successor,
        moves.probability,
        moves.initial if initial is None else initial[None],
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
    check_policy(policy, noise.runs, model)
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


def _by_run(x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[R·N, ...] → [R, N, ...], whole numbers as int64; one number per environment may also stand in a column."""
    x = x.astype(np.int64, copy=False) if x.dtype.kind in "iu" else x
    return np.reshape(x, shape if np.size(x) == shape[0] * shape[1] else (*shape, *np.shape(x)[1:]))


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


def _leader_reward(infos: dict) -> np.ndarray:
    try:
        return np.asarray(infos["leader_reward"], float)
    except KeyError:
        raise ValueError(
            'the environment must put the leader\'s reward into `info["leader_reward"]` at every step; '
            f"got the keys {sorted(infos)}"
        ) from None
