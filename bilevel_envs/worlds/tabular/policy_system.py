"""I − γΠ of one policy in a large table, and its solutions by iteration."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import SuperLU, splu

from bilevel_envs.worlds.tabular.kernels.compiled import compiled
from bilevel_envs.worlds.tabular.kernels.systems import EPSILON
from bilevel_envs.worlds.tabular.krylov import (
    BASIS,
    ONE,
    bicgstab,
    gmres,
    incomplete_factor,
    scaled_by_pivots,
    size,
    split_bicgstab,
)
from bilevel_envs.worlds.tabular.pattern import Lists, Pattern, pattern_of

SOLVERS = ("bicgstab", "gmres", "splu")  # in the order in which they are tried
MOST_DIRECT = 100_000  # states; the fill of a direct factor grows faster than the model
MOST_ITERATIONS = 3_000
ACCURACY = 1e-13  # of y, and so 1e-13 / (1 − γ) of x at worst
ROUNDING = 16 * EPSILON  # of x: no residual falls below what rounding A x leaves
SMALLEST_WEIGHT = 1e-17  # of an action that counts in a policy's system


class Stale(Exception):
    """A pattern lacks a move that is possible."""


class PolicySystem:
    """The rows of I − γΠ for one run, with room for the iterations; to be filled for one policy after another.

    Args:
      pattern: from `pattern_of`.
      gamma: γ in [0, 1).
      solver: "auto" tries `SOLVERS` in turn; otherwise one of them, and no other.
      like: another one whose room is shared; the two must then not solve at the same time.
    """

    def __init__(self, pattern: Pattern, gamma: float, solver: str = "auto", like: PolicySystem | None = None) -> None:
        if solver != "auto" and solver not in SOLVERS:
            raise ValueError(f"`solver` must be one of {('auto', *SOLVERS)}, got {solver!r}")
        self.pattern, self.gamma = pattern, gamma
        self.iterations = 0  # of the last solution
        self.solvers = SOLVERS if solver == "auto" else (solver,)
        self.indptr, self.indices, self.values = pattern.indptr, pattern.indices, np.empty(len(pattern.indices))
        self._factor, self._factorised = np.empty(0, np.float32), False  # a preconditioner needs no more digits
        self._pivots, self._scaled, self._divided = np.empty(0), np.empty(0), False  # of the diagonal's own factors
        self._direct: SuperLU | None = None
        self._rooms: dict[tuple[int, type], np.ndarray] = {} if like is None else like._rooms

    def fill(
        self,
        policy: np.ndarray,
        action: np.ndarray,
        probability: np.ndarray,
        continues: np.ndarray,
        smallest: float = SMALLEST_WEIGHT,
    ) -> None:
        """Takes another policy.

        Args:
          policy: g, [S, B]; empty where `action` says it all.
          action: the only action of each state, int [S]; empty with `policy`.
          probability: [S, B, K].
          continues: bool [S, B].
          smallest: rows of a wide model leave out actions with less weight.

        Raises:
          Stale: if the pattern lacks a move.
        """
        pattern, self._factorised, self._divided, self._direct = self.pattern, False, False, None
        if pattern.wide:
            if len(self.values) == 0:
                actions = 1 if len(action) else policy.shape[1]
                most = len(pattern.order) * (1 + actions * probability.shape[2])
                self.indptr = np.zeros(len(pattern.order) + 1, np.int64)
                self.indices, self.values = np.empty(most, np.int32), np.empty(most)
            _copy_rows(
                policy,
                action,
                pattern.successor,
                probability,
                continues,
                self.gamma,
                smallest,
                self.indptr,
                self.indices,
                self.values,
            )
        else:
            begins, _, diagonal = self._unsigned()
            rows = (begins, diagonal, pattern.slot, self.values)
            if len(action) == 0:
                states, lists, branches = pattern.slot.shape
                moves = self.room(lists * branches, states).reshape(pattern.slot.shape)
                _weigh_moves(policy, probability, continues, self.gamma, moves)
                complete = _merge_moves(moves, pattern.order.view(np.uint32), *rows)
            else:
                tables = (action, probability, continues, self.gamma, pattern.position.view(np.uint32))
                complete = _merge_chosen(*tables, *rows)
            if not complete:
                raise Stale

    def solve(
        self,
        y: np.ndarray,
        x: np.ndarray,
        target: float,
        floor: float = 0.0,
        *,
        transpose: bool = False,
        modulo: bool = False,
    ) -> tuple[np.ndarray, float]:
        """x with A x = y or Aᵀ x = y, and how much of y it leaves; both by state.

        Args:
          y: right-hand side, [S].
          x: where to begin, [S].
          target: residual, max|y − A x| or Σ|y − Aᵀ x|, that is small enough.
          floor: the same in units of the size of x.
          transpose: solve with Aᵀ.
          modulo: a constant may be missing from x; only where no episode ends, and without `transpose`.
        """
        if np.isnan(size(y, transpose)):
            return np.full_like(y, np.nan), np.inf
        order, position = self.pattern.order, self.pattern.position
        if not self.pattern.wide:
            y, x = y[order], x[order]
        else:
            x = x.copy()
        left, best = np.inf, x
        for name in self.solvers:
            if name == "splu" and len(y) > MOST_DIRECT and len(self.solvers) > 1:
                break
            x, now = self._solved(name, y, x, target, floor, transpose, modulo)
            if now < left:
                best, left = x, now
            if left <= max(1.01 * target, floor * size(best, transpose)):
                break
            x = y.copy()  # what failed may have left nothing of use
        if self.pattern.wide:
            return best, left
        return best[position], left

    def _solved(
        self, name: str, y: np.ndarray, x: np.ndarray, target: float, floor: float, transpose: bool, modulo: bool
    ) -> tuple[np.ndarray, float]:
        if name == "splu":
            x = self._directly(y, transpose)
            rest = self._matrix()
            return x, float(size(y - (rest.T if transpose else rest) @ x, transpose))
        if name == "bicgstab" and self.pattern.sparse:
            split = (*self._unsigned(), self.values, *self._by_pivots())
            task = (split, transpose, y, x, target, floor, MOST_ITERATIONS, modulo)
            left, self.iterations = split_bicgstab(*task, self.room(1, len(y))[0], self.room(8, len(y), np.float32))
            return x, left
        matrix = (self.indptr, self.indices, self.pattern.diagonal, self.values, self._incomplete())
        how = (matrix, transpose, y, x, target, floor, MOST_ITERATIONS)
        if name == "bicgstab":
            left, self.iterations = bicgstab(*how, modulo, self.room(6, len(y)))
        else:
            left, self.iterations = gmres(*how, self.room(BASIS + 3, len(y)))
        return x, left

    def _incomplete(self) -> np.ndarray:
        """ILU(0), empty where the model is wide."""
        if not self.pattern.wide and not self._factorised:
            if len(self._factor) == 0:
                self._factor = np.empty(len(self.values), np.float32)
            incomplete_factor(self.indptr, self.indices, self.pattern.diagonal, self.values, self._factor)
            self._factorised = True
        return self._factor

    def _unsigned(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """indptr, indices and diagonal, for loops that need not ask whether an index counts from the end."""
        return self.indptr.view(np.uint32), self.indices.view(np.uint32), self.pattern.diagonal.view(np.uint32)

    def _by_pivots(self) -> tuple[np.ndarray, np.ndarray]:
        """Pivots, and the matrix scaled by them."""
        if not self._divided:
            if len(self._scaled) == 0:
                self._pivots = np.empty(len(self.pattern.diagonal))
                self._scaled = np.empty(len(self.values), np.float32)
            scaled_by_pivots(*self._unsigned(), self.values, self._pivots, self._scaled)
            self._divided = True
        return self._pivots, self._scaled

    def _matrix(self) -> csr_array:
        end = int(self.indptr[-1])
        states = len(self.indptr) - 1
        return csr_array((self.values[:end], self.indices[:end], self.indptr), shape=(states, states))

    def _directly(self, y: np.ndarray, transpose: bool) -> np.ndarray:
        direct = self._direct
        if direct is None:
            direct = self._direct = splu(self._matrix().tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0)
        return direct.solve(y, trans="T" if transpose else "N")

    def room(self, vectors: int, states: int, dtype: type[np.floating] = np.float64) -> np.ndarray:
        """Vectors to work with, [vectors, S]; whoever asks for as many of a type gets the same."""
        if (vectors, dtype) not in self._rooms:
            self._rooms[vectors, dtype] = np.empty((vectors, states), dtype)
        return self._rooms[vectors, dtype]


class PolicySystems:
    """(I − γΠ)⁻¹ and its transpose under a policy, for every run; the factors serve every right-hand side.

    Args:
      policy: g, [R|1, S, B].
      lists: successor, probability and continues, as in `pattern_of`.
      gamma: γ in [0, 1).
      pattern: from `pattern_of`; made anew if it lacks a move.
      solver: as in `PolicySystem`.
      accuracy: residual of a solution that is small enough, beside its right-hand side.
    """

    def __init__(
        self,
        policy: np.ndarray,
        lists: Lists,
        gamma: float,
        pattern: Pattern,
        solver: str = "auto",
        accuracy: float = ACCURACY,
    ) -> None:
        self._accuracy = accuracy
        _, probability, continues = lists
        going = runs_first(continues)
        self._systems: list[PolicySystem] = []
        for run in range(max(len(policy), len(probability), len(going))):
            tables = (policy[run % len(policy)], probability[run % len(probability)], going[run % len(going)])
            g, p, c = (np.ascontiguousarray(table) for table in tables)
            system = PolicySystem(pattern, gamma, solver, self._systems[0] if self._systems else None)
            try:
                system.fill(g, np.zeros(0, np.int32), p, c)
            except Stale:
                pattern = pattern_of(*lists)
                system = PolicySystem(pattern, gamma, solver, system)
                system.fill(g, np.zeros(0, np.int32), p, c)
            self._systems.append(system)

    @property
    def iterations(self) -> int:
        """The most that the last solution took in any run."""
        return max(system.iterations for system in self._systems)

    def solutions(self, y: np.ndarray, transpose: bool, start: np.ndarray | None = None) -> np.ndarray:
        """x from (I − γΠ) x = y of each run, or from its transpose, [R, S].

        Args:
          y: right-hand sides, [R|1, S].
          transpose: solve with Πᵀ.
          start: where to begin, [R|1, S]; None for y.

        Raises:
          RuntimeError: if no solver reaches the accuracy.
        """
        systems, runs = self._systems, max(len(self._systems), len(y))
        start = y if start is None else start
        x = np.empty((runs, y.shape[1]))
        for run in range(runs):
            right = np.ascontiguousarray(y[run % len(y)], np.float64)
            first = np.ascontiguousarray(start[run % len(start)], np.float64)
            scale = size(right, transpose)
            if scale == 0.0:
                x[run] = 0.0
                continue
            target = self._accuracy * scale
            x[run], left = systems[run % len(systems)].solve(right, first, target, ROUNDING, transpose=transpose)
            if not left <= max(1.01 * target, ROUNDING * size(x[run], transpose)):
                raise RuntimeError(
                    f"the linear system of run {run} with γ = {systems[0].gamma:g} was solved to {left / scale:.3g} of "
                    f"its right-hand side only; {self._accuracy:g} was asked for"
                )
        return x


def runs_first(continues: np.ndarray) -> np.ndarray:
    """`continues` [R|1, S, B]."""
    return continues.reshape(-1, *continues.shape[-2:])


@compiled
def _weigh_moves(
    policy: np.ndarray, probability: np.ndarray, continues: np.ndarray, gamma: float, moves: np.ndarray
) -> None:
    """Writes γ g(b|s) p(k|s, b) where the episode goes on, [S, B, K], or sums over actions of one list, [S, 1, K]."""
    states, actions, branches = probability.shape
    shared = moves.shape[1] == 1
    for s in range(states):
        for b in range(actions):
            weight = gamma * policy[s, b] if continues[s, b] else 0.0
            if b == 0 or not shared:
                for k in range(branches):
                    moves[s, b, k] = weight * probability[s, b, k]
            else:
                for k in range(branches):
                    moves[s, 0, k] += weight * probability[s, b, k]


@compiled
def _merge_moves(
    moves: np.ndarray,
    order: np.ndarray,
    indptr: np.ndarray,
    diagonal: np.ndarray,
    slot: np.ndarray,
    values: np.ndarray,
) -> bool:
    """Writes I − γΠ to its pattern from what `_weigh_moves` wrote; False if the pattern lacks an entry."""
    _, lists, branches = moves.shape
    for place in range(len(order)):
        s, begin, end = order[place], indptr[place], indptr[place + 1]
        for entry in range(begin, end):
            values[entry] = 0.0
        values[diagonal[place]] = 1.0
        for b in range(lists):
            for k in range(branches):
                if moves[s, b, k] > 0.0:
                    entry = begin + slot[s, b, k]
                    if entry >= end:
                        return False
                    values[entry] -= moves[s, b, k]
    return True


@compiled
def _merge_chosen(
    action: np.ndarray,
    probability: np.ndarray,
    continues: np.ndarray,
    gamma: float,
    position: np.ndarray,
    indptr: np.ndarray,
    diagonal: np.ndarray,
    slot: np.ndarray,
    values: np.ndarray,
) -> bool:
    """The same for one action in each state."""
    branches, lists = slot.shape[2], slot.shape[1]
    for s in range(len(position)):
        place, b = position[s], action[s]
        begin, end = indptr[place], indptr[place + ONE]
        for entry in range(begin, end):
            values[entry] = 0.0
        values[diagonal[place]] = 1.0
        if not continues[s, b]:
            continue
        for k in range(branches):
            if probability[s, b, k] > 0.0:
                entry = begin + slot[s, b if lists > 1 else 0, k]
                if entry >= end:
                    return False
                values[entry] -= gamma * probability[s, b, k]
    return True


@compiled
def _copy_rows(
    policy: np.ndarray,
    action: np.ndarray,
    successor: np.ndarray,
    probability: np.ndarray,
    continues: np.ndarray,
    gamma: float,
    smallest: float,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
) -> None:
    """Writes the rows of I − γΠ, its own 1 first, a column for every successor of an action that counts."""
    states, _, branches = probability.shape
    lists = successor.shape[1]
    hard = len(action) > 0
    at = 0
    for s in range(states):
        indptr[s] = at
        indices[at], values[at] = s, 1.0
        at += 1
        first, last = (action[s], action[s] + 1) if hard else (0, policy.shape[1])
        for b in range(first, last):
            if not continues[s, b] or not (hard or policy[s, b] >= smallest):
                continue
            weight = gamma if hard else gamma * policy[s, b]
            for k in range(branches):
                if probability[s, b, k] > 0.0:
                    indices[at] = successor[s, b if lists > 1 else 0, k]
                    values[at] = -weight * probability[s, b, k]
                    at += 1
    indptr[states] = at
