"""Where the entries of I − γΠ lie in a large table: merged successors in an order that keeps neighbours close."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from bilevel_envs.worlds.tabular.kernels.compiled import compiled

FEW_TRIANGLES = 0.05  # of the states; with more, factors that change the diagonal alone lose to ILU(0)
MOST_PER_ROW = 12  # entries of a merged row on average; with more, an incomplete factor costs more than it saves
HUB = 16  # times the mean of its neighbours make a state a hub, which the order of the others leaves out
LONG_LIST = 32  # successors of one action; longer lists are read where they are, with narrow indices
NARROW = np.iinfo(np.uint16).max + 1  # states that an index of two bytes tells apart


Lists: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]  # successor, probability, continues: see `pattern_of`


@dataclass(frozen=True, eq=False)
class Pattern:
    """What the successor lists alone decide; shared by runs, policies and probabilities.

    Attributes:
      successor: the lists, unsigned, of two bytes where they are long and the states few, [S, B|1, K].
      order: the state in each place, int32 [S]; by state where the model is wide.
      position: the place of each state, int32 [S].
      indptr: where each place's row begins among `indices`, int32 [S + 1]; a single 0 where the model is wide.
      indices: places that a place leads to, itself included, in rising order, int32 [nnz].
      diagonal: where each row's own place stands among `indices`, int32 [S].
      slot: where a successor stands in its state's row, unsigned [S, B|1, K]; the largest number where no probability
        was positive.
      sparse: whether hardly any neighbours of a state are neighbours themselves; False where the model is wide.
      whole: whether the probabilities of every step summed to 1; they must do so, or not, in all later tables as well.
    """

    successor: np.ndarray
    order: np.ndarray
    position: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    diagonal: np.ndarray
    slot: np.ndarray
    sparse: bool
    whole: bool

    @property
    def wide(self) -> bool:
        """Whether rows are too long for an incomplete factor; the other fields then hold nothing."""
        return len(self.indices) == 0

    @property
    def long(self) -> bool:
        """Whether successor lists are so long that copying rows costs more than it saves."""
        return self.successor.shape[2] > LONG_LIST


def pattern_of(
    successor: np.ndarray, probability: np.ndarray, continues: np.ndarray, *, wide: bool | None = None
) -> Pattern:
    """The pattern of the moves that are possible in any run.

    Args:
      successor: states a step may lead to, int [S, B|1, K].
      probability: of each, 0 for padding, anywhere in the list, [R|1, S, B, K].
      continues: False where the episode ends with the step, bool [S, B] or [R|1, S, B].
      wide: True keeps no merged rows, False keeps them in any case; None decides by their length.

    Raises:
      ValueError: if a successor is no state.
    """
    states, _, branches = successor.shape
    if successor.min(initial=0) < 0 or successor.max(initial=0) >= states:
        raise ValueError(
            f"`successor` must hold states 0 to {states - 1}, padding included, got {successor.min()} to "
            f"{successor.max()}"
        )
    if branches > LONG_LIST and states <= NARROW:
        lists = successor.astype(np.uint16)
    else:
        lists = np.ascontiguousarray(successor, np.int32).view(np.uint32)
    continues = continues.reshape(-1, states, probability.shape[2])
    whole = _sums_to_one(probability)
    most = states * (MOST_PER_ROW if wide is None else probability.shape[2] * branches + 1)
    indptr, indices = np.zeros(1, np.int32), np.zeros(0, np.int32)
    if not wide:
        indptr = _merged(lists, probability, continues, most, indices)
    if len(indptr) == 1:
        nothing = np.zeros(0, np.int32)
        by_state, no_slot = np.arange(states, dtype=np.int32), np.zeros((0, 1, 1), np.uint8)
        return Pattern(lists, by_state, by_state, indptr, indices, nothing, no_slot, False, whole)
    indices = np.empty(indptr[-1], np.int32)
    _merged(lists, probability, continues, most, indices)
    order = _close_order(indptr, indices)
    position = np.empty_like(order)
    position[order] = np.arange(states, dtype=order.dtype)
    indptr, indices, diagonal = _reordered(indptr, indices, order, position)
    longest = int(np.diff(indptr).max())
    kind = next(k for k in (np.uint8, np.uint16, np.uint32) if longest < np.iinfo(k).max)
    slot = np.full(successor.shape, np.iinfo(kind).max, kind)
    _place_slots(lists, probability, continues, order, indptr, indices, slot)
    sparse = _triangles(indptr, indices, diagonal, int(FEW_TRIANGLES * states)) <= FEW_TRIANGLES * states
    return Pattern(lists, order, position, indptr, indices, diagonal, slot, sparse, whole)


def _close_order(indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Reverse Cuthill–McKee, hubs last: one state that all lead to would make all of them neighbours."""
    states = len(indptr) - 1
    neighbours = np.bincount(indices, minlength=states) + np.diff(indptr)
    hub = neighbours > HUB * neighbours.mean()
    if hub.any():
        kept = ~(hub[indices] | np.repeat(hub, np.diff(indptr)))
        indptr = np.concatenate([[0], np.cumsum(kept)[indptr[1:] - 1]]).astype(np.int32)  # no row is empty
        indices = indices[kept]
    graph = csr_array((np.ones(len(indices), bool), indices, indptr), shape=(states, states))
    order = reverse_cuthill_mckee(graph, symmetric_mode=False)
    return np.concatenate([order[~hub[order]], order[hub[order]]]) if hub.any() else order


