"""The follower's policy as a distribution over its actions: a table, or a Gaussian around a linear mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from bilevel_envs.linear_quadratic import Quadratic, along, linear
from bilevel_envs.tabular import Table, closed_cdf


@dataclass(frozen=True)
class BoltzmannPolicy:
    """g(b | s) = exp((Q(s, b) − V(s)) / β) as a table of log-probabilities.

    Attributes:
      log_probs: log g, [R|1, S, B].
    """

    log_probs: Tensor
    action_shape: ClassVar[tuple[int, ...]] = ()

    @cached_property
    def probs(self) -> Tensor:
        """g, [R|1, S, B]."""
        return self.log_probs.exp()

    @cached_property
    def cdf(self) -> np.ndarray:
        """Cumulative g over actions, the last possible action exactly 1, [R|1, S, B]."""
        return closed_cdf(self.probs.numpy())

    def sample(self, state: Tensor | np.ndarray | int, uniform: Tensor | np.ndarray | float) -> Tensor:
        """Actions by inverse CDF, shaped like `state`; `uniform` in [0, 1) has the same shape."""
        cdf = Table(torch.from_numpy(self.cdf))(state)
        return (cdf <= torch.as_tensor(uniform)[..., None]).sum(-1)

    def log_prob(self, state: Tensor | np.ndarray | int, action: Tensor | np.ndarray | int) -> Tensor:
        """log g(b | s), shaped like `state`."""
        return Table(self.log_probs)(state, action)

    def expect(self, q: Callable[[Tensor], Tensor], state: Tensor | np.ndarray | int) -> Tensor:
        """E_b[q(s, b)] under g, shaped like `state`; `q(state)` gives [..., B]."""
        state = torch.as_tensor(state)
        return (Table(self.probs)(state) * q(state)).sum(-1)


@dataclass(frozen=True)
class GaussianPolicy:
    """g(b | s) = N(−K s, Σ), for each run.

    Attributes:
      gain: K, [R|1, m, n].
      covariance: Σ, [R|1, m, m].
    """

    gain: Tensor
    covariance: Tensor

    @property
    def action_shape(self) -> tuple[int, ...]:
        """[m]."""
        return (self.gain.shape[-2],)

    @cached_property
    def factor(self) -> Tensor:
        """Lower Cholesky factor of Σ, [R|1, m, m]."""
        return torch.linalg.cholesky(self.covariance)

    def mean(self, state: Tensor) -> Tensor:
        """−K s at states [R, ..., n], [R, ..., m]."""
        return -linear(self.gain, state)

    def moments(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the action at states [R, ..., n], [R, ..., m], and its covariance, [R|1, 1, ..., m, m]."""
        covariance = self.covariance.view(-1, *[1] * (state.ndim - 2), *self.covariance.shape[1:])
        return self.mean(state), covariance

    def sample(self, state: Tensor | np.ndarray, uniform: Tensor | np.ndarray) -> Tensor:
        """Actions [R, ..., m] by inverse CDF from `uniform` in [0, 1), shaped like them."""
        smallest = np.finfo(float).tiny  # of a uniform number that is 0
        normal = torch.from_numpy(ndtri(np.maximum(np.asarray(uniform), smallest)))
        return self.mean(torch.as_tensor(state)) + linear(self.factor, normal)

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """log g(b | s), [R, ...]."""
        off = action - self.mean(state)
        white = linear(torch.linalg.inv(self.factor), off)
        volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + off.shape[-1] * np.log(2 * np.pi) / 2
        return -(white**2).sum(-1) / 2 - along(volume, off[..., 0])

    def expect(self, q: Quadratic, state: Tensor) -> Tensor:
        """E_b[q(s, b)] under g in closed form, for a quadratic q of (s, b); [R, ...]."""
        return self.averaged(q)(state)

    def averaged(self, q: Quadratic) -> Quadratic:
        """s ↦ E_b[q(s, b)], a quadratic again."""
        n, (m,) = self.gain.shape[-1], self.action_shape
        runs = len(self.gain)
        follow = torch.cat([torch.eye(n, dtype=self.gain.dtype).expand(runs, -1, -1), -self.gain], -2)  # s ↦ (s, −Ks)
        spread = (q.matrix[:, n:, n:] * self.covariance).sum((-2, -1))
        assert q.matrix.shape[-1] == n + m
        return Quadratic(follow.mT @ q.matrix @ follow, q.constant + spread)
