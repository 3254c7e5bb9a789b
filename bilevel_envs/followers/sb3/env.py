"""The follower's environment at one θ as Stable-Baselines3 wants it: a VecEnv."""

from __future__ import annotations

from collections import deque

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from bilevel_envs.core.vector_rollout import components_of

REMEMBERED = 1_000  # observations of the last steps


class FollowerVecEnv(VecEnv):
    """An array-stepped vector environment of ours, with rewards and actions in the agent's own units.

    Args:
      envs: a vector environment with autoreset SAME_STEP.
      reward_scale: rewards are divided by it.
      bonus: added to each reward before, in the units of the environment.
      low, high: what the agent's −1 and 1 mean; None where it speaks the environment's units.
      seed: environment i starts with seed + i.

    Attributes:
      paid: mean reward per step and call so far, in the environment's units and without the bonus.
      seen: the observations of the last steps, [num_envs, ...] each.
    """

    def __init__(
        self,
        envs: gym.vector.VectorEnv,
        reward_scale: float = 1.0,
        bonus: float = 0.0,
        low: np.ndarray | None = None,
        high: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        actions = envs.single_action_space
        self.envs, self.reward_scale, self.bonus, self.low, self.high = envs, reward_scale, bonus, low, high
        if low is not None:
            actions = gym.spaces.Box(-1.0, 1.0, actions.shape, np.float32)
        self.render_mode = None
        super().__init__(envs.num_envs, envs.single_observation_space, actions)
        self.paid: list[float] = []
        self.seen: deque[np.ndarray] = deque(maxlen=-(-REMEMBERED // envs.num_envs))
        self._first_seed: int | None = seed
        self._actions: np.ndarray = np.empty(0)

    def reset(self) -> VecEnvObs:
        """First observations; seeded the first time."""
        observation, _ = self.envs.reset(seed=self._first_seed)
        self._first_seed = None
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Remembers the actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Takes them."""
        observation, reward, terminated, truncated, seen = self.envs.step(self.in_units(self._actions))
        self.paid.append(float(np.mean(reward)))
        self.seen.append(observation)
        ended = terminated | truncated
        infos: list[dict[str, object]] = [{} for _ in range(self.num_envs)]
        for logged in components_of(seen, ended):
            for info, components in zip(infos, logged, strict=True):
                info["components"] = components
        for index in np.flatnonzero(ended):
            infos[index]["terminal_observation"] = seen["final_obs"][index]
            infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        return observation, ((reward + self.bonus) / self.reward_scale).astype(np.float32), ended, infos

    def in_units(self, actions: np.ndarray) -> np.ndarray:
        """An agent's actions [..., m] in the units of the environment."""
        if self.low is None or self.high is None:
            return actions
        return self.low + (self.high - self.low) * (actions.astype(np.float64) + 1) / 2

    def close(self) -> None:
        """Closes the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[object]:
        """The same for all."""
        return [getattr(self.envs, attr_name, None)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Refused: θ has one owner."""
        raise NotImplementedError("attributes of these environments cannot be set; use `configure` before")

    def env_method(
        self, method_name: str, *args: object, indices: VecEnvIndices = None, **kwargs: object
    ) -> list[object]:
        """Calls a method of the vector environment, once."""
        return [getattr(self.envs, method_name)(*args, **kwargs)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Never."""
        return [False] * len(list(self._get_indices(indices)))
