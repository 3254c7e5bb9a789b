r"""Policy iteration for large tables, soft and hard, with systems solved as far as the next step needs.

    d = T V − V;    (I − γΠ_g) δ ≈ d,  |d − (I − γΠ_g) δ| ≤ .1 |d|;    V ← V + δ

T is the soft or the hard Bellman operator and g its policy at V: Newton's method with inexact steps. Memory and time
of a step grow as the successor lists do. Local models solve by BiCGSTAB with ILU(0); wide ones, which mix fast as a
rule, add up terms of Σ_j (γΠ)^j d, and turn to BiCGSTAB when those fall slowly.

Source: Dembo, Eisenstat and Steihaug, SIAM J. Numer. Anal. 19 (1982), for the inexact steps; Puterman and Shin,
Management Science 24 (1978), for the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bilevel_envs.worlds.tabular.kernels.compiled import compiled
from bilevel_envs.worlds.tabular.kernels.systems import EPSILON, MOST_ROUNDING, middle
from bilevel_envs.worlds.tabular.krylov import swept
from bilevel_envs.worlds.tabular.pattern import LONG_LIST, Lists, Pattern, pattern_of
from bilevel_envs.worlds.tabular.policy_system import PolicySystem, Stale, runs_first

FORCING = 0.1  # of the residual that a step may leave
CLOSER = 0.9  # times the square of how far the last step came: less than `FORCING` where steps converge quadratically
CAREFUL = 1e-3  # the same where the size of a step decides
STEPS_BEFORE_CARE = 25  # after so many steps without convergence every step is careful
STALLING = 0.2  # of the residual left by a step: then policies still change, and backups before the next one pay
MOST_SPARE = 10
MOST_SWEEPS = 30
SUM_FORCING = 0.02  # the same as `FORCING` for sums: their terms are cheap beside a backup
MOST_TERMS = 2  # where rows are not copied
SLOW = 0.9  # factor per sweep above which BiCGSTAB takes over
SLOW_BACKUPS = 0.5  # the same for backups alone, where lists are long
SMALLEST_PROBABILITY = 1e-300
RARE = 1e-6  # probability of an action that a step's policy leaves out in wide models; the backups never do
NOWHERE = np.zeros(0, np.int32)


class Stop(NamedTuple):
    """When a run ends: at an accuracy, or given up after so many steps."""

    tol: float
    steps: int = 200


def large_soft_policy_iteration(
    reward: np.ndarray,
    lists: Lists,
    gamma: float,
    beta: float,
    pattern: Pattern,
    v: np.ndarray,
    stop: Stop,
    solver: str = "auto",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Solves V = β log Σ_b exp(Q / β), Q = r + γ E[V(s')], each run by itself, as `soft_policy_iteration` does.

    Args:
      reward: r_F, [R|1, S, B].
      lists: successor, probability and continues, as in `pattern_of`.
      gamma: γ in [0, 1).
      beta: β.
      pattern: from `pattern_of`; made anew if it lacks a move.
      v: where each run begins, [R, S]; left as it is.
      stop: at a residual |β logsumexp(Q/β) − V| relative to β. Where rounding leaves more, a run has converged when the
        next step would move V by no more than `MOST_ROUNDING` β.
      solver: as in `PolicySystem`.

    Returns:
      Q [R, S, B], V [R, S], log g [R, S, B], the residual [R], and whether each run converged, bool [R].
    """
    runs, states = v.shape
    q, log_probs = np.empty((runs, states, reward.shape[2])), np.empty((runs, states, reward.shape[2]))
    soft_v, residual, converged = np.empty((runs, states)), np.empty(runs), np.zeros(runs, np.bool_)
    policy, steps = np.empty((states, reward.shape[2])), _Steps(pattern, gamma, solver)
    for run, tables in enumerate(_by_run(reward, lists, runs)):
        work = _Run(tables, pattern, gamma, beta, v[run], (q[run], soft_v[run], policy, log_probs[run], NOWHERE))
        converged[run] = _iterated(work, steps, stop.tol * beta, stop.steps)
        residual[run] = work.off if work.finite else np.nan
        work.finish()
    return q, soft_v, log_probs, residual, converged


