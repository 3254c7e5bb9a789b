"""Inner loops as machine code: everything that walks through tables or trajectories one entry at a time.

Plain loops over NumPy arrays, compiled by Numba on first use and kept on disk from then on. They know shapes and
numbers only, no model and no leader; `function.py_func` is the same loop in Python. R runs lead; tables with a
leading 1 are shared by all runs.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache

if TYPE_CHECKING:
    from numba.core.dispatcher import Dispatcher

F = TypeVar("F", bound=Callable)

SMALLEST_DENSE = 64  # below, LAPACK is no faster than the loops, whatever the width
LINEAR_SEARCH = 16  # up to so many outcomes are compared one by one, without a branch
HALF, LOWER_HALF = np.uint64(32), np.uint64(2**32 - 1)
MULTIPLIER_HIGH, MULTIPLIER_LOW = np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645)  # of PCG64
EPSILON = float(np.finfo(np.float64).eps)
MOST_ROUNDING = 1e-6  # of β, by which rounding may move V_F; g is then right to half of that, as g (1 − g) ≤ 1/4


class _Cache(FunctionCache):
    """Machine code on disk; a damaged file is passed over and written anew, a full disk does no harm."""

    def load_overload(self, sig: object, target_context: object) -> object:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever damaged bytes raise: EOFError, UnpicklingError, ...
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: object, data: object) -> None:
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            super().save_overload(sig, data)


def compiled(function: F) -> Dispatcher[F]:
    """A function as machine code, compiled on its first call and kept on disk.

    Where there is no place to keep it (NUMBA_CACHE_DIR names one), each process compiles anew.
    """
    dispatcher = njit(error_model="numpy", nogil=True)(function)
    with suppress(RuntimeError):
        object.__setattr__(dispatcher, "_cache", _Cache(function))  # as `cache=True` does with Numba's own
    return dispatcher


# Drawing ------------------------------------------------------------------------------------------------------


@compiled
def outcome(probability: np.ndarray, uniform: float) -> int:
    """The outcome at `uniform` in [0, 1) of a distribution's CDF; never one of probability 0."""
    total, last = 0.0, 0
    for index in range(len(probability)):
        if probability[index] > 0.0:
            total += probability[index]
            last = index
            if uniform < total:
                break
    return last


@compiled
def drawn(cdf: np.ndarray, uniform: float) -> int:
    """The outcome at `uniform` in [0, 1) of cumulative probabilities, the last of which is 1; by binary search."""
    low, high = 0, len(cdf) - 1
    while low < high:
        middle = (low + high) // 2
        if cdf[middle] <= uniform:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def next_uniform(stream: np.ndarray, index: int | np.uint64) -> float:
    """The next number of stream `index`: that of `random()` of NumPy's generator PCG64, to the last bit.

    The state x is a whole number below 2^128 that moves by x ← a x + c; the output is the exclusive or of its halves,
    rotated by the upper six bits. Source: O'Neill, PCG: a family of simple fast space-efficient statistically good
    algorithms for random number generation, HMC-CS-2014-0905 (XSL-RR 128/64).

    Args:
      stream: upper and lower half of x and of c, uint64 [n, 4]; x is moved.
      index: which row.
    """
    high, low = stream[index, 0], stream[index, 1]
    # low · MULTIPLIER_LOW in 128 bits, by halves of 32
    x0, x1, a0, a1 = low & LOWER_HALF, low >> HALF, MULTIPLIER_LOW & LOWER_HALF, MULTIPLIER_LOW >> HALF
    middle = ((x0 * a0) >> HALF) + ((x0 * a1) & LOWER_HALF) + ((x1 * a0) & LOWER_HALF)
    carried = x1 * a1 + ((x0 * a1) >> HALF) + ((x1 * a0) >> HALF) + (middle >> HALF)
    product = low * MULTIPLIER_LOW
    low_after = product + stream[index, 3]
    overflow = np.uint64(low_after < product)
    high_after = carried + high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH + stream[index, 2] + overflow
    stream[index, 0], stream[index, 1] = high_after, low_after
    turns, mixed = high_after >> np.uint64(58), high_after ^ low_after
    rotated = (mixed >> turns) | (mixed << ((np.uint64(64) - turns) & np.uint64(63)))
    return float(rotated >> np.uint64(11)) * 2.0**-53


