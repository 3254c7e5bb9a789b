"""An order of states in which those that follow each other stand close together, for banded linear algebra."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

SMALLEST_BANDED = 32  # below, the order does not matter
HUB = 1.5  # times as many neighbours as the median state has make a state worth trying in the border


@dataclass(frozen=True)
class Band:
    """Where the entries of I − γΠ lie after reordering.

    Attributes:
      position: place of each state in the new order, int [S].
      width: largest distance between the places of two states that follow each other, but for the border.
      border: the last so many places belong to states with many neighbours, whose rows and columns may be full.
    """

    position: np.ndarray
    width: int
    border: int = 0


def band_of(successor: np.ndarray, probability: np.ndarray) -> Band:
    """The reverse Cuthill–McKee order of moves that are possible in any run, hubs last.

    One state that everything leads to, such as a common sink or a restart, would make the band as wide as the matrix.
    Of the states with the most neighbours none, one, two, four, ... are put in the border, as many as make the
    elimination cheapest, S (width + border)².

    Args:
      successor: states a step may lead to, int [R|1, S, B, K].
      probability: of going on to each, [R|1, S, B, K].
    """
    states = successor.shape[1]
    successor = np.broadcast_to(successor, probability.shape)
    if states < SMALLEST_BANDED:
        return Band(np.arange(states), max(states - 1, 0))
    source = np.broadcast_to(np.arange(states)[:, None, None], successor.shape)[probability > 0]
    target = successor[probability > 0]
    graph = csr_array((np.ones(len(source), bool), (source, target)), shape=(states, states))
    neighbours = np.diff(graph.indptr) + np.bincount(graph.indices, minlength=states)
    hubs = np.flatnonzero(neighbours > HUB * np.median(neighbours))
    hubs = hubs[np.argsort(-neighbours[hubs], kind="stable")][: states // 8]
    bands = [_bordered(graph, hubs[:0])]
    for count in (*(1 << np.arange(len(hubs).bit_length())), len(hubs)):
        if 0 < count <= len(hubs):
            bands.append(_bordered(graph, hubs[:count]))
    return min(bands, key=lambda band: band.width + band.border)


def _bordered(graph: csr_array, hubs: np.ndarray) -> Band:
    """The order with these states last."""
    states = graph.shape[0]
    kept = np.delete(np.arange(states), hubs)
    inner = graph[kept][:, kept] if len(hubs) else graph
    order = reverse_cuthill_mckee(inner, symmetric_mode=False)
    place = np.empty(len(kept), dtype=np.int64)
    place[order] = np.arange(len(kept))
    width = np.abs(place[np.repeat(np.arange(len(kept)), np.diff(inner.indptr))] - place[inner.indices]).max(initial=0)
    position = np.empty(states, dtype=np.int64)
    position[kept], position[hubs] = place, np.arange(len(kept), states)
    return Band(position, int(width), len(hubs))
