"""The best of randomly drawn decisions."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_number
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model
from leaders.algorithms.search import SearchLeader
from leaders.estimate import Estimate
from leaders.keywords import LeaderKeywords


class RandomSearch(SearchLeader):
    """Draws raw parameters at random and keeps the one whose sampled return was best.

    Args:
        env: a ``BilevelWrapper``.
        scale: standard deviation of the draws around the policy's start, in raw coordinates.
        episodes: whole episodes per trial.

    References:
        The random-search study of arXiv:2603.14867's thermal control is the same idea in another world.
    """

    name: ClassVar[str] = "random-search"
    without: ClassVar[frozenset[str]] = frozenset(
        {"learning_rate", "learning_rate_decay", "max_grad_norm", "optimizer"}
    )

    def __init__(
        self, env: gym.Env, *, scale: float = 3.0, episodes: int = 4, **keywords: Unpack[LeaderKeywords]
    ) -> None:
        super().__init__(env, {"scale": scale}, keywords, episodes)
        self.scale = check_number(scale, "scale", above=0)
        self._centre = self._raw.flat()
        self._record = torch.full((self.runs,), -torch.inf, dtype=torch.float64)

    def _estimate(self, theta: Tensor, model: Model, best: BestResponse | None) -> Estimate:
        drawn = self._centre + self.scale * torch.from_numpy(self.noise.normal(self._centre.shape[1]))
        found, steps = self._trial(drawn, best, self.noise)
        better = found > self._record
        self._record = torch.where(better, found, self._record)
        return self._outcome([found], [steps], proposal=torch.where(better[:, None], drawn, self._raw.flat()))

    def _critic_state(self) -> dict[str, object]:
        return {"centre": self._centre, "record": self._record}

    def _load_critic_state(self, state: dict[str, Any]) -> None:
        self._centre, self._record = state["centre"], state["record"]