@compiled
def first_states(states: np.ndarray, cdf: np.ndarray, stream: np.ndarray, index: np.ndarray, share: int) -> np.ndarray:
    """First states of the copies `index`, `share` to a run, drawn from the possible ones and their CDF, [R|1, M]."""
    first = np.empty(len(index), np.int64)
    for place, i in enumerate(index):
        row = i // share % len(cdf)
        first[place] = states[row, drawn(cdf[row], next_uniform(stream, i))]
    return first


@compiled
def walk(
    uniform: np.ndarray,
    policy: np.ndarray,
    successor: np.ndarray,
    move: np.ndarray,
    starts: tuple,
    ends: np.ndarray,
    first_state: np.ndarray,
    first_action: np.ndarray,
    time_limit: int,
    whole_episodes: bool,
    trace: tuple,
) -> int:
    """Draws trajectories; returns the length of the longest row in use.

    Args:
      uniform: numbers in [0, 1) for actions, moves and starts, [R, 3, T, N].
      policy: g(b | s), [R|1, S, B].
      successor: the states a step may lead to, int [R|1, S, B, K].
      move: their probabilities, [R|1, S, B, K].
      starts: possible first states and their CDF, [R|1, M] each; see `Starts`.
      ends: whether the episode ends after the step, bool [R|1, S, B].
      first_state: the state in which each row begins, int [R, N]; −1 for a draw.
      first_action: the first action of each row, int [R, N]; −1 for a draw.
      time_limit: an episode is truncated after so many steps; 0 for no limit.
      whole_episodes: rows stop after their first episode instead of starting another.
      trace: where to write state, action, next state, step (int) and terminated, truncated, valid (bool), all zeros
        on entry, [R, N, T] each.
    """
    state, action, following, step, terminated, truncated, valid = trace
    runs, _, horizon, rows = uniform.shape
    longest = 0
    for run in range(runs):
        g = policy[run % len(policy)]
        to, p = successor[run % len(successor)], move[run % len(move)]
        start, start_cdf = starts[0][run % len(starts[0])], starts[1][run % len(starts[1])]
        over = ends[run % len(ends)]
        for row in range(rows):
            s, at, length = first_state[run, row], 0, 0
            for k in range(horizon):
                if s < 0:
                    s, at = start[drawn(start_cdf, uniform[run, 2, k, row])], 0
                b = first_action[run, row] if k == 0 else -1
                if b < 0:
                    b = outcome(g[s], uniform[run, 0, k, row])
                arrived = to[s, b, outcome(p[s, b], uniform[run, 1, k, row])]
                state[run, row, k], action[run, row, k], following[run, row, k] = s, b, arrived
                step[run, row, k], valid[run, row, k] = at, True
                terminated[run, row, k] = over[s, b]
                truncated[run, row, k] = at + 1 == time_limit and not over[s, b]
                length, s, at = k + 1, arrived, at + 1
                if over[state[run, row, k], b] or truncated[run, row, k]:
                    if whole_episodes:
                        break
                    s = -1
            longest = max(longest, length)
    return longest