@compiled
def _sums_to_one(probability: np.ndarray) -> bool:
    """Whether all probabilities [R, S, B, K] of a step do, but for rounding."""
    runs, states, actions, branches = probability.shape
    for run in range(runs):
        for s in range(states):
            for b in range(actions):
                total = 0.0
                for k in range(branches):
                    total += probability[run, s, b, k]
                if abs(total - 1.0) > 1e-12:
                    return False
    return True


@compiled
def _merged(
    successor: np.ndarray, probability: np.ndarray, continues: np.ndarray, most: int, indices: np.ndarray
) -> np.ndarray:
    """Beginnings of the merged rows, [S + 1], or a single 0 where they hold more than `most` entries.

    Writes the states that each state leads to, itself first, to `indices`; only counts them where that is empty.
    """
    runs, states, actions, branches = probability.shape
    indptr, met = np.zeros(states + 1, np.int32), np.full(states, -1, np.int32)
    total, writes = 0, len(indices) > 0
    for s in range(states):
        met[s] = s
        if writes:
            indices[total] = s
        total += 1
        for b in range(actions):
            for k in range(branches):
                to = successor[s, b % successor.shape[1], k]
                if met[to] == s:
                    continue
                for run in range(runs):
                    if probability[run, s, b, k] > 0.0 and continues[run % len(continues), s, b]:
                        met[to] = s
                        if writes:
                            indices[total] = to
                        total += 1
                        break
        if total > most:
            return np.zeros(1, np.int32)
        indptr[s + 1] = total
    return indptr


@compiled
def _reordered(
    indptr: np.ndarray, indices: np.ndarray, order: np.ndarray, position: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns by place, columns rising; and where the diagonal stands."""
    states = len(order)
    begins, places = np.empty(states + 1, np.int32), np.empty(len(indices), np.int32)
    diagonal = np.empty(states, np.int32)
    begins[0] = 0
    for place in range(states):
        s, first = order[place], begins[place]
        end = first
        for entry in range(indptr[s], indptr[s + 1]):
            to, at = position[indices[entry]], end
            while at > first and places[at - 1] > to:
                places[at] = places[at - 1]
                at -= 1
            places[at] = to
            end += 1
        begins[place + 1] = end
        for at in range(first, end):
            if places[at] == place:
                diagonal[place] = at
    return begins, places, diagonal


@compiled
def _triangles(indptr: np.ndarray, indices: np.ndarray, diagonal: np.ndarray, most: int) -> int:
    """Entries that ILU(0) would change beside the diagonal, counted until there are more than so many."""
    at, found = np.full(len(diagonal), -1, np.int32), 0
    for row in range(len(diagonal)):
        for entry in range(indptr[row], indptr[row + 1]):
            at[indices[entry]] = row
        for entry in range(indptr[row], diagonal[row]):
            other = indices[entry]
            for right in range(diagonal[other] + 1, indptr[other + 1]):
                if indices[right] != row and at[indices[right]] == row:
                    found += 1
        if found > most:
            break
    return found


@compiled
def _place_slots(
    successor: np.ndarray,
    probability: np.ndarray,
    continues: np.ndarray,
    order: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    slot: np.ndarray,
) -> None:
    """Writes where each possible successor stands in its row."""
    runs, states, actions, branches = probability.shape
    at = np.empty(states, np.int32)
    for place in range(states):
        s, first = order[place], indptr[place]
        for entry in range(first, indptr[place + 1]):
            at[order[indices[entry]]] = entry - first
        for b in range(actions):
            for k in range(branches):
                for run in range(runs):
                    if probability[run, s, b, k] > 0.0 and continues[run % len(continues), s, b]:
                        slot[s, b % successor.shape[1], k] = at[successor[s, b % successor.shape[1], k]]
                        break
