"""Which published leader leads which game."""

from __future__ import annotations

from typing import Any

from leaders.paper.actor_critic import ActorCritic
from leaders.paper.linear_quadratic import LinearActorCritic
from leaders.paper.tables import UPDATES, USUAL_UPDATES, TableActorCritic


def is_game(env: Any) -> bool:
    """Whether an environment is a Markov game, whose leader moves."""
    return getattr(getattr(env, "problem", None), "leader_actions", None) is not None


def published_leader(name: str, problem: Any, replay: bool) -> ActorCritic:
    """The actor-critic that was published as a leader's form for a game.

    Args:
      name: of the leader, "bchg", "naive-pgd" or "bi-ac".
      problem: the game.
      replay: keep all transitions instead of the last batch.

    Raises:
      ValueError: if there is none.
    """
    tables, gain = hasattr(problem, "tables"), getattr(problem, "policy", None) == "linear"
    known = {"bchg": tables or gain, "naive-pgd": tables or gain, "bi-ac": tables}
    if not known.get(name):
        raise ValueError(f"`preset` must be None for {name} in {type(problem).__name__}, which has no published form")
    if replay and name == "bchg":
        raise ValueError("`replay` must be None for bchg, which follows stored episodes to their ends, got True")
    if not tables:
        return LinearActorCritic(name, problem.deviation, replay)
    if not problem.sees_leader:
        raise ValueError("`preset` must be None where the follower does not see the leader's move, got 'paper'")
    states, leader_actions, actions = problem.tables.r_leader.shape
    updates = UPDATES.get((name, problem.variant, replay), USUAL_UPDATES)
    return TableActorCritic(name, states, leader_actions, actions, updates, replay)