@compiled
def step_copies(
    action: np.ndarray, time_limit: int, tables: tuple, stream: np.ndarray, now: tuple, told: tuple, last: tuple
) -> int:
    """One step of n copies of a table, those of one run side by side; a copy that ends starts anew in the same step.

    Args:
      action: int64 [n].
      time_limit: an episode is truncated after so many steps.
      tables: successor int [R|1, S B, K], its CDF, r_F, r_L and ends [R|1, S B], first states and their CDF [R|1, M],
        B and R.
      stream: each copy's source of uniform numbers, see `next_uniform`.
      now: state and step of each copy, int [n]; changed.
      told: where to write observed state, r_F, terminated, truncated, whether a copy goes on and, where it does (0
        elsewhere), r_L and step, [n] each.
      last: where to write index of the copies that end and state reached, one after the other, and, where one ends
        (nothing elsewhere), that it ends, r_L and step, [n] each.

    Returns:
      How many copies ended; −1, and nothing is changed, where an action is none.
    """
    successor, cdf, r_follower, r_leader, ends, first, first_cdf, actions, runs = tables
    state, step = now
    observed, reward, terminated, truncated, going, told_paid, told_step = told
    which, reached, gone, last_paid, last_step = last
    count, branches = len(action), cdf.shape[-1]
    largest = np.uint64(0)
    for place in range(count):
        largest = max(largest, np.uint64(action[place]))  # those below 0 become large
    if largest >= np.uint64(actions):
        return -1
    ended, share = 0, count // runs
    for run in range(runs):
        to, p = successor[run % len(successor)], cdf[run % len(cdf)]
        r_f, r_l = r_follower[run % len(r_follower)], r_leader[run % len(r_leader)]
        over, start, start_cdf = ends[run % len(ends)], first[run % len(first)], first_cdf[run % len(first_cdf)]
        for copy in range(run * share, (run + 1) * share):
            i = np.uint64(copy)  # unsigned, as no index counts from the end
            pair = np.uint64(state[i] * actions + action[i])
            at, u = step[i], next_uniform(stream, i)
            branch = 0
            if branches <= LINEAR_SEARCH:
                for k in range(branches - 1):
                    branch += p[pair, k] <= u
            else:
                branch = drawn(p[pair], u)
            arrived, paid = to[pair, np.uint64(branch)], r_l[pair]
            ends_here, cut = over[pair], at + 1 >= time_limit
            reward[i], terminated[i], truncated[i] = r_f[pair], ends_here, cut
            if ends_here or cut:
                which[ended], reached[ended] = i, arrived
                gone[i], last_paid[i], last_step[i] = True, paid, at
                ended += 1
                arrived = start[drawn(start_cdf, next_uniform(stream, i))]
                going[i], told_paid[i], told_step[i], step[i] = False, 0.0, 0, 0
            else:
                going[i], told_paid[i], told_step[i], step[i] = True, paid, at, at + 1
            state[i] = arrived
            observed[i] = arrived
    return ended


# Linear systems of a policy -----------------------------------------------------------------------------------


@compiled
def factorised(
    policy: np.ndarray,
    successor: np.ndarray,
    move: np.ndarray,
    gamma: float,
    position: np.ndarray,
    width: int,
    border: int = 0,
) -> np.ndarray:
    """L and U of I − γΠ, Π[s, s'] = Σ_b g(b|s) p(s'|s, b), as rows of a band, [S − border, 2·width + 1].

    The matrix is strictly diagonally dominant by rows, so no pivoting is needed.

    Args:
      policy: g, [S, B].
      successor: int [S, B, K], the possible ones first.
      move: probability of going on to each successor, 0 for padding, [S, B, K].
      gamma: discount in [0, 1).
      position: place of each state in an order that makes the band narrow, int [S].
      width: largest distance between the places of two states that follow each other.
      border: the last so many places are left out.
    """
    states, actions, branches = move.shape
    inner = states - border
    band = np.zeros((inner, 2 * width + 1))
    for s in range(states):
        here = position[s]
        if here >= inner:
            continue
        band[here, width] += 1.0
        for b in range(actions):
            for k in range(branches):
                if move[s, b, k] <= 0.0:
                    break
                there = position[successor[s, b, k]]
                if there < inner:
                    band[here, width + there - here] -= gamma * policy[s, b] * move[s, b, k]
    for pivot in range(inner):
        right = band[pivot, width + 1 :]  # zeros beyond the last column
        for row in range(pivot + 1, min(pivot + width + 1, inner)):
            at = width + pivot - row
            if band[row, at] != 0.0:
                factor = band[row, at] / band[pivot, width]
                band[row, at] = factor
                below = band[row, at + 1 : at + 1 + width]
                for column in range(width):
                    below[column] -= factor * right[column]
    return band


