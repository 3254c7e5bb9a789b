"""Maximum-entropy Q-learning with a network, for discrete actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor

from bilevel_envs.core.checks import check_number
from bilevel_envs.followers.sb3.masked import CLOSED


class SoftDQN(DQN):
    r"""DQN whose target is soft: y = r + γ β log Σ_b exp(Q⁻(s', b) / β), and who acts with softmax(Q / β).

    SB3 has no discrete maximum-entropy method; this one differs from its DQN in the target, in the squared loss (a soft
    target is no outlier) and in how it acts: by the Boltzmann policy of its own values, mixed with uniform actions at
    the exploration rate. Three defaults differ, which SB3 chose for millions of Atari frames: with a target refreshed
    every 10,000 steps a response of 1,000 is one Bellman backup at most.

    Args:
      policy, env: as of SB3's DQN.
      beta: β > 0, in the units of the rewards that it is paid.
      learning_rate: SB3's; 1e-3 instead of 1e-4.
      batch_size: SB3's; 256 instead of 32, which takes no more time with networks of this size.
      target_update_interval: SB3's; 100 environment steps instead of 10,000.
      kwargs: SB3's further arguments of DQN.

    Source: Haarnoja, Tang, Abbeel, Levine, Reinforcement learning with deep energy-based policies (2017).
    """

    def __init__(
        self,
        policy: str | type[DQNPolicy],
        env: GymEnv | str,
        beta: float = 0.1,
        learning_rate: float | Schedule = 1e-3,
        batch_size: int = 256,
        target_update_interval: int = 100,
        **kwargs: Any,
    ) -> None:
        self.beta = check_number(beta, "beta", above=0, remedy="β is the follower's entropy coefficient")
        kwargs |= {"batch_size": batch_size, "target_update_interval": target_update_interval}
        super().__init__(policy, env, learning_rate, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Takes so many steps of the optimiser on minibatches of the replay buffer."""
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for _ in range(gradient_steps):
            data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            gamma = self.gamma if data.discounts is None else data.discounts
            with torch.no_grad():
                later = self.q_net_target(data.next_observations)
                v_next = self.beta * torch.logsumexp(later / self.beta, 1, keepdim=True)
                wanted = data.rewards + (1 - data.dones) * gamma * v_next
            q = self.q_net(data.observations).gather(1, data.actions.long())
            loss = (q - wanted).square().mean()
            self.policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", loss.item())

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions drawn from softmax(Q / β), each uniform with the exploration rate; the likeliest if deterministic."""
        if deterministic:
            return self.policy.predict(observation, state, episode_start, deterministic)
        seen, many = self.policy.obs_to_tensor(observation)
        with torch.no_grad():
            q = self.q_net(seen)
            probs = torch.lerp(torch.softmax(q / self.beta, 1), _evenly(q), self.exploration_rate)
            action = torch.multinomial(probs, 1)[:, 0].numpy()
        return (action if many else action[0]), state

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """SB3's, where what it draws blindly at first is drawn again if it is not possible."""
        action, stored = super()._sample_action(learning_starts, action_noise, n_envs)
        if self.num_timesteps >= learning_starts or self._last_obs is None:
            return action, stored
        with torch.no_grad():
            share = _evenly(self.q_net(self.policy.obs_to_tensor(self._last_obs)[0]))
        for copy in np.flatnonzero(share[torch.arange(n_envs), torch.from_numpy(action)].numpy() == 0):
            action[copy] = stored[copy] = self.action_space.sample(mask=(share[copy] > 0).numpy().astype(np.int8))
        return action, stored


def _evenly(q: Tensor) -> Tensor:
    """The same probability for every action that is possible, [K, B]."""
    opened = (q > CLOSED / 2).to(q.dtype)
    return opened / opened.sum(1, keepdim=True)
