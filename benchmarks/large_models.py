"""Large tables as successor lists, for benchmarks of solvers: grids with four rooms, warehouses, random models."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

UP, RIGHT, DOWN, LEFT = (-1, 0), (0, 1), (1, 0), (0, -1)
DIRECTIONS = np.array([UP, RIGHT, DOWN, LEFT])


class Lists(NamedTuple):
    """A finite MDP.

    Attributes:
      successor: int32 [S, B|1, K].
      probability: [1, S, B, K], 0 for padding.
      continues: False where the episode ends with the step, bool [S, B].
      reward: [1, S, B].
    """

    successor: np.ndarray
    probability: np.ndarray
    continues: np.ndarray
    reward: np.ndarray


def four_rooms(side: int, *, slip: float = 1 / 3, penalty: float = 0.01, seed: int = 0) -> Lists:
    """A grid of so many cells a side, in four rooms; the last cell's steps earn 1 and end the episode.

    A step fails with probability `slip` and then goes in any direction. Walls leave the walker where it is. The fifth
    successor is the cell itself.
    """
    free = np.ones((side, side), bool)
    wall = side // 2
    free[wall, :] = free[:, wall] = False
    for gap in (side // 4, 3 * side // 4):
        free[wall, gap] = free[gap, wall] = True
    number = np.where(free, np.cumsum(free).reshape(free.shape) - 1, -1)
    rows, columns = np.nonzero(free)
    states = len(rows)
    successor = np.empty((states, 1, 5), np.int32)
    padded = np.pad(number, 1, constant_values=-1)
    for b, (down, right) in enumerate(DIRECTIONS):
        successor[:, 0, b] = padded[rows + 1 + down, columns + 1 + right]
    here = np.arange(states)
    blocked = successor[:, 0, :4] < 0
    successor[:, 0, 4] = here
    successor[:, 0, :4] = np.where(blocked, here[:, None], successor[:, 0, :4])
    probability = np.zeros((1, states, 4, 5))
    for b in range(4):
        for towards in range(4):
            probability[0, :, b, towards] = (1 - slip) * (b == towards) + slip / 4
    probability[0, ..., 4] = (probability[0, ..., :4] * blocked[:, None]).sum(-1)
    probability[0, ..., :4][np.broadcast_to(blocked[:, None], (states, 4, 4))] = 0.0
    continues = np.ones((states, 4), bool)
    continues[-1] = False
    reward = np.repeat(-penalty * np.random.default_rng(seed).random((states, 1)), 4, axis=1)[None]
    reward[0, -1] = 1.0
    return Lists(successor, probability, continues, reward)


def warehouse(side: int, *, slip: float = 0.1, penalty: float = 0.01, seed: int = 0) -> Lists:
    """Aisles between shelves, walked with a load and without: states are cells twice, K = 2, and nothing ends.

    Every third column is shelves, but for cross aisles every eighth row. A step fails with probability `slip`, and the
    walker stays. At the first cell it picks a load up, at the last it earns 1 for it.
    """
    free = np.ones((side, side), bool)
    free[:, 1::3] = False
    free[::8] = True
    free[-1] = True
    number = np.where(free, np.cumsum(free).reshape(free.shape) - 1, -1)
    rows, columns = np.nonzero(free)
    cells = len(rows)
    padded, here = np.pad(number, 1, constant_values=-1), np.arange(cells)
    successor = np.empty((2, cells, 4, 2), np.int32)
    for b, (down, right) in enumerate(DIRECTIONS):
        there = padded[rows + 1 + down, columns + 1 + right]
        there = np.where(there < 0, here, there)
        successor[0, :, b, 0] = np.where(there == 0, cells, there)  # with a load from here on
        successor[1, :, b, 0] = np.where(there == cells - 1, cells - 1, there + cells)
    successor[0, :, :, 1], successor[1, :, :, 1] = here[:, None], here[:, None] + cells
    successor = successor.reshape(2 * cells, 4, 2)
    probability = np.empty((1, 2 * cells, 4, 2))
    probability[..., 0], probability[..., 1] = 1 - slip, slip
    rng = np.random.default_rng(seed)
    reward = np.repeat(-penalty * rng.random((2 * cells, 1)), 4, axis=1)
    reward[cells:] += (successor[cells:, :, 0] == cells - 1) * (1 - slip)
    return Lists(successor, probability, np.ones((2 * cells, 4), bool), reward[None])


def random_model(states: int, actions: int, branches: int, *, seed: int = 0) -> Lists:
    """Successors drawn alike from all states, without end."""
    rng = np.random.default_rng(seed)
    successor = rng.integers(states, size=(states, actions, branches), dtype=np.int32)
    probability = rng.random((1, states, actions, branches))
    probability /= probability.sum(-1, keepdims=True)
    return Lists(successor, probability, np.ones((states, actions), bool), rng.random((1, states, actions)))
