"""Leaders in worlds of finitely many states and actions."""

from __future__ import annotations

from typing import ClassVar

from leaders.config import EstimatorConfig, Forms
from leaders.critics import (
    Empirical,
    ExactCritic,
    ExpectedSarsa,
    MonteCarlo,
    NetworkCritic,
    Sarsa,
    StageGame,
    StateTable,
)
from leaders.critics.critic import Critic
from leaders.worlds.world import CriticEntry, Facts, LeaderWorld, rate_of


def _stage_game(config: EstimatorConfig, facts: Facts, theta_moves: bool) -> Critic:
    if not facts.leader_actions:
        raise ValueError(
            '`critic` "stage_game", that of BiAC, needs a finite game whose follower sees the leader\'s move, such as '
            f"BiLevel/ToyMarkovGame-v0; got {facts.problem}"
        )
    return StageGame(facts.gamma, rate_of(config), config.critic_start, facts.leader_actions)


class Tabular(LeaderWorld):
    """Countable states: critics are tables, and only the score moves transitions."""

    name: ClassVar[str] = "tabular"
    critics: ClassVar[dict[str, CriticEntry]] = {
        "empirical": CriticEntry(Empirical, lambda c, facts, moves: Empirical(facts.gamma, moves)),
        "expected_sarsa": CriticEntry(
            ExpectedSarsa, lambda c, facts, moves: ExpectedSarsa(facts.gamma, rate_of(c), c.critic_start)
        ),
        "sarsa": CriticEntry(
            Sarsa,
            lambda c, facts, moves: Sarsa(facts.gamma, rate_of(c), c.critic_start, cut_is_end=c.tail == "reference"),
        ),
        "monte_carlo": CriticEntry(MonteCarlo, lambda c, facts, moves: MonteCarlo(facts.gamma)),
        "state_values": CriticEntry(
            StateTable, lambda c, facts, moves: StateTable(facts.gamma, rate_of(c), c.critic_start)
        ),
        "td": CriticEntry(NetworkCritic, lambda c, facts, moves: NetworkCritic(facts.gamma, c.network, c.network_of)),
        "stage_game": CriticEntry(StageGame, _stage_game),
        "exact": CriticEntry(ExactCritic, lambda c, facts, moves: ExactCritic(facts.gamma)),
    }

    def form(self, forms: Forms, preset: str | None, leader: str, facts: Facts) -> EstimatorConfig:
        return forms.tables[preset]

    def check(self, config: EstimatorConfig, facts: Facts) -> None:
        if config.gradient != "score":
            raise ValueError(f'`gradient` must be "score" for tables, got {config.gradient!r}')
        if config.guiding != "sampled":
            raise ValueError(f'`guiding` must be "sampled" for tables, got {config.guiding!r}')
        if config.control_variate == "quadratic":
            raise ValueError('`control_variate` must be "constant", "none" or a function for tables, got "quadratic"')
        if config.score_weight == "clipped":
            raise ValueError('`score_weight` must be "td_error" or "value" for tables, got "clipped"')


TABULAR = Tabular()
