"""Worlds of linear dynamics and quadratic rewards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import Policy
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.linear_quadratic.checks import check_gaussian
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.linear_quadratic.rollout import linear_rollout
from bilevel_envs.worlds.world import World


class LinearQuadraticWorld(World[LinearQuadraticModel, GaussianPolicy]):
    """Matrices; nothing but a time limit ends an episode."""

    name = "linear_quadratic"
    environment = "bilevel_envs.worlds.linear_quadratic.env:LinearEnv"
    default_follower = "riccati"

    def rollout(
        self,
        model: LinearQuadraticModel,
        policy: GaussianPolicy,
        noise: Noise,
        *,
        rows: int,
        horizon: int,
        time_limit: int | None,
        whole_episodes: bool,
    ) -> Rollout:
        """Drawn from the matrices."""
        return linear_rollout(model, policy, noise, rows=rows, horizon=horizon, time_limit=time_limit)

    def check_policy(self, policy: Policy, runs: int, model: LinearQuadraticModel) -> None:
        """Refuses tables, and Gaussians of another size or without a covariance."""
        check_gaussian(policy, runs, model)

    def knows_rewards(self, observations: Callable[[int], np.ndarray], model: LinearQuadraticModel) -> bool:
        """Always."""
        return True

    def stored_reward(
        self, model: LinearQuadraticModel, run: int, observation: np.ndarray, action: np.ndarray
    ) -> np.ndarray:
        """−sᵀQs − bᵀRb."""
        state, real = torch.from_numpy(observation).double()[None], torch.from_numpy(action)[None]
        reward = model.r_follower(state, real)
        return reward[run if len(reward) > 1 else 0].numpy()


WORLD = LinearQuadraticWorld()
