"""Leaders in worlds without a known model."""

from __future__ import annotations

from typing import ClassVar

from bilevel_envs.core.checks import check_choice
from leaders.config import EstimatorConfig, Forms
from leaders.critics import NetworkCritic, QuadraticState
from leaders.worlds.world import CriticEntry, Facts, LeaderWorld, check_vectors, vector_forms

FITTED_UP_TO = 300  # entries of θ, each an output of a network


class Declared(LeaderWorld):
    """States are vectors, and only log f_θ is known."""

    name: ClassVar[str] = "declared"
    vectors: ClassVar[bool] = True
    critics: ClassVar[dict[str, CriticEntry]] = {
        "td": CriticEntry(
            NetworkCritic, lambda c, f, moves: NetworkCritic(f.gamma, c.network, c.network_of, f.actions)
        ),
        "state_values": CriticEntry(QuadraticState, lambda c, facts, moves: QuadraticState(facts.gamma)),
    }

    def form(self, forms: Forms, preset: str | None, leader: str, facts: Facts) -> EstimatorConfig:
        vector_forms(forms, leader, facts)
        if preset is not None and facts.reads_components:
            raise ValueError(
                f"`preset` must be None for {facts.problem}, got {preset!r}: the published forms of {leader} are for "
                "tables, linear-quadratic worlds and games"
            )
        if preset is not None:
            return forms.tables[preset]
        if forms.declared is None:
            raise ValueError(
                f"`env` must have a known model for {leader}, tables or matrices; {facts.problem} has none: take BCHG, "
                "or a search such as CMAES"
            )
        return forms.declared

    def for_follower(self, form: EstimatorConfig, facts: Facts) -> EstimatorConfig:
        return form  # it supposes a follower that learns

    def check(self, config: EstimatorConfig, facts: Facts) -> None:
        check_vectors(config)
        learnt = config.dynamics == "learnt"
        if facts.hides_moves and not learnt:
            raise ValueError(
                f"`env` must have a known log p where θ moves its dynamics; {facts.problem} has none, and the gradient "
                'of what arrives would be left out: pass dynamics="learnt", or take CMAES, RandomSearch or '
                "ZerothOrder, which only compare returns"
            )
        if config.guiding == "fitted" and not facts.reads_components:
            raise ValueError(
                f'`guiding` must be "sampled" where θ moves log p, as in {facts.problem}: a network does not learn '
                '∇Q_F from noise as large as that of ∇log p; got "fitted"'
            )
        if config.tail != "keep":
            raise ValueError(f'`tail` must be "keep" where the model is not known, got {config.tail!r}')
        if learnt:
            check_choice(config.gradient, ("pathwise", "score"), "gradient")
        elif config.gradient != "score":
            raise ValueError(f'`gradient` must be "score" where the model is not known, got {config.gradient!r}')
        check_choice(config.score_weight, ("td_error", "value"), "score_weight")

    def fits_guiding(self, config: EstimatorConfig, facts: Facts) -> bool:
        known = self.capabilities(config.critic).gives_action_values and config.score_weight == "td_error"
        few = facts.reads_components and facts.theta_size <= FITTED_UP_TO
        return config.estimator == "bc_hg" and known and few


DECLARED_WORLD = Declared()
