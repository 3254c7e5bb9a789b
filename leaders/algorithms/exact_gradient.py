"""The exact hypergradient, solved for."""

from __future__ import annotations

from typing import ClassVar, Unpack

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model
from leaders import exact
from leaders.config import LeaderConfig, changed
from leaders.estimate import Estimate
from leaders.exact.solve import check_solved
from leaders.keywords import LeaderKeywords, accepted
from leaders.leader import Leader


class ExactGradient(Leader):
    """Ascends the exact hypergradient: no samples; what the estimators would do without noise.

    ::

        each outer iteration:
            g ← follower's response to θ
            solve for V_L, the discounted visits and the adjoint;   θ ← θ + α ∇J_L(θ)

    Args:
        env: a ``BilevelWrapper`` around an environment with tables or a linear-quadratic model.

    References:
        Theorem 1 of arXiv:2603.14867, with its sums solved (``leaders.exact``).
    """

    name: ClassVar[str] = "exact"
    gives_samples: ClassVar[bool] = True

    def __init__(self, env: gym.Env, **keywords: Unpack[LeaderKeywords]) -> None:
        given = accepted(type(self), keywords)
        super().__init__(env, changed(LeaderConfig(), given), given)

    def _check_model(self, model: Model) -> None:
        check_solved(model, type(self).__name__)

    def _estimate(self, theta: Tensor, model: Model, best: BestResponse) -> Estimate:
        solves = 0
        if not best.optimal:
            best, solves = exact.best_response(model.detach(), self.env.preferences, best), 1
        value, direct, guiding = exact.value_and_surrogates(model, best, self.env.preferences)
        return Estimate(direct + guiding, follower_solves=solves, leader_value=None if solves else value)

    def _samples(self, count: int, episodes: int | None, seed: int | None) -> Tensor:
        """The exact hypergradient, `count` times over: it does not vary."""
        theta = self._theta().detach()
        return torch.from_numpy(exact.hypergradient(self.env, theta)).expand(count, *theta.shape).clone()
