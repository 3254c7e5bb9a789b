"""A replay buffer that keeps what steps logged, from which their rewards at another θ follow."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer


class ComponentsBuffer(ReplayBuffer):
    """SB3's replay buffer, and beside it `components` [buffer_size, n_envs, C] of the steps stored.

    Args:
      buffer_size, observation_space, action_space, device, n_envs: SB3's.
      settings: SB3's further ones.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: gym.Space,
        action_space: gym.Space,
        device: str = "auto",
        n_envs: int = 1,
        **settings: bool,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device, n_envs, **settings)
        self.components = np.empty((self.buffer_size, self.n_envs, 0))

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Stores a step of each environment."""
        logged = np.array([info["components"] for info in infos])
        if self.components.shape[2] == 0:
            self.components = np.empty((self.buffer_size, self.n_envs, logged.shape[1]))
        self.components[self.pos] = logged
        super().add(obs, next_obs, action, reward, done, infos)