def large_hard_policy_iteration(
    reward: np.ndarray,
    lists: Lists,
    gamma: float,
    pattern: Pattern,
    stop: Stop,
    v: np.ndarray,
    solver: str = "auto",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Solves V = max_b Q, Q = r + γ E[V(s')], the limit β = 0; arguments as above.

    Args:
      stop: at the largest |V − V*| accepted. It is bounded by γ / (1 − γ) times the residual, and where no episode ends
        by half of the residual's span instead (MacQueen, J. Math. Anal. Appl. 14, 1966).

    Returns:
      Q [R, S, B], V [R, S], the best actions int32 [R, S], the bound on |V − V*| [R], and whether each run converged.
    """
    runs, states = v.shape
    q, best_v = np.empty((runs, states, reward.shape[2])), np.empty((runs, states))
    best, nothing = np.empty((runs, states), np.int32), np.empty((0, 0))
    bound, converged, horizon = np.empty(runs), np.zeros(runs, np.bool_), gamma / (1 - gamma)
    steps = _Steps(pattern, gamma, solver)
    for run, tables in enumerate(_by_run(reward, lists, runs)):
        work = _Run(tables, pattern, gamma, 0.0, v[run], (q[run], best_v[run], nothing, nothing, best[run]))
        converged[run] = _iterated(work, steps, stop.tol / max(horizon, 1e-300), stop.steps)
        bound[run] = horizon * work.off if work.finite else np.nan
        work.finish()
    return q, best_v, best, bound, converged


class _Tables(NamedTuple):
    """Of one run: r [S, B], probabilities [S, B, K] and `continues` [S, B]; and how to make a pattern anew."""

    reward: np.ndarray
    probability: np.ndarray
    continues: np.ndarray
    pattern: Callable[[], Pattern]


def _by_run(reward: np.ndarray, lists: Lists, runs: int) -> Iterator[_Tables]:
    successor, probability, continues = lists
    going = runs_first(continues)
    for run in range(runs):
        r, p, c = (np.ascontiguousarray(table[run % len(table)]) for table in (reward, probability, going))
        yield _Tables(r, p, c, lambda: pattern_of(successor, probability, going))


class _Run:
    """The state of one run.

    Where nothing ends, V is held as `value`, half way between whose extremes lies 0, and a constant `gain` / (1 − γ).

    Args:
      tables: its tables.
      pattern: whose lists are read.
      gamma: γ.
      beta: β; 0 for the hard maximum.
      v: where it begins, [S].
      out: where to write Q, V, g, log g and the best actions; the last is used with β = 0 only, the two before it
        otherwise.

    Attributes:
      off: max|TV − V|, but for the constant.
      finite: whether that and all log g are.
      size: max|TV|, but for the constant.
    """

    def __init__(
        self, tables: _Tables, pattern: Pattern, gamma: float, beta: float, v: np.ndarray, out: tuple[np.ndarray, ...]
    ) -> None:
        self.tables, self.gamma, self.beta = tables, gamma, beta
        self._successor = pattern.successor
        self._q, self._tv, self.policy, self._log_probs, self.action = out
        self.endless = pattern.whole and bool(tables.continues.all())
        self._gain = self._common = self._constant = 0.0
        self._value = v.copy()
        self._centre()

    def back_up(self) -> None:
        """Writes Q and TV at V, and the policy that belongs to them."""
        r, p, c, _ = self.tables
        _action_values(r, self._successor, p, c, self._gain, self.gamma, self._value, self._q)
        if self.beta == 0.0:
            self.finite, low, high, self.size = _maximise(self._q, self._value, self._tv, self.action)
        else:
            _subtract_best(self._q, self.beta, self._tv, self._log_probs)
            np.exp(self._log_probs, out=self.policy)  # several at once, as a compiled loop does not
            out = self._tv, self.policy, self._log_probs
            self.finite, low, high, self.size = _normalise(self._value, self.beta, *out)
        self._common = 0.0
        if self.endless:  # a residual that is the same in every state belongs to the constant
            self._common = (low + high) / 2
            self._gain, low, high = self._gain + self._common, low - self._common, high - self._common
        self.off = max(high, -low)
        self._constant = self._gain / (1 - self.gamma) - self._common

    @property
    def at_rounding(self) -> bool:
        """Whether the residual is what rounding leaves; never said of the hard maximum."""
        return self.beta > 0.0 and self.off <= (32 + self.tables.probability.shape[2]) * EPSILON * self.size

    def rest(self) -> np.ndarray:
        """TV − V, but for the constant, [S]."""
        return self._tv - self._common - self._value

    def take(self) -> None:
        """V ← TV."""
        np.subtract(self._tv, self._common, out=self._value)
        self._centre()

    def move(self, change: np.ndarray) -> float:
        """V ← V + δ; returns max|δ|, but for the constant."""
        if self.endless:
            shift = middle(change)
            self._gain += (1 - self.gamma) * shift
            change -= shift
        self._value += change
        self._centre()
        return float(max(change.max(), -change.min()))

    def finish(self) -> None:
        """Puts the constant back into Q and TV."""
        if self.endless:
            self._q += self._constant
            self._tv += self._constant

    def _centre(self) -> None:
        if self.endless:
            shift = middle(self._value)
            self._gain += (1 - self.gamma) * shift
            self._value -= shift


def _iterated(run: _Run, steps: _Steps, accepted: float, most: int) -> bool:
    """Steps until the residual is accepted, or rounding is all that is left of it; returns whether it came to that."""
    steps.begin(run)
    forcing, before, spare, taken = float(np.clip(10 * (1 - run.gamma), CAREFUL, FORCING)), np.inf, 0, 0
    while taken < most:
        run.back_up()
        if not (run.finite and np.isfinite(run.off)):
            return False
        if run.off <= accepted:
            return True
        if spare > 0:
            run.take()
            spare -= 1
            continue
        taken += 1
        forcing = max(0.1 * forcing, CAREFUL) if run.off > 3.0 * before else forcing
        ahead = forcing if before == np.inf else float(np.clip(CLOSER * (run.off / before) ** 2, CAREFUL, forcing))
        at_rounding = run.at_rounding
        careful = at_rounding or taken > STEPS_BEFORE_CARE
        target = CAREFUL * run.off if careful else max(ahead * run.off, 0.3 * accepted)
        moved, solved = steps.step(run.rest(), run.off, target, careful)
        if not solved:
            return False
        small = run.move(moved) <= MOST_ROUNDING * run.beta
        if at_rounding and (small or run.off >= before):
            return small
        spare = steps.spare if run.off > STALLING * before else 0
        before = run.off
    return False


class _Steps:
    """Approximate solutions of (I − γΠ) δ = d for one policy of a run after another.

    Args:
      pattern, gamma, solver: as above.

    Attributes:
      spare: backups that cost about half of the last step.
    """

    def __init__(self, pattern: Pattern, gamma: float, solver: str) -> None:
        self._gamma, self._solver = gamma, solver
        self._system = PolicySystem(pattern, gamma, solver)

    def begin(self, run: _Run) -> None:
        """Turns to a run, whose policy every step is then about."""
        self._run = run
        self.spare, self._slow, self._before = 0, self._solver != "auto", np.inf

    def step(self, rest: np.ndarray, off: float, target: float, careful: bool) -> tuple[np.ndarray, bool]:
        """δ, and whether it is good enough to go on with.

        Args:
          rest: d, [S].
          off: max|d|.
          target: max|d − (I − γΠ) δ| aimed at; not held to by sums.
          careful: the target must be met.
        """
        run = self._run
        tables = (run.policy, run.action, run.tables.probability, run.tables.continues, RARE)
        pattern = self._system.pattern
        quick = pattern.wide and not careful and not self._slow
        if quick and pattern.long:
            self._slow = off > SLOW_BACKUPS * self._before
            self._before = off
            if not self._slow:
                return self._few_terms(rest), True
            quick = False
        try:
            self._system.fill(*tables)
        except Stale:
            self._system = PolicySystem(run.tables.pattern(), self._gamma, self._solver)
            self._system.fill(*tables)
        moved, self.spare = np.zeros_like(rest), 0
        if quick:
            indptr, indices, values = self._system.indptr, self._system.indices, self._system.values
            work, forcing = self._system.room(2, len(rest)), SUM_FORCING
            how = (rest, moved, MOST_SWEEPS, forcing, self._gamma, run.endless, work)
            taken, fall = swept(indptr, indices, values, *how)
            self._slow = fall > SLOW**taken
            return moved, bool(np.isfinite(fall))
        moved, left = self._system.solve(rest, moved, target, modulo=run.endless)
        self.spare = min(MOST_SPARE, self._system.iterations // 2)
        return moved, left <= (2 * target if careful else 0.5 * off)

    def _few_terms(self, rest: np.ndarray) -> np.ndarray:
        """The sum's first terms without copying rows; only d itself where all actions count."""
        run = self._run
        moved, term, first = rest, rest, np.inf
        for _ in range(MOST_TERMS if len(run.action) else 0):
            following = np.empty_like(rest)
            p, c = run.tables.probability, run.tables.continues
            low, high = _term(self._system.pattern.successor, p, c, run.action, self._gamma, term, following)
            moved, term = moved + following, following
            left = high - low if run.endless else max(high, -low)
            if left <= SUM_FORCING * first:
                break
            first = min(first, left)
        return moved


@compiled
def _term(
    successor: np.ndarray,
    probability: np.ndarray,
    continues: np.ndarray,
    action: np.ndarray,
    gamma: float,
    x: np.ndarray,
    out: np.ndarray,
) -> tuple[float, float]:
    """Writes γΠx under a policy of one action in each state, long lists read where they are; returns its bounds."""
    lists, low, high = successor.shape[1], np.inf, -np.inf
    for s in range(len(x)):
        b, total = action[s], 0.0
        if continues[s, b]:
            total = gamma * _four_sums(successor[s, b if lists > 1 else 0], probability[s, b], x)
        out[s] = total
        low, high = min(low, total), max(high, total)
    return low, high


@compiled
def _four_sums(successor: np.ndarray, probability: np.ndarray, value: np.ndarray) -> float:
    """E[V(s')] from lists [K], in four sums that do not wait for each other."""
    branches = len(probability)
    first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
    for four in range(branches >> 2):
        k = 4 * four
        first += probability[k] * value[successor[k]]
        second += probability[k + 1] * value[successor[k + 1]]
        third += probability[k + 2] * value[successor[k + 2]]
        fourth += probability[k + 3] * value[successor[k + 3]]
    for k in range(branches - (branches & 3), branches):
        first += probability[k] * value[successor[k]]
    return (first + second) + (third + fourth)


@compiled
def _action_values(
    reward: np.ndarray,
    successor: np.ndarray,
    probability: np.ndarray,
    continues: np.ndarray,
    gain: float,
    gamma: float,
    value: np.ndarray,
    q: np.ndarray,
) -> None:
    """Writes r − gain + γ E[V(s')]."""
    states, actions = reward.shape
    lists, branches = successor.shape[1], probability.shape[2]
    for s in range(states):
        for b in range(actions):
            now = reward[s, b] - gain
            if continues[s, b]:
                at = b if lists > 1 else 0
                onward = 0.0
                if branches > LONG_LIST:
                    onward = _four_sums(successor[s, at], probability[s, b], value)
                else:  # short lists cost less without a loop
                    onward = probability[s, b, 0] * value[successor[s, at, 0]]
                    if branches > 1:
                        onward += probability[s, b, 1] * value[successor[s, at, 1]]
                    if branches > 2:
                        onward += probability[s, b, 2] * value[successor[s, at, 2]]
                    if branches > 3:
                        onward += probability[s, b, 3] * value[successor[s, at, 3]]
                    if branches > 4:
                        onward += probability[s, b, 4] * value[successor[s, at, 4]]
                    for k in range(5, branches):
                        onward += probability[s, b, k] * value[successor[s, at, k]]
                now += gamma * onward
            q[s, b] = now


@compiled
def _maximise(
    q: np.ndarray, value: np.ndarray, best_v: np.ndarray, best: np.ndarray
) -> tuple[bool, float, float, float]:
    """Writes max_b Q and where it is reached; returns what `_normalise` does."""
    states, actions = q.shape
    finite, low, high, size = True, np.inf, -np.inf, 0.0
    for s in range(states):
        largest, where = q[s, 0], 0
        for b in range(1, actions):
            if q[s, b] > largest:
                largest, where = q[s, b], b
            finite = finite and not np.isnan(q[s, b])
        best_v[s], best[s] = largest, where
        finite = finite and np.isfinite(largest)
        low, high = min(low, largest - value[s]), max(high, largest - value[s])
        size = max(size, abs(largest))
    return finite, low, high, size


@compiled
def _subtract_best(q: np.ndarray, beta: float, best: np.ndarray, scaled: np.ndarray) -> None:
    """Writes max_b Q and (Q − max_b Q) / β."""
    states, actions = q.shape
    for s in range(states):
        largest = q[s, 0]
        for b in range(1, actions):
            largest = q[s, b] if q[s, b] > largest else largest
        best[s] = largest
        for b in range(actions):
            scaled[s, b] = (q[s, b] - largest) / beta


@compiled
def _normalise(
    value: np.ndarray, beta: float, soft_v: np.ndarray, policy: np.ndarray, log_probs: np.ndarray
) -> tuple[bool, float, float, float]:
    """Writes β log Σ exp(Q/β), g and log g over max_b Q, (Q − max_b Q) / β's exponential and the same itself.

    Returns:
      Whether all log g are finite, the smallest and the largest residual, and max|β log Σ exp(Q/β)|.
    """
    states, actions = policy.shape
    finite, low, high, size = True, np.inf, -np.inf, 0.0
    for s in range(states):
        total = 0.0
        for b in range(actions):
            total += policy[s, b]
        log_total, scale = np.log(total), 1.0 / total
        soft = soft_v[s] + beta * log_total
        soft_v[s] = soft
        low, high = min(low, soft - value[s]), max(high, soft - value[s])
        size = max(size, abs(soft))
        for b in range(actions):
            policy[s, b] = policy[s, b] * scale if policy[s, b] > SMALLEST_PROBABILITY else 0.0
            log_probs[s, b] -= log_total
            finite = finite and np.isfinite(log_probs[s, b])
    return finite, low, high, size
