"""Draws batches from any vector environment by `reset` and `step`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import Policy, action_shape_of
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise


class Checks(Protocol):
    """What a kind of world checks of trajectories; see `bilevel_envs.worlds.world.World`."""

    def check_policy(self, policy: Policy, runs: int, model: Model | None) -> None:
        """Refuses what is no policy in the model."""

    def check_observation(self, observation: np.ndarray, model: Model | None) -> None:
        """Refuses observations that are no states of the model."""

    def check_batch(self, batch: Rollout, model: Model | None) -> None:
        """Refuses a batch that lies outside the model."""


def vector_rollout(
    envs: gym.vector.VectorEnv,
    policy: Policy,
    noise: Noise,
    *,
    horizon: int,
    whole_episodes: bool = False,
    model: Model | None = None,
    world: Checks | None = None,
) -> Rollout:
    """T steps of every environment from a fresh reset, by standard calls.

    Args:
      envs: R x N environments, the N of one run side by side; autoreset mode SAME_STEP; the leader's reward in
        `infos["leader_reward"]`.
      policy: how the follower acts on what it observes.
      noise: one stream per run; seeds the environments and draws the actions.
      horizon: T.
      whole_episodes: rows stop after their first episode instead of starting another.
      model: the environments' model, in which the policy, states and actions must lie.
      world: the model's kind, which checks that; None checks nothing.

    Returns:
      A batch [R, N, T], rows cut to the longest one in use.

    Raises:
      TypeError: if the policy is of another kind than the model.
      ValueError: if `envs` has another autoreset mode, or no leader reward, or if the policy or what `envs` gave does
        not fit the model.
    """
    if world is not None:
        world.check_policy(policy, noise.runs, model)
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise ValueError(f"`envs` must autoreset in the mode {AutoresetMode.SAME_STEP}, got {mode}")
    rows = envs.num_envs // noise.runs
    shape = (noise.runs, rows)
    seeds: Any = noise.seeds(rows).reshape(-1).tolist()  # Gymnasium takes one per environment; its type hint does not
    observation, _ = envs.reset(seed=seeds)
    action_shape = action_shape_of(policy)
    uniform = noise.uniform(horizon, rows, *action_shape)
    step, valid = np.zeros(shape, int), np.ones(shape, bool)
    columns: list[list[np.ndarray]] = [[] for _ in range(9)]
    logged: list[np.ndarray] = []
    for k in range(horizon):
        state = _by_run(np.asarray(observation), shape, is_state=True)
        try:
            action = policy.sample(state, uniform[:, k]).numpy()
        except IndexError:  # a table is asked for a state that it has not
            if world is not None:
                world.check_observation(state, model)
            raise
        observation, reward, terminated, truncated, infos = envs.step(action.reshape(-1, *action_shape))
        ended = terminated | truncated
        following, leader_reward = _of_step(observation, infos, ended)
        flat = (leader_reward, reward, terminated, truncated)
        arrived = _by_run(following, shape, is_state=True)
        row = (state, action, arrived, *(_by_run(value, shape) for value in flat), step, valid)
        logged.extend(_by_run(found, shape, is_state=True) for found in components_of(infos, ended))
        for column, value in zip(columns, row, strict=True):
            column.append(value)
        ended = ended.reshape(shape)
        step = np.where(ended, 0, step + 1)
        if whole_episodes:
            valid = valid & ~ended
            if not valid.any():
                break
    batch = Rollout(*(torch.from_numpy(np.stack(column, 2)) for column in columns))
    if logged:
        batch = replace(batch, components=torch.from_numpy(np.stack(logged, 2)))
    if world is not None:
        world.check_batch(batch, model)
    return batch


def _of_step(observation: np.ndarray, infos: dict[str, Any], ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a step led, and r_L.

    Where an episode ended, both stand in the final info: the top level belongs to the next episode.
    """
    leader_reward, following = np.zeros(len(ended)), np.array(observation)
    if not ended.all():
        leader_reward[~ended] = _leader_reward(infos)[~ended]
    if ended.any():
        leader_reward[ended] = _leader_reward(infos["final_info"])[ended]
        for index in np.flatnonzero(ended):
            following[index] = infos["final_obs"][index]
    return following, leader_reward


def components_of(infos: Mapping[str, Any], ended: np.ndarray) -> list[np.ndarray]:
    """What a step logged, [n, C], alone in a list; nothing where none is logged.

    Args:
      infos: of the step; where an episode ended, what was logged stands in the final info.
      ended: which episodes the step ended, bool [n].
    """
    told = [part["components"] for part in (infos, infos.get("final_info", {})) if "components" in part]
    if not told:
        return []
    found = np.asarray(told[0]).copy()
    if ended.any():
        found[ended] = told[-1][ended]
    return [found]


def _by_run(x: np.ndarray, shape: tuple[int, int], is_state: bool = False) -> np.ndarray:
    """[R·N, ...] → [R, N, ...], whole numbers as int64; a number that is no state may also stand in a column."""
    x = x.astype(np.int64, copy=False) if x.dtype.kind in "iu" else x
    if is_state:
        return np.reshape(x, (*shape, *np.shape(x)[1:]))
    return np.reshape(x, shape if np.size(x) == shape[0] * shape[1] else (*shape, *np.shape(x)[1:]))


def _leader_reward(infos: Mapping[str, object]) -> np.ndarray:
    try:
        return np.asarray(infos["leader_reward"], float)
    except KeyError:
        raise ValueError(
            'the environment must put the leader\'s reward into `info["leader_reward"]` at every step; '
            f"got the keys {sorted(infos)}"
        ) from None
