"""Leaders in linear-quadratic worlds."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from leaders.config import PUBLISHED_STEPS, EstimatorConfig, Forms, LeaderConfig
from leaders.critics import ExactCritic, FittedLinear, LeastSquares, NetworkCritic, QuadraticState
from leaders.worlds.world import CriticEntry, Facts, LeaderWorld, check_vectors, vector_forms


class LinearQuadratic(LeaderWorld):
    """States are vectors and a model gives the derivatives of their means."""

    name: ClassVar[str] = "linear_quadratic"
    vectors: ClassVar[bool] = True
    critics: ClassVar[dict[str, CriticEntry]] = {
        "lstd": CriticEntry(LeastSquares, lambda c, facts, moves: LeastSquares(facts.gamma)),
        "state_values": CriticEntry(QuadraticState, lambda c, facts, moves: QuadraticState(facts.gamma)),
        "td": CriticEntry(NetworkCritic, lambda c, facts, moves: NetworkCritic(facts.gamma, c.network, c.network_of)),
        "fitted_linear": CriticEntry(FittedLinear, lambda c, facts, moves: FittedLinear(facts.gamma)),
        "exact": CriticEntry(ExactCritic, lambda c, facts, moves: ExactCritic(facts.gamma)),
    }

    def form(self, forms: Forms, preset: str | None, leader: str, facts: Facts) -> EstimatorConfig:
        return vector_forms(forms, leader, facts)[preset]

    def published_steps(self, forms: Forms, facts: Facts) -> LeaderConfig:
        return replace(PUBLISHED_STEPS, learning_rate=forms.published_rate, blocks=facts.blocks)

    def default_batch(self, config: EstimatorConfig, facts: Facts) -> int:
        """Four transitions for each feature of a quadratic critic, in thousands; 1,000 for up to 10 zones."""
        return 1_000 * -(-4 * facts.features // 1_000)

    def check(self, config: EstimatorConfig, facts: Facts) -> None:
        check_vectors(config)
        if config.tail != "keep":
            raise ValueError(f'`tail` must be "keep" where states are vectors, got {config.tail!r}')
        critic = self.capabilities(config.critic)
        if config.gradient != "score" and not critic.gives_gradient:
            raise ValueError(
                f'`gradient` must be "score" with a critic that gives no ∇V_L, here {config.critic!r}; got '
                f"{config.gradient!r}"
            )
        if facts.quadratic_reward:
            return
        if critic.is_quadratic and critic.learns:  # the exact one solves for the reward as it is
            raise ValueError(
                f"`critic` is quadratic and cannot represent the Gaussian-shaped leader reward of {facts.problem}: use "
                f'"td", "fitted_linear" or "exact" instead of {config.critic!r}'
            )
        if config.guiding == "fitted" and critic.is_quadratic:
            raise ValueError(
                '`guiding` must be "sampled" where the leader\'s reward is not quadratic, as in '
                f'{facts.problem}, unless with `critic="td"`; got "fitted"'
            )

    def fits_guiding(self, config: EstimatorConfig, facts: Facts) -> bool:
        scores = config.gradient == "score" and config.score_weight == "td_error"
        known = scores or config.gradient == "pathwise"
        quadratic = facts.quadratic_reward and self.capabilities(config.critic).is_quadratic
        return config.estimator == "bc_hg" and quadratic and known


LINEAR_QUADRATIC = LinearQuadratic()
