"""Counts of transitions, and the model that they make."""

from __future__ import annotations

import numpy as np

from bilevel_envs.worlds.tabular.kernels.compiled import compiled


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
