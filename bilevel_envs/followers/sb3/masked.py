"""Q-networks that know which actions are possible: the last entries of what they see say so."""

from __future__ import annotations

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor

CLOSED = -1e9  # Q of what is not possible


class MaskedQNetwork(QNetwork):
    """Q, and `CLOSED` for actions whose entry of the mask is 0."""

    def forward(self, obs: PyTorchObs) -> Tensor:
        """Q at observations [K, n] with a mask behind, [K, B]."""
        assert isinstance(obs, Tensor)
        q: Tensor = super().forward(obs)
        return torch.where(obs[:, -q.shape[1] :] > 0.5, q, CLOSED)


class MaskedPolicy(DQNPolicy):
    """A DQN policy with such networks."""

    def make_q_net(self) -> MaskedQNetwork:
        """One of them."""
        return MaskedQNetwork(**self._update_features_extractor(self.net_args, features_extractor=None)).to(self.device)