@compiled
def substituted(band: np.ndarray, position: np.ndarray, y: np.ndarray, transpose: bool) -> np.ndarray:
    """x from (I − γΠ) x = y, or from its transpose, with `band` from `factorised`; x and y are [S]."""
    states, width = len(band), band.shape[1] // 2
    x = np.empty(states)
    x[position] = y
    if transpose:
        for row in range(states):
            x[row] /= band[row, width]
            for column in range(row + 1, min(row + width, states - 1) + 1):
                x[column] -= band[row, width + column - row] * x[row]
        for row in range(states - 1, -1, -1):
            for column in range(max(row - width, 0), row):
                x[column] -= band[row, width + column - row] * x[row]
    else:
        for row in range(states):
            for column in range(max(row - width, 0), row):
                x[row] -= band[row, width + column - row] * x[column]
        for row in range(states - 1, -1, -1):
            for column in range(row + 1, min(row + width, states - 1) + 1):
                x[row] -= band[row, width + column - row] * x[column]
            x[row] /= band[row, width]
    return x[position]


@compiled
def bordered(
    band: np.ndarray,
    policy: np.ndarray,
    successor: np.ndarray,
    move: np.ndarray,
    gamma: float,
    position: np.ndarray,
    y: np.ndarray,
    transpose: bool,
) -> np.ndarray:
    """The same x where the last places are a border, by its Schur complement.

    With [[A, B], [C, D]] x = y and A in `band`: (D − C A⁻¹ B) x_2 = y_2 − C A⁻¹ y_1, then x_1 = A⁻¹ y_1 − A⁻¹ B x_2.
    """
    states, inner = len(position), len(band)
    border, here = states - inner, np.arange(inner)
    right, below, corner = np.zeros((border, inner)), np.zeros((border, inner)), np.eye(border)  # Bᵀ, C, D
    for s in range(states):
        row = position[s]
        for b in range(policy.shape[1]):
            for k in range(move.shape[2]):
                if move[s, b, k] <= 0.0:
                    break
                column, entry = position[successor[s, b, k]], gamma * policy[s, b] * move[s, b, k]
                if row >= inner and column >= inner:
                    corner[row - inner, column - inner] -= entry
                elif row >= inner:
                    below[row - inner, column] -= entry
                elif column >= inner:
                    right[column - inner, row] -= entry
    if transpose:
        right, below, corner = below, right, np.ascontiguousarray(corner.T)
    placed = np.empty(states)
    placed[position] = y
    first = substituted(band, here, placed[:inner], transpose)
    solved = np.empty((border, inner))
    for index in range(border):
        solved[index] = substituted(band, here, right[index], transpose)
    last = np.linalg.solve(corner - below @ solved.T, placed[inner:] - below @ first)
    placed[:inner] = first - last @ solved
    placed[inner:] = last
    return placed[position]


@compiled
def solution(
    policy: np.ndarray,
    successor: np.ndarray,
    move: np.ndarray,
    gamma: float,
    position: np.ndarray,
    width: int,
    y: np.ndarray,
    transpose: bool,
    border: int = 0,
) -> np.ndarray:
    """x from (I − γΠ) x = y, or from its transpose; arguments as above.

    Dense where there are many states and the band is wider than a quarter of them.
    """
    states, actions, branches = move.shape
    if 4 * (width + border) < states or states < SMALLEST_DENSE:
        band = factorised(policy, successor, move, gamma, position, width, border)
        if border == 0:
            return substituted(band, position, y, transpose)
        return bordered(band, policy, successor, move, gamma, position, y, transpose)
    system = np.eye(states)
    for s in range(states):
        for b in range(actions):
            for k in range(branches):
                if move[s, b, k] <= 0.0:
                    break
                to = successor[s, b, k]
                row, column = (to, s) if transpose else (s, to)
                system[row, column] -= gamma * policy[s, b] * move[s, b, k]
    return np.linalg.solve(system, y)


@compiled
def solutions(
    policy: np.ndarray,
    successor: np.ndarray,
    move: np.ndarray,
    gamma: float,
    position: np.ndarray,
    width: int,
    y: np.ndarray,
    transpose: bool,
    border: int = 0,
) -> np.ndarray:
    """`solution` for every run, [R, S]; all tables lead with R or 1."""
    runs = max(len(policy), len(move), len(y))
    x = np.empty((runs, y.shape[1]))
    for run in range(runs):
        g, to, p = policy[run % len(policy)], successor[run % len(successor)], move[run % len(move)]
        x[run] = solution(g, to, p, gamma, position, width, y[run % len(y)], transpose, border)
    return x


