"""Draws of first states, actions and next states."""

from __future__ import annotations

import numpy as np

from bilevel_envs.worlds.tabular.kernels.compiled import compiled

LINEAR_SEARCH = 16  # up to so many outcomes are compared one by one, without a branch
HALF, LOWER_HALF = np.uint64(32), np.uint64(2**32 - 1)
MULTIPLIER_HIGH, MULTIPLIER_LOW = np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645)  # of PCG64


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
