"""Passes of critics over trajectories and tables, and sums along them."""

from __future__ import annotations

import numpy as np

from bilevel_envs.worlds.tabular.kernels.compiled import compiled


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
