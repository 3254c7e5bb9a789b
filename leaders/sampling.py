"""How a leader turns trajectories into a hypergradient, and what goes with which kind of world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bilevel_envs._checks import check_choice, check_per_run
from bilevel_envs.linear_quadratic import LinearQuadraticModel
from bilevel_envs.networks import PUBLISHED_FIT, USUAL_FIT, Fit
from bilevel_envs.simulated import SimulatedModel
from leaders.critics.exact import ExactCritic
from leaders.critics.sarsa import STARTS
from leaders.fitted_reaction import REACTIONS
from leaders.knowledge import KNOWLEDGE
from leaders.weights import ARRIVALS, TAILS

FEATURES = ("constant", "quadratic", "none")
PUBLISHED_STEPS: dict[str, Any] = {"learning_rate": 0.1, "optimizer": "sgd"}  # and the clip at 1, the default


@dataclass(frozen=True)
class Sampling:
    """How a leader turns trajectories into a hypergradient.

    Attributes:
      kick: name of the estimator, a key of `KICKS`.
      batch_size: transitions per outer iteration and run.
      rows: trajectories side by side that make up a batch; None for the fewest that the time limit allows (10 without);
        with the tail "bootstrap", for the fewest that go on until discounting has left a twentieth.
      critic: "empirical", "expected_sarsa", "sarsa", "monte_carlo", "lstd", "state_values", "td", "exact", ..., or an
        object of your own.
      critic_learning_rate: η, a number or one per run.
      critic_start: first critic table, "zeros" or "normal".
      features: state control variate: "constant", "quadratic", "none", or a function state → [..., F].
      tail: what becomes of episodes that the batch cuts, "drop", "keep", "bootstrap" or "reference".
      arrival: weight of ∇log p, "td_error", "value" or "clipped".
      sampler: "fused" or "steps".
      knowledge: what the leader uses beside trajectories, "simulate", "terms" or "model" (see `leaders.knowledge`).
      reaction: ∇Q_F as trajectories collect it, "sampled", or a polynomial, "fitted" (see `leaders.fitted_reaction`).
      network: how networks are fitted.
      network_of: what the critic's network reads, "action" (and the state), the "state" alone, or "both", a network
        each.
      cross_fit: critics judge transitions that they were not fitted to (see `leaders.cross_fit`).
    """

    kick: str
    batch_size: int = 100
    rows: int | None = None
    critic: Any = "empirical"
    critic_learning_rate: Any = 0.5
    critic_start: str = "zeros"
    features: str | Callable[[Tensor], Tensor] = "constant"
    tail: str = "bootstrap"
    arrival: str = "td_error"
    sampler: str = "fused"
    knowledge: str = "simulate"
    reaction: str = "sampled"
    network: Fit = USUAL_FIT
    network_of: str = "action"
    cross_fit: bool = True


# Every choice of the published four-rooms code (arXiv:2603.14867; listed in the docs).
PUBLISHED_TABLES = Sampling(
    "bc_hg_shared",
    critic="sarsa",
    critic_learning_rate=0.5,
    critic_start="normal",
    features="none",
    tail="reference",
    arrival="value",
    cross_fit=False,
)
# For linear-quadratic worlds: the recommended form, and the published one (arXiv:2603.14867; values from the code).
LINEAR = Sampling("bc_hg", batch_size=1_000, critic="lstd", features="quadratic", tail="keep", knowledge="model")
PUBLISHED_LINEAR = Sampling(
    "bc_hg",
    batch_size=10_000,
    rows=10,
    critic="td",
    features="none",
    tail="keep",
    arrival="clipped",
    network=PUBLISHED_FIT,
    cross_fit=False,
)
# For worlds that can only be stepped, with followers that learn.
SIMULATED = Sampling(
    "bc_hg", batch_size=2_000, critic="td", features="constant", tail="keep", sampler="steps", network_of="both"
)
QUADRATICS = ("lstd", "state_values", "exact")  # critics whose Q_L is a quadratic of (s, b)
TABLES, MATRICES, PLAYED = "tables", "matrices", "played"  # kinds of worlds, by what is known of them


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
