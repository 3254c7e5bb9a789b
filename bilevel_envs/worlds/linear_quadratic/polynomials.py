"""Polynomials of degree 2, fitted to temporal differences by least squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_envs.worlds.linear_quadratic.model import Quadratic, linear

LARGE = 10  # states of a tenth of the mean |s|² count half


@dataclass(frozen=True)
class Polynomial:
    """x ↦ (1, x)ᵀ M (1, x), for each run: every polynomial of degree 2.

    Attributes:
      matrix: M, symmetric, [R|1, 1 + d, 1 + d].
    """

    matrix: Tensor

    @classmethod
    def of(cls, q: Quadratic) -> Polynomial:
        """The same function as `q`."""
        matrix = torch.zeros(len(q.matrix), *[1 + q.matrix.shape[-1]] * 2, dtype=q.matrix.dtype)
        matrix[:, 0, 0], matrix[:, 1:, 1:] = q.constant, q.matrix
        return cls(matrix)

    def __call__(self, *parts: Tensor) -> Tensor:
        """Values at x = the parts side by side, each [R, ..., d_i]; the result is [R, ...]."""
        x = with_one(*parts)
        return (x * linear(self.matrix, x)).sum(-1)

    def gradient(self, *parts: Tensor) -> Tensor:
        """∇ at x = the parts side by side, [R, ..., d]."""
        return 2 * linear(self.matrix, with_one(*parts))[..., 1:]


def with_one(*parts: Tensor) -> Tensor:
    """(1, x) of x = the parts side by side, [..., 1 + d]; its `products` are all monomials of degree at most 2."""
    return torch.cat([torch.ones_like(parts[0][..., :1]), *parts], -1)


def relative(state: Tensor, used: Tensor) -> Tensor:
    """Factor 1 / (1 + 10 |s|² / mean |s|²) of each state's equation in a fit, 0 where not used, [R, K].

    What a polynomial of degree 2 leaves unexplained grows with |s|², and a few large states would decide. Taken by the
    batch's mean, a factor that is common to all of a state has no influence. It is meant for regressions only: temporal
    differences converge because states count as often as they are visited.

    Args:
      state: [R, K, n].
      used: whether there is such a state, [R, K].
    """
    size = torch.where(used > 0, (state.double() ** 2).sum(-1), 0.0)
    mean = size.sum(-1, keepdim=True) / used.sum(-1, keepdim=True).clamp(min=1)
    return used / (1 + LARGE * size / mean.clamp(min=torch.finfo(size.dtype).tiny))


def products(x: Tensor) -> Tensor:
    """x_i x_j for i ≤ j, in the order of `torch.triu_indices`, [..., d (d + 1) / 2]."""
    row, column = torch.triu_indices(x.shape[-1], x.shape[-1])
    return x[..., row] * x[..., column]


def symmetric(entries: Tensor, size: int) -> Tensor:
    """The matrix M with xᵀMx = Σ entries · `products(x)`, [..., d, d]."""
    matrix = torch.zeros(*entries.shape[:-1], size, size, dtype=entries.dtype)
    row, column = torch.triu_indices(size, size)
    matrix[..., row, column] = entries
    return (matrix + matrix.mT) / 2


def lstd(phi: Tensor, later: Tensor | None, reward: Tensor, gamma: float) -> Tensor:
    """The w that solves Σ φ (φ − γ φ')ᵀ w = Σ φ r: the fixed point of temporal differences within the features.

    Args:
      phi: φ of each transition, 0 where it does not count, [R, K, F].
      later: E[φ'] after it, 0 where nothing follows, [R, K, F]; None if nothing ever follows: a plain regression.
      reward: [R, K, D].
      gamma: γ; without influence in a regression.

    Returns:
      w, [R, F, D].

    Source: Bradtke, Barto, Linear least-squares algorithms for temporal difference learning,
    Machine Learning 22 (1996).
    """
    size, phi, system = _system(phi, later, gamma)
    return torch.linalg.lstsq(system, phi.mT @ reward, driver="gelsd").solution / size.mT


def lstd_adjoint(phi: Tensor, later: Tensor | None, functional: Tensor, gamma: float) -> Tensor:
    """The weights h of transitions with Σ_k h_k r_k = functional · w, for the w that `lstd` makes of any reward r.

    Args:
      phi: as in `lstd`, [R, K, F].
      later: as in `lstd`, [R, K, F] or None.
      functional: a linear function of w, [R, F].
      gamma: γ.

    Returns:
      h, [R, K].
    """
    size, phi, system = _system(phi, later, gamma)
    share = torch.linalg.lstsq(system.mT, functional[..., None] / size.mT, driver="gelsd").solution
    return (phi @ share)[..., 0]


def _system(phi: Tensor, later: Tensor | None, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """The features' sizes, [R, 1, F], the features divided by them, and Σ φ (φ − γ φ')ᵀ."""
    # Features range over many powers of ten: each is scaled to its own size in the batch.
    size = phi.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    phi = phi / size
    return size, phi, phi.mT @ (phi if later is None else phi - gamma * later / size)
