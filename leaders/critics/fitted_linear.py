"""Q_L where the leader knows its reward, a bump, but has to learn how states move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import Policy
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy, LinearResponse
from leaders.exact.linear_quadratic import BumpValues

RIDGE = 1e-12  # relative to the size of each column, against columns that say the same


class FittedLinear:
    r"""Fits s' = A s + B b + w to the batch by least squares, and sums the bump's means along the fitted loop.

    Of the world only the leader's own reward and the number of steps that it sums are taken; matrices and noise come
    from the batch, the follower's policy is what it shows. Nothing is kept from batch to batch.

    Args:
      gamma: γ_L.
    """

    keeps: ClassVar[bool] = False
    gives_gradient: ClassVar[bool] = True

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.bumps: BumpValues | None = None

    def fit(self, batch: Rollout, best: LinearResponse, model: Model | None, noise: Noise) -> None:
        """One least-squares problem per run."""
        if not isinstance(model, LinearQuadraticModel) or model.bump is None or model.horizon is None:
            raise TypeError(
                'critic="fitted_linear" is for leaders whose reward is a bump; there is none in the '
                f"{type(model).__name__} given: choose another"
            )
        n = batch.state.shape[-1]
        x = torch.cat([batch.state, batch.action], -1).flatten(1, 2)
        y = batch.next_state.flatten(1, 2)
        size = x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
        scaled = x / size
        gram = scaled.mT @ scaled + RIDGE * x.shape[1] * torch.eye(x.shape[-1], dtype=x.dtype)
        weight = torch.linalg.solve(gram, scaled.mT @ y) / size.mT  # [R, n + m, n]
        left = (y - x @ weight).square().mean(1)
        fitted = replace(
            model,
            A=weight[:, :n].mT.contiguous(),
            B=weight[:, n:].mT.contiguous(),
            noise=torch.diag_embed(left),
            start=batch.state[:, :, 0].mean(1),
        )
        self.bumps = BumpValues(fitted, best.policy, self.gamma)

    def values(self, batch: Rollout, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
        """At the visited steps."""
        at, k = self._fitted(), batch.step
        return at.q(batch.state, batch.action, k), at.v(batch.state, k), at.v(batch.next_state, k + 1)

    def leader_gradient(self, policy: GaussianPolicy) -> Callable[[Tensor, Tensor], Tensor]:
        """∇V_L as a function of states and steps."""
        return self._fitted().gradient

    def copies(self, count: int) -> FittedLinear:
        """Another one: nothing is kept."""
        return FittedLinear(self.gamma)

    def state_dict(self) -> dict[str, object]:
        """Nothing: it is fitted anew to each batch."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to put back."""

    def _fitted(self) -> BumpValues:
        assert self.bumps is not None, "fit first"
        return self.bumps
