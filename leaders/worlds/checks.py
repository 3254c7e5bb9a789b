"""Which settings go with which kind of world, and the defaults that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bilevel_envs.core.checks import check_choice, check_per_run
from bilevel_envs.worlds.declared.model import SimulatedModel
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from leaders.config import FEATURES, MATRICES, PLAYED, QUADRATICS, TABLES, Sampling
from leaders.critics.exact import ExactCritic
from leaders.critics.sarsa import STARTS
from leaders.functional.fitted_guiding import REACTIONS
from leaders.functional.pathwise import KNOWLEDGE
from leaders.functional.weights import ARRIVALS, TAILS


def world_of(model: Any) -> str:
    """What kind of world a model describes."""
    if isinstance(model, LinearQuadraticModel):
        return MATRICES
    return PLAYED if isinstance(model, SimulatedModel) else TABLES


def is_quadratic(critic: Any) -> bool:
    """Whether the Q_L of a critic of this name, or of this critic, is a quadratic of (s, b)."""
    return critic in QUADRATICS if isinstance(critic, str) else callable(getattr(critic, "quadratic", None))


def gives_gradient(critic: Any) -> bool:
    """Whether a critic of this name, or this critic, gives ∇V_L, which whoever knows how θ moves states needs."""
    if isinstance(critic, str):
        return critic in (*QUADRATICS, "fitted_linear")
    return hasattr(critic, "leader_gradient")


def unplanned(usual: Sampling, bump: bool) -> Sampling:
    """Usual settings changed for followers that learn or are watched.

    Their reaction is no closed form, and their g may be an estimate: where the usual critic would take it at its word,
    state values take its place, and a network where the leader's reward is a bump.

    Args:
      usual: what the leader would take with a planner.
      bump: whether the leader's reward is one.
    """
    if usual.knowledge == "model":
        usual = replace(usual, knowledge="terms")
    if usual.critic not in ("empirical", "expected_sarsa", "lstd", "exact"):
        return usual
    if bump:
        return replace(usual, critic="td", network_of="both", knowledge="simulate")
    return replace(usual, critic="state_values")


def fits_reaction(sampling: Sampling, world: str, bump: bool) -> bool:
    """Whether ∇Q_F is fitted unless told otherwise: where it and Q_L are polynomials and no closed form is known."""
    scores = sampling.knowledge == "simulate" and sampling.arrival == "td_error"
    known = scores or sampling.knowledge == "terms"
    return world == MATRICES and not bump and sampling.kick == "bc_hg" and is_quadratic(sampling.critic) and known


def played_kick(presets: dict[str | None, Sampling] | None, leader: str) -> str:
    """The kick of a leader in worlds that can only be played.

    Raises:
      ValueError: if it needs a model.
    """
    kick = "" if presets is None else presets[None].kick
    if kick not in ("bc_hg", "naive_pgd"):
        raise ValueError(f"`env` must have a model for {leader}, tables or matrices; nobody knows one here")
    return kick


def check_sampling(sampling: Sampling, world: str, model: Any, runs: int, arrival_told: bool) -> None:
    """Refuses words that do not exist, and what does not go with a kind of world, with a ValueError.

    Args:
      sampling: what is checked.
      world: the kind of world.
      model: the model at some θ.
      runs: R.
      arrival_told: whether the user said something of `arrival`.
    """
    check_choice(sampling.tail, TAILS, "tail")
    check_choice(sampling.critic_start, STARTS, "critic_start")
    check_choice(sampling.cross_fit, (True, False), "cross_fit")
    check_per_run(sampling.critic_learning_rate, "critic_learning_rate", runs=runs, above=0, at_most=1)
    check_choice(sampling.arrival, ARRIVALS, "arrival")
    check_choice(sampling.knowledge, KNOWLEDGE, "knowledge")
    check_choice(sampling.reaction, REACTIONS, "reaction")
    if not callable(sampling.features):
        check_choice(sampling.features, FEATURES, "features")
    {TABLES: _check_tables, MATRICES: _check_matrices, PLAYED: _check_played}[world](sampling)
    if sampling.reaction == "fitted":
        _check_fitted(sampling)
    if world != MATRICES:
        return
    knows_bumps = isinstance(sampling.critic, ExactCritic) or (
        isinstance(sampling.critic, str) and sampling.critic == "exact"
    )
    if model.bump is not None and is_quadratic(sampling.critic) and not knows_bumps:
        raise ValueError(f"`critic` must be no quadratic where the leader's reward is a bump, got {sampling.critic!r}")
    if model.bump is not None and sampling.reaction == "fitted":
        raise ValueError('`reaction` must be "sampled" where the leader\'s reward is a bump, got "fitted"')
    if sampling.knowledge != "simulate" and arrival_told:
        raise ValueError(
            f'`arrival` weighs ∇log p, which only `knowledge="simulate"` uses; got {sampling.arrival!r} with '
            f"{sampling.knowledge!r}"
        )


def _check_tables(sampling: Sampling) -> None:
    if sampling.knowledge != "simulate":
        raise ValueError(f'`knowledge` must be "simulate" for tables, got {sampling.knowledge!r}')
    if sampling.reaction != "sampled":
        raise ValueError(f'`reaction` must be "sampled" for tables, got {sampling.reaction!r}')
    if sampling.features == "quadratic":
        raise ValueError('`features` must be "constant", "none" or a function for tables, got "quadratic"')
    if sampling.arrival == "clipped":
        raise ValueError('`arrival` must be "td_error" or "value" for tables, got "clipped"')


def _check_matrices(sampling: Sampling) -> None:
    _check_vectors(sampling)
    if sampling.tail != "keep":
        raise ValueError(f'`tail` must be "keep" where states are vectors, got {sampling.tail!r}')
    if sampling.knowledge != "simulate" and not gives_gradient(sampling.critic):
        raise ValueError(
            f'`knowledge` must be "simulate" with a critic that gives no ∇V_L, here {sampling.critic!r}; got '
            f"{sampling.knowledge!r}"
        )


def _check_played(sampling: Sampling) -> None:
    _check_vectors(sampling)
    for name, value in (("knowledge", "simulate"), ("tail", "keep")):
        if getattr(sampling, name) != value:
            raise ValueError(
                f'`{name}` must be "{value}" where nobody knows the model, got {getattr(sampling, name)!r}'
            )
    check_choice(sampling.arrival, ("td_error", "value"), "arrival")


def _check_fitted(sampling: Sampling) -> None:
    if not is_quadratic(sampling.critic):
        raise ValueError(
            '`reaction` must be "sampled" with a critic that is no quadratic of (s, b), here '
            f'{sampling.critic!r}; got "fitted"'
        )
    if sampling.knowledge == "simulate" and sampling.arrival != "td_error":
        raise ValueError(f'`arrival` must be "td_error" with `reaction="fitted"`, got {sampling.arrival!r}')
    if sampling.knowledge == "model":
        raise ValueError('`reaction` must be "sampled" with `knowledge="model"`, which has a closed form; got "fitted"')


def _check_vectors(sampling: Sampling) -> None:
    if sampling.kick == "bc_hg_shared":
        raise ValueError("`shared` must be False where states are vectors, which seldom repeat; got True")
