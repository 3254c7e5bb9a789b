"""p(s' | s, b) of a finite world: lists of successors with their probabilities, or a dense table.

Both answer the same questions; a list costs what it holds, a dense table S times S.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array, vstack
from torch import Tensor

from bilevel_envs.core.checks import as_array, as_numbers, check_count, check_distribution, check_finite, check_memory
from bilevel_envs.worlds.tabular.pattern import Pattern, pattern_of

LARGEST_DIRECT = 500  # states up to which systems are solved by elimination, with possible successors first
PROBABILITY = "`probability` must be [run, state, action, successor]"
TRANSITION = "`transition` must be [state, action, next state] or lead with runs"
CHUNK = 1 << 16  # states that `from_function` asks about at a time
Function: TypeAlias = Callable[[np.ndarray, int], tuple[ArrayLike, ArrayLike]]


class Moves(Protocol):
    """What is asked of transition probabilities; v is [R, S], weights are [R, S, B]."""

    @property
    def probability(self) -> Tensor:
        """With gradients where θ moves it, [R|1, S, B, K]; K = S in a dense table."""

    @property
    def width(self) -> int:
        """K."""

    def check(self) -> None:
        """Refuses what is no distribution with a ValueError."""

    def at(self, v: Tensor) -> Tensor:
        """v at each successor, [R, S, B|1, K]."""

    def expected(self, v: Tensor) -> Tensor:
        """E[v(s') | s, b], [R, S, B]; no gradients in p."""

    def sent(self, weight: Tensor) -> Tensor:
        """Σ_{s, b} w(s, b) p(s' | s, b), [R, S]; no gradients."""

    def of(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """p(s' | s, b) at the steps of a batch, [R, N, T] each, which are not checked."""

    def between(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """p from states [N], by actions listed for each [N, W], to states listed for each [N, U], [R|1, N, W, U]."""

    def dense(self) -> Tensor:
        """As a table [R|1, S, B, S]; gradients flow."""

    def lists(self) -> Transitions:
        """The same as lists of successors, without gradients."""

    def stepping(self) -> tuple[np.ndarray, np.ndarray]:
        """Successors, int, and their probabilities, [R|1, S, B, K]; no gradients."""


class Successors:
    """The states that steps may lead to, and what solvers derive from them once for every θ.

    Attributes:
      table: int32 [S, B|1, K].
    """

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.index = torch.from_numpy(table.astype(np.int64))
        self._pattern: Pattern | None = None

    def pattern(self, probability: np.ndarray, continues: np.ndarray) -> Pattern:
        """The order of states and the merged rows; made at the first θ."""
        if self._pattern is None:
            self._pattern = pattern_of(self.table, probability, continues)
        return self._pattern


@dataclass(frozen=True)
class Transitions:
    """p(s' | s, b) as lists of successors: memory for what is possible, not for S².

    Make them with `from_lists`, `from_dense`, `from_scipy` or `from_function`; where θ moves the probabilities and not
    the lists, make the lists once and give each θ its own with `with_probability`.

    Attributes:
      successor: the states a step may lead to, shared by all runs, int32 [S, B|1, K]; B = 1 where every action has the
        same list.
      probability: of each of them, float64 [R|1, S, B, K]; 0 in free places. Gradients flow to θ.

    Raises:
      TypeError: if the probabilities are no float64 tensor.
      ValueError: if shapes do not fit, a successor is no state, or probabilities are no distribution.

    Example::

        cells = np.arange(1000)
        lists = np.stack([cells, np.minimum(cells + 1, 999)], -1)[:, None]           # stay or move, [S, 1, 2]
        speed = torch.sigmoid(theta)                                                # θ [R, S]
        moves = torch.stack([1 - speed, speed], -1)[:, :, None].expand(-1, -1, 2, -1)  # [R, S, B, 2]
        transition = Transitions(lists, moves)
    """

    successor: np.ndarray
    probability: Tensor
    shared: Successors = field(default=cast(Successors, None), repr=False, compare=False)  # made by __post_init__

    def __post_init__(self) -> None:
        if not isinstance(self.probability, Tensor) or self.probability.dtype != torch.float64:
            raise TypeError(f"`probability` must be a float64 torch tensor, got {type(self.probability).__name__}")
        if self.probability.ndim != 4:
            raise ValueError(f"{PROBABILITY}, got shape {list(self.probability.shape)}")
        _, states, actions, width = self.probability.shape
        if self.shared is None:
            table = _checked_lists(self.successor, states, actions, width)
            object.__setattr__(self, "successor", table)
            object.__setattr__(self, "shared", Successors(table))
        elif self.successor.shape[0] != states or self.successor.shape[2] != width:
            raise ValueError(
                f"`probability` must fit lists of shape {list(self.successor.shape)}, [state, action, successor], "
                f"got {list(self.probability.shape)}"
            )

    @classmethod
    def from_lists(cls, successor: ArrayLike, probability: ArrayLike | Tensor) -> Transitions:
        """From arrays or tensors: successors [S, B|1, K], −1 in free places, probabilities [S, B, K] or [R|1, S, B, K].

        Raises:
          ValueError: if a free place has a positive probability, or as above.
        """
        table, p = as_array(successor, "successor"), _with_runs(as_numbers(probability, "probability"), PROBABILITY)
        if table.ndim != 3:
            raise ValueError(f"`successor` must be [state, action, successor], got shape {list(table.shape)}")
        free = table == -1
        if free.any():
            own = np.arange(len(table)).reshape(-1, *[1] * (table.ndim - 1))
            table = np.where(free, own, table)
        lists = cls(table, p)
        if (lists.probability.detach().numpy()[np.broadcast_to(free, p.shape)] != 0).any():
            raise ValueError("`probability` must be 0 where `successor` is −1, a free place")
        return lists

    @classmethod
    def from_dense(cls, transition: ArrayLike | Tensor) -> Transitions:
        """From p(s' | s, b) as [S, B, S] or [R|1, S, B, S]; lists hold what is possible in any run, in rising order.

        Gradients flow to a tensor's positive entries alone: list by `from_lists` what may become possible.
        """
        dense = _with_runs(as_numbers(transition, "transition"), TRANSITION)
        if dense.shape[1] != dense.shape[3]:
            raise ValueError(f"{TRANSITION}, got shape {list(dense.shape)}")
        possible = (dense.detach() > 0).any(0).numpy()
        width = max(1, int(possible.sum(-1).max(initial=0)))
        table = np.argsort(~possible, axis=-1, kind="stable")[..., :width]
        index = torch.from_numpy(table).expand(len(dense), *table.shape)
        used = torch.from_numpy(np.take_along_axis(possible, table, -1))
        probability = torch.where(used, dense.gather(-1, index), 0.0)
        return cls(np.where(used.numpy(), table, np.arange(len(table))[:, None, None]), probability)

    @classmethod
    def from_scipy(cls, matrices: Sequence[csr_array] | csr_array, actions: int | None = None) -> Transitions:
        """From SciPy's sparse arrays: one [S, S] per action, or one [S · B, S] whose rows run over actions first.

        Args:
          matrices: a list of them, or one with `actions`.
          actions: B of a single one.
        """
        if isinstance(matrices, Sequence):
            actions = len(matrices)
            stacked = _sparse(vstack, [_sparse(csr_array, matrix) for matrix in matrices], format="csr")
            states = stacked.shape[1]
            rows = np.arange(actions)[None, :] * states + np.arange(states)[:, None]
        else:
            stacked = _sparse(csr_array, matrices)
            states = stacked.shape[1]
            actions = check_count(stacked.shape[0] // max(states, 1) if actions is None else actions, "actions")
            rows = np.arange(states * actions).reshape(states, actions)
        if stacked.shape != (states * actions, states):
            raise ValueError(
                f"`matrices` must be {actions} of shape [{states}, {states}], or one of [{states * actions}, {states}] "
                f"for {actions} actions; got {list(stacked.shape)} in all"
            )
        lengths = np.diff(stacked.indptr)
        places = np.arange(max(1, lengths.max(initial=1)))
        used = places < lengths[rows][..., None]
        at = np.minimum(stacked.indptr[rows][..., None] + places, max(stacked.nnz - 1, 0))
        successor = np.where(used, stacked.indices[at], np.arange(states)[:, None, None])
        return cls(successor, torch.from_numpy(np.where(used, stacked.data[at], 0.0))[None])

    @classmethod
    def from_function(cls, function: Function, states: int, actions: int) -> Transitions:
        """From a function of many states and one action, asked in chunks; no θ.

        Args:
          function: ``(states [n], action) → successors [n, K], probabilities [n, K]``; K may differ by action.
          states: S.
          actions: B.

        Raises:
          ValueError: if it answers with other shapes.
        """
        states, actions = check_count(states, "states"), check_count(actions, "actions")
        if not callable(function):
            raise TypeError(f"`function` must be a function of states and an action, got {function!r}")
        check_memory(2.0 * states * actions, "states", states, f"lists of {actions} actions")
        parts: list[list[tuple[np.ndarray, np.ndarray]]] = []
        for first in range(0, states, CHUNK):
            chunk = np.arange(first, min(first + CHUNK, states))
            parts.append([_answer(function, chunk, action) for action in range(actions)])
        width = max(to.shape[1] for part in parts for to, _ in part)
        successor = np.repeat(np.arange(states, dtype=np.int32), actions * width).reshape(states, actions, width)
        probability = np.zeros((1, states, actions, width))
        for first, part in zip(range(0, states, CHUNK), parts, strict=True):
            for action, (to, p) in enumerate(part):
                here = slice(first, first + len(to)), action, slice(0, to.shape[1])
                successor[here], probability[0][here] = np.where(p > 0, to, successor[here]), p
        return cls(successor, torch.from_numpy(probability))

    def with_probability(self, probability: Tensor) -> Transitions:
        """The same lists with other probabilities, [R|1, S, B, K], which θ may move."""
        return replace(self, probability=probability)

    def check(self) -> None:
        """Refuses what is no distribution with a ValueError."""
        check_finite(self.probability, "transition.probability")
        check_distribution(self.probability, "transition.probability", "[run, state, action, successor]")

    def dense(self) -> Tensor:
        """p(s' | s, b), [R|1, S, B, S]; gradients flow."""
        shape = self.probability.shape
        table = self.probability.new_zeros(*shape[:-1], shape[1])
        return table.scatter_add(-1, self.shared.index.expand(shape), self.probability)

    @property
    def width(self) -> int:
        """K."""
        return self.probability.shape[3]

    # As `Moves` ---------------------------------------------------------------------------------------------------

    def at(self, v: Tensor) -> Tensor:
        """v at each successor, [R, S, B|1, K]."""
        return v[:, self.shared.index]

    def expected(self, v: Tensor) -> Tensor:
        """E[v(s') | s, b], [R, S, B]."""
        return (self.probability.detach() * self.at(v)).sum(-1)

    def sent(self, weight: Tensor) -> Tensor:
        """Σ_{s, b} w(s, b) p(s' | s, b), [R, S]."""
        p = self.probability.detach()
        moved = weight.detach()[..., None] * p
        if self.successor.shape[1] == 1:
            moved = moved.sum(2, keepdim=True)
        index = self.shared.index.flatten().expand(len(moved), -1)
        return p.new_zeros(len(moved), p.shape[1]).scatter_add(1, index, moved.flatten(1))

    def of(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """p(s' | s, b) at the steps of a batch, [R, N, T] each."""
        runs, states, actions, width = self.probability.shape
        pair = state * actions + action
        if runs == 1:
            p = self.probability.reshape(-1, width)[pair]
        else:
            run = torch.arange(runs).view(-1, *[1] * (pair.ndim - 1))
            p = self.probability.reshape(-1, width)[run * states * actions + pair]
        to = self.shared.index[state, action if self.successor.shape[1] > 1 else 0]
        return torch.where(to == following[..., None], p, 0.0).sum(-1)

    def between(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """p from states [N], by actions listed for each [N, W], to states listed for each [N, U], [R|1, N, W, U]."""
        if self.successor.shape[1] > 1:
            return _steps_between(self, state, action, following)
        match = self.shared.index[state, 0][..., None] == following[:, None]  # [N, K, U]
        pair = state[:, None] * self.probability.shape[2] + action
        return self.probability.flatten(1, 2)[:, pair] @ match.double()

    def detach(self) -> Transitions:
        """The same without gradients."""
        return replace(self, probability=self.probability.detach())

    def lists(self) -> Transitions:
        """Itself, without gradients."""
        return self.detach()

    def stepping(self) -> tuple[np.ndarray, np.ndarray]:
        """Successors and probabilities; in small tables the possible ones of each run first, in rising order."""
        p = self.probability.detach().numpy()
        to = np.broadcast_to(self.successor, p.shape)
        if p.shape[1] > LARGEST_DIRECT:
            return np.ascontiguousarray(to[:1]), p
        order = np.argsort(np.where(p > 0, to, p.shape[1]), axis=-1, kind="stable")
        order = order[..., : int((p > 0).sum(-1).max())]
        return np.take_along_axis(to, order, -1).astype(np.int64), np.take_along_axis(p, order, -1)


@dataclass(frozen=True)
class DenseTransitions:
    """p(s' | s, b) as a table, float64 [R|1, S, B, S]; gradients flow to every entry."""

    probability: Tensor

    @property
    def width(self) -> int:
        """S: every state may follow."""
        return self.probability.shape[1]

    def check(self) -> None:
        """Refuses what is no distribution with a ValueError."""
        check_finite(self.probability, "transition")
        check_distribution(self.probability, "transition", "[run, state, action, next state]")

    def at(self, v: Tensor) -> Tensor:
        """v at each next state, [R, 1, 1, S]."""
        return v[:, None, None, :]

    def expected(self, v: Tensor) -> Tensor:
        """E[v(s') | s, b], [R, S, B]."""
        table = self.probability.detach()
        if len(table) == 1:
            return (v @ table[0].flatten(0, 1).T).view(len(v), *table.shape[1:3])
        return torch.einsum("rsbt,rt->rsb", table, v.expand(len(table), -1))

    def sent(self, weight: Tensor) -> Tensor:
        """Σ_{s, b} w(s, b) p(s' | s, b), [R, S]."""
        return torch.einsum("rsb,rsbt->rt", weight, self.probability.detach().expand(len(weight), -1, -1, -1))

    def of(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """p(s' | s, b) at the steps of a batch, [R, N, T] each."""
        return look_up(self.probability, state, action, following)

    def between(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """p from states [N], by actions listed for each [N, W], to states listed for each [N, U], [R|1, N, W, U]."""
        return _steps_between(self, state, action, following)

    def dense(self) -> Tensor:
        """Itself."""
        return self.probability

    def lists(self) -> Transitions:
        """As lists, without gradients."""
        return Transitions.from_dense(self.probability.detach())

    def stepping(self) -> tuple[np.ndarray, np.ndarray]:
        """The possible successors of each run first, in rising order."""
        return possible_first(self.probability.detach().numpy())


def possible_first(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of what is possible in a table [R|1, S, B, K], in rising order, and the probabilities there."""
    width = int((table > 0).sum(-1).max())
    order = np.argsort(-(table > 0).astype(np.int8), axis=-1, kind="stable")
    places = np.ascontiguousarray(order[..., :width])
    return places, np.take_along_axis(table, places, axis=-1)


def _steps_between(moves: Moves, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
    """p of every step from states [N] by their actions [N, W] to their following ones [N, U], [R|1, N, W, U]."""
    shape = (len(moves.probability), *action.shape, following.shape[1])
    return moves.of(
        state[:, None, None].expand(shape), action[..., None].expand(shape), following[:, None].expand(shape)
    )


def look_up(table: Tensor, *index: Tensor) -> Tensor:
    """Entries of a table [R|1, ...] at a batch's own states and actions, which are not checked; all [R, N, T]."""
    flat = index[0]
    for size, own in zip(table.shape[2:], index[1:], strict=True):
        flat = flat * size + own
    if table.shape[0] == 1:
        return table.reshape(-1)[flat]
    return table.flatten(1).gather(1, flat.flatten(1)).view(flat.shape)


def _with_runs(table: Tensor, demand: str) -> Tensor:
    """A table [R|1, S, B, K], given as [S, B, K] or with runs."""
    if table.ndim not in (3, 4):
        raise ValueError(f"{demand}, got shape {list(table.shape)}")
    return table.reshape(-1, *table.shape[-3:])


def _sparse(make: Callable[..., csr_array], value: object, **further: str) -> csr_array:
    """What SciPy makes of a value: a sparse array of numbers in two dimensions."""
    try:
        made = make(value, **further)
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise ValueError(f"`matrices` must be sparse arrays of SciPy, or what makes one ({error})") from error
    if made.ndim != 2 or made.dtype.kind not in "fiub":
        raise ValueError(f"`matrices` must be numbers in two dimensions, got {made.dtype} of shape {list(made.shape)}")
    return made.astype(np.float64, copy=False)


def _checked_lists(successor: object, states: int, actions: int, width: int) -> np.ndarray:
    """Lists of successors as int32, refused unless they fit."""
    table = np.asarray(successor)
    if table.dtype.kind not in "iu" or table.shape not in ((states, actions, width), (states, 1, width)):
        raise ValueError(
            f"`successor` must be whole numbers of shape {[states, actions, width]}, or {[states, 1, width]} where "
            f"all actions have the same list; got {table.dtype} of shape {list(table.shape)}"
        )
    low, high = table.min(initial=0), table.max(initial=0)
    if low < 0 or high >= states:
        raise ValueError(f"`successor` must hold states 0 … {states - 1}, got {low} … {high}")
    return np.ascontiguousarray(table, np.int32)


def _answer(function: Function, chunk: np.ndarray, action: int) -> tuple[np.ndarray, np.ndarray]:
    """What a user's function says of states and an action."""
    answer = function(chunk, action)
    if not isinstance(answer, Sequence) or len(answer) != 2:
        raise TypeError(f"`function` must return two arrays, successors and probabilities, got {answer!r}")
    to, p = as_array(answer[0], "function"), as_numbers(answer[1], "function").detach().numpy()
    if to.shape != p.shape or to.ndim != 2 or len(to) != len(chunk) or to.dtype.kind not in "iu":
        raise ValueError(
            f"`function` must return successors and probabilities of shape [{len(chunk)}, K] for {len(chunk)} states, "
            f"got {to.dtype} of shape {list(to.shape)} and {list(p.shape)}"
        )
    return to, p
