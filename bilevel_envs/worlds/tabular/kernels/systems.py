"""Linear systems of a policy, and soft policy iteration."""

from __future__ import annotations

import numpy as np

from bilevel_envs.worlds.tabular.kernels.compiled import compiled

SMALLEST_DENSE = 64  # below, LAPACK is no faster than the loops, whatever the width
EPSILON = float(np.finfo(np.float64).eps)
MOST_ROUNDING = 1e-6  # of β, by which rounding may move V_F; g is then right to half of that, as g (1 − g) ≤ 1/4


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
