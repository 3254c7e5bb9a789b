"""Which settings go with which kind of world, and the defaults that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bilevel_envs.core.checks import check_choice, check_per_run
from bilevel_envs.worlds.declared.model import SimulatedModel
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from leaders.config import CONTROL_VARIATES, DECLARED, MATRICES, QUADRATICS, TABLES, Sampling
from leaders.critics.exact import ExactCritic
from leaders.critics.sarsa import STARTS
from leaders.functional.fitted_guiding import GUIDINGS
from leaders.functional.pathwise import GRADIENTS
from leaders.functional.weights import SCORE_WEIGHTS, TAILS


def world_of(model: Any) -> str:
    """What kind of world a model describes."""
    if isinstance(model, LinearQuadraticModel):
        return MATRICES
    return DECLARED if isinstance(model, SimulatedModel) else TABLES


def is_quadratic(critic: Any) -> bool:
    """Whether the Q_L of a critic of this name, or of this critic, is a quadratic of (s, b)."""
    return critic in QUADRATICS if isinstance(critic, str) else callable(getattr(critic, "quadratic", None))


def gives_gradient(critic: Any) -> bool:
    """Whether a critic of this name, or this critic, gives ∇V_L, which whoever knows how θ moves states needs."""
    if isinstance(critic, str):
        return critic in (*QUADRATICS, "fitted_linear")
    return hasattr(critic, "leader_gradient")


def unplanned(default: Sampling, bump: bool) -> Sampling:
    """Usual settings changed for followers that learn or are watched.

    Their reaction is no closed form, and their g may be an estimate: where the default critic would take it at its
    word, state values take its place, and a network where the leader's reward is a bump.

    Args:
      default: what the leader would take with a planner.
      bump: whether the leader's reward is one.
    """
    if default.gradient == "analytic":
        default = replace(default, gradient="pathwise")
    if default.critic not in ("empirical", "expected_sarsa", "lstd", "exact"):
        return default
    if bump:
        return replace(default, critic="td", network_of="both", gradient="score")
    return replace(default, critic="state_values")


def fits_guiding(sampling: Sampling, world: str, bump: bool) -> bool:
    """Whether ∇Q_F is fitted unless told otherwise: where it and Q_L are polynomials and no closed form is known."""
    scores = sampling.gradient == "score" and sampling.score_weight == "td_error"
    known = scores or sampling.gradient == "pathwise"
    return world == MATRICES and not bump and sampling.estimator == "bc_hg" and is_quadratic(sampling.critic) and known


def declared_estimator(presets: dict[str | None, Sampling] | None, leader: str) -> str:
    """The estimator of a leader in worlds without a known model.

    Raises:
      ValueError: if it needs a model.
    """
    estimator = "" if presets is None else presets[None].estimator
    if estimator not in ("bc_hg", "naive_pgd"):
        raise ValueError(f"`env` must have a model for {leader}, tables or matrices; nobody knows one here")
    return estimator


def check_sampling(sampling: Sampling, world: str, model: Any, runs: int, score_weight_given: bool) -> None:
    """Refuses words that do not exist, and what does not go with a kind of world, with a ValueError.

    Args:
      sampling: what is checked.
      world: the kind of world.
      model: the model at some θ.
      runs: R.
      score_weight_given: whether the user said something of `score_weight`.
    """
    check_choice(sampling.tail, TAILS, "tail")
    check_choice(sampling.critic_start, STARTS, "critic_start")
    check_choice(sampling.cross_fit, (True, False), "cross_fit")
    check_per_run(sampling.critic_learning_rate, "critic_learning_rate", runs=runs, above=0, at_most=1)
    check_choice(sampling.score_weight, SCORE_WEIGHTS, "score_weight")
    check_choice(sampling.gradient, GRADIENTS, "gradient")
    check_choice(sampling.guiding, GUIDINGS, "guiding")
    if not callable(sampling.control_variate):
        check_choice(sampling.control_variate, CONTROL_VARIATES, "control_variate")
    {TABLES: _check_tables, MATRICES: _check_matrices, DECLARED: _check_played}[world](sampling)
    if sampling.guiding == "fitted":
        _check_fitted(sampling)
    if world != MATRICES:
        return
    knows_bumps = isinstance(sampling.critic, ExactCritic) or (
        isinstance(sampling.critic, str) and sampling.critic == "exact"
    )
    if model.bump is not None and is_quadratic(sampling.critic) and not knows_bumps:
        raise ValueError(f"`critic` must be no quadratic where the leader's reward is a bump, got {sampling.critic!r}")
    if model.bump is not None and sampling.guiding == "fitted":
        raise ValueError('`guiding` must be "sampled" where the leader\'s reward is a bump, got "fitted"')
    if sampling.gradient != "score" and score_weight_given:
        raise ValueError(
            f'`score_weight` weighs ∇log p, which only `gradient="score"` uses; got {sampling.score_weight!r} with '
            f"{sampling.gradient!r}"
        )


def _check_tables(sampling: Sampling) -> None:
    if sampling.gradient != "score":
        raise ValueError(f'`gradient` must be "score" for tables, got {sampling.gradient!r}')
    if sampling.guiding != "sampled":
        raise ValueError(f'`guiding` must be "sampled" for tables, got {sampling.guiding!r}')
    if sampling.control_variate == "quadratic":
        raise ValueError('`control_variate` must be "constant", "none" or a function for tables, got "quadratic"')
    if sampling.score_weight == "clipped":
        raise ValueError('`score_weight` must be "td_error" or "value" for tables, got "clipped"')


def _check_matrices(sampling: Sampling) -> None:
    _check_vectors(sampling)
    if sampling.tail != "keep":
        raise ValueError(f'`tail` must be "keep" where states are vectors, got {sampling.tail!r}')
    if sampling.gradient != "score" and not gives_gradient(sampling.critic):
        raise ValueError(
            f'`gradient` must be "score" with a critic that gives no ∇V_L, here {sampling.critic!r}; got '
            f"{sampling.gradient!r}"
        )


def _check_played(sampling: Sampling) -> None:
    _check_vectors(sampling)
    for name, value in (("gradient", "score"), ("tail", "keep")):
        if getattr(sampling, name) != value:
            raise ValueError(
                f'`{name}` must be "{value}" where nobody knows the model, got {getattr(sampling, name)!r}'
            )
    check_choice(sampling.score_weight, ("td_error", "value"), "score_weight")


def _check_fitted(sampling: Sampling) -> None:
    if not is_quadratic(sampling.critic):
        raise ValueError(
            '`guiding` must be "sampled" with a critic that is no quadratic of (s, b), here '
            f'{sampling.critic!r}; got "fitted"'
        )
    if sampling.gradient == "score" and sampling.score_weight != "td_error":
        raise ValueError(f'`score_weight` must be "td_error" with `guiding="fitted"`, got {sampling.score_weight!r}')
    if sampling.gradient == "analytic":
        raise ValueError(
            '`guiding` must be "sampled" with `gradient="analytic"`, which has a closed form; got "fitted"'
        )


def _check_vectors(sampling: Sampling) -> None:
    if sampling.estimator == "bc_hg_shared":
        raise ValueError("`shared` must be False where states are vectors, which seldom repeat; got True")