@compiled
def never_ends(move: np.ndarray) -> bool:
    """Whether every step goes on: the probabilities [S, B, K] of going on sum to 1, but for rounding."""
    states, actions, branches = move.shape
    for s in range(states):
        for b in range(actions):
            total = 0.0
            for k in range(branches):
                if move[s, b, k] <= 0.0:
                    break
                total += move[s, b, k]
            if abs(total - 1.0) > 1e-12:
                return False
    return True


@compiled
def soft_policy_iteration(
    reward: np.ndarray,
    successor: np.ndarray,
    move: np.ndarray,
    gamma: float,
    beta: float,
    position: np.ndarray,
    width: int,
    v: np.ndarray,
    tol: float,
    most: int,
    border: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Newton's method on V = β log Σ_b exp(Q / β), Q = r + γ E[V(s')], each run by itself.

    g depends on Q / β up to a constant in each state. So the residual is judged in units of β; and where no episode
    ends, V is held as a constant, `gain` / (1 − γ), and what is left of it, lest the constant take the digits that
    tell actions apart.

    Args:
      reward: r_F, [R|1, S, B].
      successor, move, gamma, position, width, border: as in `factorised`, by run.
      beta: β.
      v: where each run begins, [R, S]; left as it is.
      tol: residual |β logsumexp(Q/β) − V| accepted, relative to β. Where rounding leaves more, a run has converged when
        the next Newton step would move V by no more than `MOST_ROUNDING` β.
      most: steps after which a run is given up.

    Returns:
      Q [R, S, B], V [R, S], log g [R, S, B], the residual [R], and whether each run converged, bool [R].
    """
    runs, states = v.shape
    actions, branches = reward.shape[2], move.shape[3]
    q, log_probs = np.empty((runs, states, actions)), np.empty((runs, states, actions))
    soft_v, residual, converged = np.empty((runs, states)), np.empty(runs), np.zeros(runs, np.bool_)
    for run in range(runs):
        r, to, p = reward[run % len(reward)], successor[run % len(successor)], move[run % len(move)]
        endless, gain, before = never_ends(p), 0.0, np.inf
        value = v[run] - (middle(v[run]) if endless else 0.0)
        policy = np.empty((states, actions))
        for _ in range(most):
            finite, low, high, size = True, np.inf, -np.inf, 0.0
            for s in range(states):
                best = -np.inf
                for b in range(actions):
                    onward = 0.0
                    for k in range(branches):
                        if p[s, b, k] <= 0.0:
                            break
                        onward += p[s, b, k] * value[to[s, b, k]]
                    q[run, s, b] = r[s, b] - gain + gamma * onward
                    best = max(best, q[run, s, b])
                total = 0.0
                for b in range(actions):
                    policy[s, b] = np.exp((q[run, s, b] - best) / beta)
                    total += policy[s, b]
                log_total = np.log(total)
                soft_v[run, s] = best + beta * log_total
                low, high = min(low, soft_v[run, s] - value[s]), max(high, soft_v[run, s] - value[s])
                size = max(size, abs(soft_v[run, s]))
                for b in range(actions):
                    policy[s, b] /= total
                    log_probs[run, s, b] = (q[run, s, b] - best) / beta - log_total
                    finite = finite and np.isfinite(log_probs[run, s, b])
            if endless:  # a residual that is the same in every state belongs to the constant
                common = (low + high) / 2
                gain, low, high = gain + common, low - common, high - common
                q[run] -= common
                soft_v[run] -= common
            off = max(high, -low)
            residual[run] = off if finite else np.nan
            converged[run] = finite and off <= tol * beta
            if converged[run]:
                break
            step = solution(policy, to, p, gamma, position, width, soft_v[run] - value, False, border)
            if endless:
                shift = middle(step)
                gain += (1 - gamma) * shift
                step -= shift
            if finite and off <= (32 + branches) * EPSILON * size:  # rounding is all that is left
                converged[run] = np.abs(step).max() <= MOST_ROUNDING * beta
                if converged[run] or off >= before:
                    break
            value += step
            before = off
        if endless:
            q[run] += gain / (1 - gamma)
            soft_v[run] += gain / (1 - gamma)
    return q, soft_v, log_probs, residual, converged


@compiled
def middle(x: np.ndarray) -> float:
    """Half way between the smallest and the largest entry."""
    return (x.min() + x.max()) / 2


# Critics and traces -------------------------------------------------------------------------------------------


@compiled
def sarsa(
    table: np.ndarray,
    state: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    decay: np.ndarray,
    valid: np.ndarray,
    order: np.ndarray,
    rate: np.ndarray,
) -> None:
    """Q(s, b) += η (r + decay · Q(s', b') − Q(s, b)) in place, (s', b') being the row's next pair.

    Args:
      table: Q, [R, S, B].
      state, action: int [R, N, T].
      reward: [R, N, T].
      decay: γ, or 0 where the row's next pair does not belong to the episode, [R, N, T].
      valid: bool [R, N, T].
      order: of the updates; entry k·N + n is step k of row n, int [R, N·T].
      rate: η, [R].
    """
    runs, rows, horizon = state.shape
    for run in range(runs):
        q = table[run]
        for entry in order[run]:
            k, row = entry // rows, entry % rows
            if valid[run, row, k]:
                s, b = state[run, row, k], action[run, row, k]
                target = reward[run, row, k]
                if decay[run, row, k] != 0.0 and k + 1 < horizon:
                    target += decay[run, row, k] * q[state[run, row, k + 1], action[run, row, k + 1]]
                q[s, b] += rate[run] * (target - q[s, b])


@compiled
def expected_sarsa(
    table: np.ndarray,
    state: np.ndarray,
    action: np.ndarray,
    following: np.ndarray,
    reward: np.ndarray,
    decay: np.ndarray,
    valid: np.ndarray,
    policy: np.ndarray,
    rate: np.ndarray,
) -> None:
    """Q(s, b) += η (r + decay · Σ_b' g(b'|s') Q(s', b') − Q(s, b)) in place, from the last step back to the first.

    Args:
      table: Q, [R, S, B].
      state, action, following: int [R, N, T].
      reward: [R, N, T].
      decay: γ, or 0 where nothing follows, [R, N, T].
      valid: bool [R, N, T].
      policy: g, [R|1, S, B].
      rate: η, [R].
    """
    runs, rows, horizon = state.shape
    for run in range(runs):
        q, g = table[run], policy[run % len(policy)]
        for k in range(horizon - 1, -1, -1):
            for row in range(rows):
                if valid[run, row, k]:
                    s, b, there = state[run, row, k], action[run, row, k], following[run, row, k]
                    v = 0.0
                    for other in range(q.shape[1]):
                        v += g[there, other] * q[there, other]
                    q[s, b] += rate[run] * (reward[run, row, k] + decay[run, row, k] * v - q[s, b])


@compiled
def soft_q_pass(
    table: np.ndarray,
    state: np.ndarray,
    action: np.ndarray,
    following: np.ndarray,
    reward: np.ndarray,
    decay: np.ndarray,
    valid: np.ndarray,
    beta: float,
    rate: float,
) -> np.ndarray:
    """Q(s, b) += η (r + decay · β log Σ_b' exp(Q(s', b') / β) − Q(s, b)) in place, from the last step back.

    Args:
      table: Q, [R, S, B].
      state, action, following: int [R, N, T].
      reward: [R, N, T].
      decay: γ, or 0 where nothing follows, [R, N, T].
      valid: bool [R, N, T].
      beta: β.
      rate: η.

    Returns:
      The largest temporal-difference error met by each run, [R].
    """
    runs, rows, horizon = state.shape
    largest = np.zeros(runs)
    for run in range(runs):
        q = table[run]
        for k in range(horizon - 1, -1, -1):
            for row in range(rows):
                if valid[run, row, k]:
                    s, b, there = state[run, row, k], action[run, row, k], following[run, row, k]
                    top = q[there].max()
                    v = top + beta * np.log(np.exp((q[there] - top) / beta).sum())
                    error = reward[run, row, k] + decay[run, row, k] * v - q[s, b]
                    q[s, b] += rate * error
                    largest[run] = max(largest[run], abs(error))
    return largest


@compiled
def stage_game(
    table: np.ndarray,
    state: np.ndarray,
    action: np.ndarray,
    following: np.ndarray,
    reward: np.ndarray,
    decay: np.ndarray,
    valid: np.ndarray,
    answer: np.ndarray,
    leader_actions: int,
    rate: np.ndarray,
) -> None:
    """Q(s̄, b) += η (r + decay · max_a' Q((s', a'), answer(s', a')) − Q(s̄, b)) in place, from the last step back.

    Args:
      table: Q, [R, S, B], over s̄ = s · A + a.
      state, action, following: int [R, N, T].
      reward: [R, N, T].
      decay: γ, or 0 where nothing follows, [R, N, T].
      valid: bool [R, N, T].
      answer: the follower's reply at each s̄, int [R|1, S].
      leader_actions: A.
      rate: η, [R].
    """
    runs, rows, horizon = state.shape
    for run in range(runs):
        q, reply = table[run], answer[run % len(answer)]
        for k in range(horizon - 1, -1, -1):
            for row in range(rows):
                if valid[run, row, k]:
                    s, b = state[run, row, k], action[run, row, k]
                    first = following[run, row, k] // leader_actions * leader_actions
                    v = q[first, reply[first]]
                    for other in range(first + 1, first + leader_actions):
                        v = max(v, q[other, reply[other]])
                    q[s, b] += rate[run] * (reward[run, row, k] + decay[run, row, k] * v - q[s, b])


@compiled
def decaying_sum(x: np.ndarray, decay: float, starts: np.ndarray) -> np.ndarray:
    """w_k = decay · w_{k−1} + x_k along the last axis, from 0 where `starts`; x and w are [M, T]."""
    out = np.empty_like(x)
    for row in range(x.shape[0]):
        w = 0.0
        for k in range(x.shape[1]):
            w = x[row, k] if starts[row, k] else decay * w + x[row, k]
            out[row, k] = w
    return out


@compiled
def mean_by_key(x: np.ndarray, key: np.ndarray, valid: np.ndarray, keys: int) -> np.ndarray:
    """Mean of the valid entries of x [R, M] for each key (int [R, M] below `keys`), 0 without any, [R, keys]."""
    runs, entries = x.shape
    total, visits = np.zeros((runs, keys)), np.zeros((runs, keys))
    for run in range(runs):
        for entry in range(entries):
            if valid[run, entry]:
                total[run, key[run, entry]] += x[run, entry]
                visits[run, key[run, entry]] += 1.0
    return total / np.maximum(visits, 1.0)


@compiled
def moments_by_group(phi: np.ndarray, x: np.ndarray, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ φ φᵀ [groups, F, F] and Σ φ x [groups, F] over each group's entries, for φ [M, F], x [M], group int [M]."""
    entries, size = phi.shape
    gram, moment = np.zeros((groups, size, size)), np.zeros((groups, size))
    for entry in range(entries):
        into, row = gram[group[entry]], phi[entry]
        for i in range(size):
            moment[group[entry], i] += row[i] * x[entry]
            for j in range(i + 1):
                into[i, j] += row[i] * row[j]
    for index in range(groups):
        for i in range(size):
            for j in range(i):
                gram[index, j, i] = gram[index, i, j]
    return gram, moment


# Counts -------------------------------------------------------------------------------------------------------


@compiled
def count_transitions(
    state: np.ndarray,
    action: np.ndarray,
    following: np.ndarray,
    terminated: np.ndarray,
    valid: np.ndarray,
    successor: np.ndarray,
    visits: np.ndarray,
    endings: np.ndarray,
    first: np.ndarray,
    amount: float,
) -> bool:
    """Adds transitions to lists of successors, in place; False if a list is full: call again once they are longer.

    Args:
      state, action, following: int [R, M].
      terminated, valid: bool [R, M].
      successor: states seen to follow each pair, −1 in free places, int [R, S, B, K].
      visits, endings: how often each did, and how often the episode ended with it, [R, S, B, K].
      first: the first entry of each run that is not counted yet, int [R]; moved on.
      amount: what each of them counts; −1 takes it out again.
    """
    runs, entries = state.shape
    for run in range(runs):
        while first[run] < entries:
            entry = first[run]
            if valid[run, entry]:
                s, b, there = state[run, entry], action[run, entry], following[run, entry]
                place = 0
                for other in successor[run, s, b]:
                    if other == there or other < 0:
                        break
                    place += 1
                if place == successor.shape[3]:
                    return False
                successor[run, s, b, place] = there
                visits[run, s, b, place] += amount
                endings[run, s, b, place] += amount * terminated[run, entry]
            first[run] += 1
    return True


@compiled
def known_moves(
    successor: np.ndarray,
    visits: np.ndarray,
    endings: np.ndarray,
    present: np.ndarray,
    theta_moves: bool,
    policy: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of the transitions that lead to what is known.

    A pair is known if it was seen to end the episode or to lead to a known state; a state is known if g may take a
    known pair there.

    Args:
      successor, visits, endings: as in `count_transitions`.
      present: p(s' | s, b) of each successor at the present θ, [R, S, B, K], read only with `theta_moves`.
      theta_moves: take probabilities from `present` instead of the counts. What is missing to 1 goes to successors
        that were seen once: there are as many of those as of unseen ones, in proportion (Good, Biometrika 40, 1953).
      policy: g, [R|1, S, B].

    Returns:
      Successors that are known, those with which the episode may go on first and 0 in free places; their probabilities,
      and the same without what ends the episode, [R, S, B, K] each; g among the known pairs [R, S, B]; and which pairs
      are known, bool [R, S, B].
    """
    runs, states, actions, places = successor.shape
    to, probability, going_on = np.zeros_like(successor), np.zeros(successor.shape), np.zeros(successor.shape)
    g, known = np.zeros((runs, states, actions)), np.zeros((runs, states, actions), np.bool_)
    for run in range(runs):
        known_state = np.ones(states, np.bool_)
        changed = True
        while changed:
            changed = False
            for s in range(states):
                if not known_state[s]:
                    continue
                mass = 0.0
                for b in range(actions):
                    leads = False
                    for k in range(places):
                        there = successor[run, s, b, k]
                        if there < 0:
                            break
                        possible = not theta_moves or present[run, s, b, k] > 0.0
                        seen = visits[run, s, b, k]
                        if possible and (endings[run, s, b, k] > 0.0 or (seen > 0.0 and known_state[there])):
                            leads = True
                            break
                    known[run, s, b] = leads
                    if leads:
                        mass += policy[run % len(policy), s, b]
                if mass <= 0.0:
                    known_state[s] = False
                    known[run, s] = False
                    changed = True
        for s in range(states):
            mass = 0.0
            for b in range(actions):
                if not known[run, s, b]:
                    continue
                mass += policy[run % len(policy), s, b]
                total, place, missing, once = 0.0, 0, 0.0, 0
                if theta_moves:
                    missing = 1.0
                    for k in range(places):
                        there, seen = successor[run, s, b, k], visits[run, s, b, k]
                        if there >= 0 and seen > 0.0:
                            missing -= present[run, s, b, k]
                            once += seen == 1.0
                for onward_first in (True, False):
                    for k in range(places):
                        there, seen = successor[run, s, b, k], visits[run, s, b, k]
                        if there < 0 or seen <= 0.0:
                            continue
                        p = present[run, s, b, k] if theta_moves else seen
                        if theta_moves and seen == 1.0 and p > 0.0:
                            p += max(missing, 0.0) / once
                        over = p * endings[run, s, b, k] / seen
                        onward = p - over if known_state[there] else 0.0
                        if over + onward > 0.0 and (onward > 0.0) == onward_first:
                            to[run, s, b, place] = there
                            probability[run, s, b, place], going_on[run, s, b, place] = over + onward, onward
                            total += over + onward
                            place += 1
                probability[run, s, b] /= total
                going_on[run, s, b] /= total
            for b in range(actions):
                if known[run, s, b]:
                    g[run, s, b] = policy[run % len(policy), s, b] / mass
    return to, probability, going_on, g, known
