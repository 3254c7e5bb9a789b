"""An order of states in which those that follow each other stand close together, for banded linear algebra."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

SMALLEST_BANDED = 32  # below, the order does not matter


@dataclass(frozen=True)
class Band:
    """Where the entries of I − γΠ lie after reordering.

    Attributes:
      position: place of each state in the new order, int [S].
      width: largest distance between the places of two states that follow each other.
    """

    position: np.ndarray
    width: int


def band_of(successor: np.ndarray, probability: np.ndarray) -> Band:
    """The reverse Cuthill–McKee order of moves that are possible in any run.

    Args:
      successor: states a step may lead to, int [R|1, S, B, K].
      probability: of going on to each, [R|1, S, B, K].
    """
    states = successor.shape[1]
    successor = np.broadcast_to(successor, probability.shape)
    if states < SMALLEST_BANDED:
        return Band(np.arange(states), states - 1)
    source = np.broadcast_to(np.arange(states)[:, None, None], successor.shape)[probability > 0]
    target = successor[probability > 0]
    graph = csr_array((np.ones(len(source), bool), (source, target)), shape=(states, states))
    position = np.empty(states, dtype=np.int64)
    position[reverse_cuthill_mckee(graph, symmetric_mode=False)] = np.arange(states)
    return Band(position, int(np.abs(position[source] - position[target]).max(initial=0)))
