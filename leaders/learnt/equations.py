"""Transition probabilities from a follower's answers: its Bellman equations are linear in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CUT_OFF = 1e-7  # singular values below this share of the largest carry no information
RESIDUAL = 1e-6  # relative to the largest |V_F|; larger ones show that a successor has not been seen yet


@dataclass(frozen=True)
class Answers:
    """What a follower said of its problem at M decisions.

    Attributes:
      q: Q_F, [M, S, B].
      v: V_F, [M, S].
      reward: r_F at the same θ, [M, S, B]; read at visited pairs only.
    """

    q: np.ndarray
    v: np.ndarray
    reward: np.ndarray


def corrected(
    probability: np.ndarray,
    successor: np.ndarray,
    possible: np.ndarray,
    pairs: np.ndarray,
    answers: Answers,
    gamma: float,
) -> tuple[np.ndarray, np.ndarray]:
    r"""The smallest change of transition frequencies that meets the follower's Bellman equations.

    At each θ asked about, Q_F(s, b) − r_F(s, b) = γ_F Σ_s' p(s' | s, b) V_F(s') is a linear equation in p(· | s, b).
    Where V_F is the same at all successors, the equations say nothing and the frequencies stay.

    Args:
      probability: frequencies with which pairs were seen to lead to states, [P, K].
      successor: those states, int [P, K].
      possible: whether a place stands for a state at all, bool [P, K].
      pairs: (s, b), int [P, 2], none of which ends the episode.
      answers: of a follower that is optimal.
      gamma: γ_F.

    Returns:
      Probabilities [P, K], and for which pairs the equations hold, bool [P]; of the others, the frequencies.
    """
    state, action = pairs.T
    values = answers.v[:, successor].transpose(1, 0, 2) * possible[:, None]  # [P, M, K]
    count = possible.sum(-1)[:, None, None]
    centred = np.where(possible[:, None], values - values.sum(-1, keepdims=True) / count, 0.0)
    wanted = ((answers.q - answers.reward)[:, state, action] / gamma).T  # [P, M]
    missing = wanted - np.einsum("pmk,pk->pm", values, probability)
    change = np.einsum("pkm,pm->pk", np.linalg.pinv(centred, rcond=CUT_OFF), missing)
    found = np.where(possible, probability + change, 0.0)
    off = np.abs(np.einsum("pmk,pk->pm", values, found) - wanted).max(-1)
    scale = np.abs(answers.v).max()
    holds = (off <= RESIDUAL * scale) & (found >= -RESIDUAL).all(-1)
    found = found.clip(min=0)
    found /= found.sum(-1, keepdims=True)
    return np.where(holds[:, None], found, probability), holds
