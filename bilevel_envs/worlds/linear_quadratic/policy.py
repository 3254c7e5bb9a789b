"""The follower's policy as a Gaussian around a linear mean."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from bilevel_envs.core.follower import BestResponse, Missing
from bilevel_envs.worlds.linear_quadratic.model import Quadratic, along, linear

POINTS = 5  # of Gauss–Hermite quadrature per action: exact for polynomials of degree 9
MOST_FOR_QUADRATURE = 3  # actions


def hermite(size: int) -> tuple[Tensor, Tensor]:
    """Nodes [J, m] and weights [1, 1, J] of the product rule for N(0, I)."""
    points, weights = np.polynomial.hermite_e.hermegauss(POINTS)
    weights = weights / weights.sum()
    nodes = np.array(list(itertools.product(points, repeat=size)))
    products = np.array(list(itertools.product(weights, repeat=size))).prod(-1)
    return torch.from_numpy(nodes), torch.from_numpy(products)[None, None]


@dataclass(frozen=True)
class GaussianPolicy:
    """g(b | s) = N(−K s, Σ), for each run.

    Attributes:
      gain: K, [R|1, m, n].
      covariance: Σ, [R|1, m, m].
    """

    kind: ClassVar[str] = "linear_quadratic"
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

    def action_nodes(self, state: Tensor) -> tuple[Tensor, Tensor] | None:
        """Actions [R, K, J, m] and weights [1, 1, J] whose weighted sums are expectations at states [R, K, n].

        Gauss–Hermite quadrature, exact for polynomials of degree 9; None for more than three actions.
        """
        (size,) = self.action_shape
        if size > MOST_FOR_QUADRATURE:
            return None
        normal, weight = hermite(size)
        spread = normal @ self.factor.mT  # [R|1, J, m]
        return self.mean(state)[:, :, None] + spread[:, None], weight

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


LinearResponse: TypeAlias = BestResponse[GaussianPolicy, Quadratic | Missing]  # to a `LinearQuadraticModel`
