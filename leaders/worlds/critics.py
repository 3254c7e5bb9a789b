"""Which critic a name means, by the kind of world."""

from __future__ import annotations

from typing import Any

import numpy as np

from bilevel_envs.core.checks import check_choice
from leaders.config import DECLARED, MATRICES, TABLES, Sampling
from leaders.critics import (
    Empirical,
    ExactCritic,
    ExpectedSarsa,
    FittedLinear,
    LeastSquares,
    MonteCarlo,
    NetworkCritic,
    QuadraticState,
    Sarsa,
    StageGame,
    StateTable,
)
from leaders.critics.critic import Critic

KNOWN = {
    TABLES: ("empirical", "expected_sarsa", "sarsa", "monte_carlo", "state_values", "td", "stage_game", "exact"),
    MATRICES: ("lstd", "state_values", "td", "fitted_linear", "exact"),
    DECLARED: ("td", "state_values"),
}
CRITIC_METHODS = ("fit", "values", "copies", "state_dict", "load_state_dict")
WITHOUT_Q = ("naive_pgd", "hpgd_realised")  # guiding weights that do not read Q_L


def critic_of(sampling: Sampling, world: str, gamma: float, leader: str, problem: Any, theta_moves: bool) -> Critic:
    """The critic that a leader's settings name, or are.

    Args:
      sampling: the settings.
      world: the kind of world.
      gamma: γ_L.
      leader: the leader's class, for messages.
      problem: the world's problem.
      theta_moves: whether θ moves the transitions of a table.

    Raises:
      ValueError: if there is none of that name in such worlds, or it does not go with the leader.
      TypeError: if an object lacks methods.
    """
    known = KNOWN[world]
    if not isinstance(sampling.critic, str):
        lacking = [name for name in CRITIC_METHODS if not hasattr(sampling.critic, name)]
        if lacking or isinstance(sampling.critic, type):
            wanted = f"one of {', '.join(known)}, or an object with {', '.join(CRITIC_METHODS)}"
            raise TypeError(f"`critic` must be {wanted}; got {sampling.critic!r}")
        if getattr(sampling.critic, "of", "action") == "state" and sampling.estimator not in WITHOUT_Q:
            raise ValueError(
                f'`critic` must read actions, of="action" or "both", for {leader}, whose guiding is made '
                'of Q_L; got of="state"'
            )
        return sampling.critic
    check_choice(sampling.critic, known, "critic")
    if sampling.critic == "empirical":
        return Empirical(gamma, theta_moves)
    if sampling.critic == "lstd":
        return LeastSquares(gamma)
    if sampling.critic == "fitted_linear":
        return FittedLinear(gamma)
    if sampling.critic == "state_values" and world != TABLES:
        return QuadraticState(gamma)
    if sampling.critic == "td":
        return NetworkCritic(gamma, sampling.network, sampling.network_of)
    rate, start = sampling.critic_learning_rate, sampling.critic_start
    rate = np.asarray(rate, dtype=float) if np.ndim(rate) else rate
    if sampling.critic == "sarsa":
        return Sarsa(gamma, rate, start, cut_is_end=sampling.tail == "reference")
    if sampling.critic == "state_values":
        return StateTable(gamma, rate, start)
    if sampling.critic == "stage_game":
        return StageGame(gamma, rate, start, _leader_actions(problem))
    if sampling.critic == "expected_sarsa":
        return ExpectedSarsa(gamma, rate, start)
    return MonteCarlo(gamma) if sampling.critic == "monte_carlo" else ExactCritic(gamma)


def _leader_actions(problem: Any) -> int:
    """A, in games whose follower sees the leader's move."""
    if not getattr(problem, "sees_leader", False) or not hasattr(problem, "tables"):
        raise ValueError(
            '`critic` "stage_game" needs a finite game whose follower sees the leader\'s move, such as '
            f"BiLevel/ToyMarkovGame-v0; got {type(problem).__name__}"
        )
    return problem.tables.r_leader.shape[1]
