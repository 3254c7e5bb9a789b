"""What a response of an agent has taken and brought so far, and what it has seen."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    from bilevel_envs.followers.sb3.env import FollowerVecEnv


class Paid:
    """What a response has taken and brought one run so far.

    Attributes:
      steps: environment steps.
      rewards: mean rewards per step, call by call.
      seen: the last observations, [K, ...].
      goes_on: whether there are steps left.
    """

    def __init__(self) -> None:
        self.steps, self.goes_on = 0, True
        self.rewards: list[float] = []
        self.seen: np.ndarray = np.empty(0)

    def add(self, steps: int, world: FollowerVecEnv) -> None:
        """Adds a training that took so many steps."""
        self.steps += steps
        self.rewards += world.paid
        self.seen = np.concatenate(world.seen)


def running(mean: Tensor, var: Tensor, count: float) -> RunningMeanStd:
    """SB3's running mean and variance, as they were."""
    made = import_module("stable_baselines3.common.running_mean_std").RunningMeanStd(shape=tuple(mean.shape))
    made.mean, made.var, made.count = mean.numpy().copy(), var.numpy().copy(), count
    return made


def parts_of(scale: RunningMeanStd) -> list[Any]:
    """What `running` makes it of again."""
    return [torch.from_numpy(scale.mean.copy()), torch.from_numpy(scale.var.copy()), scale.count]


def scale_state(agent: BaseAlgorithm) -> list[Any] | None:
    """The parts of the running mean by which an agent's observations are normalised; None where they are not."""
    shown = agent.get_vec_normalize_env()
    return None if shown is None else parts_of(cast("RunningMeanStd", shown.obs_rms))
