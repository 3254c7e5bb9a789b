"""Which actions are possible, where an environment says so in `info["action_mask"]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

MASK = "action_mask"


def gives_mask(info: Mapping[str, Any], actions: gym.Space, name: str) -> bool:
    """Whether what a reset tells has a mask.

    Raises:
      TypeError: if it has, and the environment's actions are not in a Discrete.
    """
    if MASK in info and not isinstance(actions, gym.spaces.Discrete):
        raise TypeError(
            f"`env` must have actions in a Discrete where `info` has {MASK!r}; {name} has {actions}: put a wrapper "
            "around it that numbers them, or one that takes the mask out of `info`"
        )
    return MASK in info


def mask_of(info: Mapping[str, Any], actions: int, name: str, over: bool) -> np.ndarray:
    """1 for every action that is possible, else 0, [actions]; where an episode is over, all are.

    Raises:
      ValueError: if there is no such mask, or no action is possible.
    """
    if over:
        return np.ones(actions)
    mask = np.asarray(info.get(MASK, ()), float)
    if mask.shape != (actions,) or not np.isin(mask, (0, 1)).all() or not mask.any():
        raise ValueError(
            f"`env` must give {MASK!r} in `info` at every step, 0 or 1 for each of {actions} actions and 1 for one at "
            f"least, as {name} has done at its first reset; got {info.get(MASK)!r}"
        )
    return mask


def with_mask(seen: gym.spaces.Box, actions: int) -> gym.spaces.Box:
    """Observations with a mask behind them."""
    low, high = np.append(seen.low, np.zeros(actions)), np.append(seen.high, np.ones(actions))
    return gym.spaces.Box(low, high, dtype=np.float64)
