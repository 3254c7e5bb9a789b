"""The exact hypergradient, solved for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_envs.core.follower import BestResponse
from leaders import exact
from leaders.config import Common, changed, given
from leaders.leader import Estimate, Leader


class ExactGradient(Leader):
    """Ascends the exact hypergradient: no samples; what the estimators would do without noise.

    ::

        each outer iteration:
            g ← follower's response to θ
            solve for V_L, the discounted visits and the adjoint;   θ ← θ + α ∇J_L(θ)

    Args:
        env: a ``BilevelWrapper`` around an environment with tables or a linear-quadratic model.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ, or the name of one that the environment has; None for its default.
        runs: number of stacked runs (different starts); None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        Theorem 1 of arXiv:2603.14867, with its sums solved (``leaders.exact``).
    """

    name: ClassVar[str] = "exact"

    def __init__(
        self,
        env: gym.Env,
        *,
        learning_rate: Any = None,
        optimizer: str | None = None,
        max_grad_norm: float | None = None,
        policy: torch.nn.Module | str | None = None,
        runs: int | None = None,
        seed: int | Sequence[int] = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = given(locals())
        super().__init__(env, changed(Common(), arguments), arguments)

    def _estimate(self, theta: Tensor, model: Any, best: BestResponse) -> Estimate:
        solves = 0
        if not best.optimal:
            best, solves = exact.best_response(model.detach(), self.env.preferences, best), 1
        direct, guiding = exact.surrogates(model, best, self.env.preferences)
        return Estimate(direct + guiding, follower_solves=solves)

    def _samples(self, count: int, episodes: int | None, seed: int | None) -> Tensor:
        """The exact hypergradient, `count` times over: it does not vary."""
        theta = self._theta().detach()
        return torch.from_numpy(exact.hypergradient(self.env, theta)).expand(count, *theta.shape).clone()
