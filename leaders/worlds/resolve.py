"""From what the user said, and what the world and its follower are, to a leader's whole configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import NoneType
from typing import Any

from bilevel_envs.core.checks import check_choice, check_number, check_per_run
from leaders.config import (
    CONTROL_VARIATES,
    DYNAMICS,
    EXPLORATIONS,
    EstimatorConfig,
    Forms,
    LeaderConfig,
    PublishedGame,
    changed,
)
from leaders.critics.sarsa import STARTS
from leaders.functional.fitted_guiding import GUIDINGS
from leaders.functional.pathwise import GRADIENTS
from leaders.functional.weights import SCORE_WEIGHTS, TAILS
from leaders.worlds.world import Facts


def resolve(
    leader: str, forms: Forms, given: Mapping[str, Any], facts: Facts, game: PublishedGame | None = None
) -> tuple[LeaderConfig, EstimatorConfig]:
    """The whole configuration of a leader; pure.

    What the user says wins over what the problem advises, and that over the form that the leader has in this kind of
    world. Choices that depend on others, such as a closed form that only an optimal follower has, are made last.

    Args:
      leader: the leader's class, for messages.
      forms: the leader's forms.
      given: what the user said; None stands for nothing.
      facts: of the world and the follower.
      game: the published form in a game, where that is asked for.

    Raises:
      ValueError: if a setting is unknown, or unsupported with the others or in this kind of world.
    """
    preset = given.get("preset")
    check_choice(preset, forms.tables, "preset")
    for name, known in {"guiding": GUIDINGS, "dynamics": DYNAMICS, "gradient": GRADIENTS}.items():
        if given.get(name) is not None:
            check_choice(given[name], known, name)
    form = facts.world.form(forms, preset, leader, facts)
    advised = _advised(given, facts)
    return (
        changed(changed(_leader_form(forms, preset, facts, game), advised), given),
        _estimator(changed(form, advised), given, advised, facts, game),
    )


def _advised(given: Mapping[str, object], facts: Facts) -> Mapping[str, object]:
    """What the problem recommends for the default form: rows with its batch only, exploration with its start only."""
    if given.get("preset") is not None:
        return {}
    dropped = set()
    if given.get("batch_size") is not None:
        dropped.add("rows")
    if not isinstance(given.get("policy"), (str, NoneType)):
        dropped.add("exploration")  # the user has chosen where to begin
    return {name: value for name, value in facts.advised.items() if name not in dropped}


def _leader_form(forms: Forms, preset: str | None, facts: Facts, game: PublishedGame | None) -> LeaderConfig:
    """The leader's settings before anybody has said anything."""
    if game is not None:
        return changed(LeaderConfig(policy=game.policy), game.settings)
    if preset is None:
        return LeaderConfig()
    return facts.world.published_steps(forms, facts)


def _estimator(
    default: EstimatorConfig,
    given: Mapping[str, object],
    advised: Mapping[str, object],
    facts: Facts,
    game: PublishedGame | None,
) -> EstimatorConfig:
    """The estimator's settings, from the form that it has here."""
    recommended = given.get("preset") is None
    if recommended:
        default = facts.world.for_follower(default, facts)
    if given.get("guiding") == "fitted" and default.gradient == "analytic":
        default = replace(default, gradient="pathwise")  # a closed form leaves nothing to fit
    if game is not None:
        default = replace(default, batch_size=game.batch_size, rows=game.rows, tail="keep", cross_fit=False)
    config = changed(default, given)
    if given.get("gradient") is None:
        config = replace(config, gradient=_gradient(config, facts))
    if recommended and given.get("guiding") is None:
        config = replace(config, guiding="fitted" if facts.world.fits_guiding(config, facts) else "sampled")
    if recommended and given.get("batch_size") is None and "batch_size" not in advised:
        config = replace(config, batch_size=facts.world.default_batch(config, facts))
    ahead = config.guiding == "fitted" and looks_ahead(config)  # which tells actions apart by where they lead
    return replace(config, network_of="state") if ahead else config


def _gradient(config: EstimatorConfig, facts: Facts) -> str:
    """How θ in transitions is differentiated unless the user says otherwise: more than the score takes ∇V_L."""
    if config.dynamics == "learnt":
        return "pathwise"
    return config.gradient if facts.world.capabilities(config.critic).gives_gradient else "score"


def looks_ahead(config: EstimatorConfig) -> bool:
    """Whether ∇Q_F can be fitted by looking one step ahead in learnt dynamics."""
    return config.dynamics == "learnt" and config.gradient == "pathwise" and config.critic == "td"


def check_config(config: EstimatorConfig, facts: Facts, runs: int, given: Mapping[str, object]) -> None:
    """Raises ValueError if a setting is unknown or unsupported with the others or in this kind of world.

    Args:
      config: what is checked.
      facts: of the world and the follower.
      runs: R.
      given: what the user said.
    """
    check_choice(config.tail, TAILS, "tail")
    check_choice(config.critic_start, STARTS, "critic_start")
    check_choice(config.cross_fit, (True, False), "cross_fit")
    check_per_run(config.critic_learning_rate, "critic_learning_rate", runs=runs, above=0, at_most=1)
    check_choice(config.score_weight, SCORE_WEIGHTS, "score_weight")
    check_choice(config.gradient, GRADIENTS, "gradient")
    check_choice(config.guiding, GUIDINGS, "guiding")
    check_choice(config.exploration, EXPLORATIONS, "exploration")
    if not callable(config.control_variate):
        check_choice(config.control_variate, CONTROL_VARIATES, "control_variate")
    check_choice(config.dynamics, DYNAMICS, "dynamics")
    check_number(config.perturbation, "perturbation", above=0, at_most=1)
    if config.dynamics == "learnt" and not facts.hides_moves:
        raise ValueError(
            f'`dynamics` must be "known" for {facts.problem}, which hides no dynamics that θ moves; got "learnt"'
        )
    if config.dynamics != "learnt" and given.get("perturbation") is not None:
        raise ValueError(
            '`perturbation` is of the transitions that `dynamics="learnt"` is fitted to; got '
            f"{config.perturbation} with {config.dynamics!r}"
        )
    facts.world.check(config, facts)
    if config.guiding == "fitted":
        _check_fitted(config, facts)
        if config.dynamics == "learnt" and given.get("control_variate") is not None:
            raise ValueError(
                '`control_variate` is subtracted from ∇Q_F as trajectories collect it, `guiding="sampled"`; got '
                f'{config.control_variate!r} with `dynamics="learnt"` and "fitted"'
            )
    if config.gradient != "score" and given.get("score_weight") is not None:
        raise ValueError(
            f'`score_weight` weighs ∇log p, which only `gradient="score"` uses; got {config.score_weight!r} with '
            f"{config.gradient!r}"
        )


def _check_fitted(config: EstimatorConfig, facts: Facts) -> None:
    critic = facts.world.capabilities(config.critic)
    if not (critic.is_quadratic or critic.gives_action_values):
        raise ValueError(
            '`guiding` must be "sampled" with a critic that has no Q_L of any (s, b), here '
            f'{config.critic!r}; got "fitted"'
        )
    if config.gradient == "score" and config.score_weight != "td_error":
        raise ValueError(f'`score_weight` must be "td_error" with `guiding="fitted"`, got {config.score_weight!r}')
    if config.gradient == "analytic":
        raise ValueError(
            '`guiding` must be "sampled" with `gradient="analytic"`, which has a closed form; got "fitted"'
        )
