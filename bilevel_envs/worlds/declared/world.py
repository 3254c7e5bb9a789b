"""Worlds without a known model: trajectories come from `reset` and `step`, and followers learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, cast

import numpy as np
import torch

from bilevel_envs.core.follower import Policy
from bilevel_envs.worlds.declared.model import SimulatedModel
from bilevel_envs.worlds.declared.problem import RewardModel
from bilevel_envs.worlds.world import World

DeclaredModel: TypeAlias = SimulatedModel | RewardModel


class DeclaredWorld(World[DeclaredModel, Policy]):
    """Of the model only the terms that depend on θ are known."""

    name = "declared"
    environment = "bilevel_envs.worlds.declared.env:SimulatedEnv"

    def reads_components(self, model: DeclaredModel) -> bool:
        return model.reads_components

    def knows_rewards(self, observations: Callable[[int], np.ndarray], model: DeclaredModel) -> bool:
        return model.reads_components

    def stored_reward(self, model: DeclaredModel, run: int, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        own = cast(RewardModel, replace(model, theta=model.theta[run % model.runs][None]))
        r_follower, _ = own.rewards(torch.from_numpy(observation)[None])
        return r_follower[0].detach().numpy()


WORLD = DeclaredWorld()
