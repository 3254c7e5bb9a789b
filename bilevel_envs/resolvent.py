"""Solves x = y + γ Π x, where Π moves states under a policy: values, and visits by the transpose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_banded
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

SMALLEST_BANDED = 32  # below, a dense solve is as fast


@dataclass(frozen=True)
class Band:
    """The sparsity of a kernel [S, B, S] after reverse Cuthill–McKee reordering.

    Attributes:
      width: largest distance from the diagonal.
      row, column: positions of the K possible moves in the new order, int [K].
      source: the state each move leaves, in the old order, int [K].
      move: probability of the move under each action, [K, B].
      order: old index of each new position, int [S].
    """

    width: int
    row: np.ndarray
    column: np.ndarray
    source: np.ndarray
    move: np.ndarray
    order: np.ndarray


def band_of(kernel: Tensor) -> Band | None:
    """The banded form of a kernel [R|1, S, B, S] shared by all runs; None where dense algebra is as good."""
    states = kernel.shape[1]
    if kernel.shape[0] != 1 or states < SMALLEST_BANDED:
        return None
    table = kernel[0].numpy()
    graph = csr_array(table.any(axis=1))
    order = reverse_cuthill_mckee(graph, symmetric_mode=False)
    position = np.empty(states, dtype=int)
    position[order] = np.arange(states)
    source, target = graph.nonzero()
    row, column = position[source], position[target]
    width = int(np.abs(row - column).max(initial=0))
    if 4 * width > states:
        return None
    return Band(width, row, column, source, table[source, :, target], order)


def resolvent(
    kernel: Tensor, band: Band | None, policy: Tensor, gamma: float, y: Tensor, *, transpose: bool = False
) -> Tensor:
    r"""x = (I − γΠ)⁻¹ y, or (I − γΠᵀ)⁻¹ y, with Π[s, s'] = Σ_b g(b|s) kernel[s, b, s'].

    Args:
      kernel: probability of going on to s', [R|1, S, B, S]; rows sum to less than 1 where episodes end.
      band: `band_of(kernel)`.
      policy: g, [R, S, B].
      gamma: discount in [0, 1).
      y: right-hand side, [R, S].
      transpose: solve with Πᵀ, which carries visits forward instead of values backward.

    Returns:
      x, [R, S]. Gradients pass only where `band` is None.
    """
    if band is not None:
        return _banded(band, policy, gamma, y, transpose)
    moves = torch.einsum("rsb,rsbt->rst", policy, kernel.expand(policy.shape[0], -1, -1, -1))
    system = torch.eye(moves.shape[-1], dtype=moves.dtype) - gamma * moves
    return torch.linalg.solve(system.mT if transpose else system, y)


def _banded(band: Band, policy: Tensor, gamma: float, y: Tensor, transpose: bool) -> Tensor:
    """All runs as one block-diagonal banded system."""
    runs, states = y.shape
    width = band.width
    row, column = (band.column, band.row) if transpose else (band.row, band.column)
    moves = np.einsum("rkb,kb->rk", policy.numpy()[:, band.source], band.move)
    system = np.zeros((2 * width + 1, runs, states))
    system[width + row - column, :, column] = -gamma * moves.T
    system[width] += 1.0
    x = solve_banded(
        (width, width),
        system.reshape(2 * width + 1, -1),
        y.numpy()[:, band.order].reshape(-1),
        overwrite_ab=True,
        overwrite_b=True,
        check_finite=False,
    )
    out = np.empty((runs, states))
    out[:, band.order] = x.reshape(runs, states)
    return torch.from_numpy(out)
