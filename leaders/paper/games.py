"""Which published leader leads which game."""

from __future__ import annotations

from typing import Any

from bilevel_envs.wrapper import BilevelWrapper
from leaders.paper.linear_quadratic import LinearActorCritic
from leaders.paper.tables import DEFAULT_UPDATES, UPDATES, TableActorCritic

# The leaders that have a published form, by the class of the game (arXiv:2603.14867, section 5.4).
PUBLISHED = {"ToyMarkovGame": ("bchg", "naive-pgd", "bi-ac"), "BilevelLQR": ("bchg", "naive-pgd")}


def is_game(env: BilevelWrapper) -> bool:
    """Whether an environment is a Markov game, whose leader moves."""
    return env.problem.leader_actions is not None


def published_leader(name: str, problem: Any, replay: bool) -> TableActorCritic | LinearActorCritic:
    """The actor-critic that was published as a leader's form for a game.

    Args:
      name: of the leader, "bchg", "naive-pgd" or "bi-ac".
      problem: the game.
      replay: keep all transitions instead of the last batch.

    Raises:
      ValueError: if there is none.
    """
    game = type(problem).__name__
    if name not in PUBLISHED.get(game, ()) or (game == "BilevelLQR" and problem.policy != "linear"):
        raise ValueError(f"`preset` must be None for {name} in {game}, which has no published form")
    if replay and name == "bchg":
        raise ValueError("`replay` must be None for bchg, which follows stored episodes to their ends, got True")
    if game == "BilevelLQR":
        return LinearActorCritic(name, problem.deviation, replay)
    if not problem.sees_leader:
        raise ValueError("`preset` must be None where the follower does not see the leader's move, got 'paper'")
    states, leader_actions, actions = problem.tables.r_leader.shape
    updates = UPDATES.get((name, problem.variant, replay), DEFAULT_UPDATES)
    return TableActorCritic(name, states, leader_actions, actions, updates, replay)
