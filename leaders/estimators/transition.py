"""How θ in transitions is differentiated: by scores, by scores clipped one by one, or pathwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from leaders.estimators.continuation import continuation
from leaders.estimators.sample import Sample, added
from leaders.functional.guiding import Rule
from leaders.functional.pathwise import pathwise
from leaders.functional.per_step import clipped, per_step_gradient
from leaders.functional.weights import Weights

MOST_SCORE = 1.0  # ℓ2 norm to which score_weight="clipped" clips each ∇log p of the direct term, in raw parameters


@dataclass(frozen=True)
class Score:
    """∇log p of the moves that were drawn; cut episodes go on in the empirical model."""

    def moved(self, weights: Weights, sample: Sample) -> Weights:
        """The weights, on the terms that this way of differentiating uses."""
        return weights

    def added(self, sample: Sample) -> Tensor | None:
        """A function of θ at every step whose gradient is what the step adds to ∇Q_F, [R, N, T]; None if θ has no part.

        Here r_F + δ_F log p, whose expected gradient is ∇r_F + γ_F Σ_{s'} V_F(s') ∇p(s'). The gradient may instead be
        taken through s' itself, of r_F + γ_F V_F(s'(θ)) where a model moves s' by θ, or be that of their expectation.
        """
        return added(sample)

    def further(self, weights: Weights, sample: Sample, onward: Rule) -> Tensor | float:
        """What is added to the surrogate, [R]; `onward` is the estimator behind cuts."""
        if sample.tail != "continue":
            return 0.0
        return continuation(
            sample.judges,
            sample.model,
            sample.batch,
            sample.best,
            sample.discounts,
            weights,
            sample.preferences,
            rule=onward,
        )


@dataclass(frozen=True)
class ClippedScore(Score):
    """The published form for continuous worlds: every ∇log p of the leader's part is clipped by itself.

    Attributes:
      slope: dθ_j / draw_j at the present θ, for as many runs as are stacked, [R, dim θ].
      blocks: parts of θ that are clipped apart; None to clip all together.
    """

    slope: Callable[[int], Tensor]
    blocks: Mapping[str, slice] | None = None

    def further(self, weights: Weights, sample: Sample, onward: Rule) -> Tensor | float:
        """What arrives for the leader, with every ∇log p clipped; linear in θ."""
        total = super().further(weights, sample, onward)
        log_arrival = sample.terms.log_arrival
        if log_arrival is None:
            return total
        weight = sample.preferences.gamma_leader * sample.discounts * sample.values.v_leader_next * ~sample.batch.cut
        slope, blocks = self.slope(len(sample.theta)), self.blocks or {"all": slice(None)}
        score = clipped(per_step_gradient(log_arrival, sample.theta), slope, blocks, MOST_SCORE)
        return total + ((weight[..., None] * score).sum((1, 2)) * sample.theta.flatten(1)).sum(1)


@dataclass(frozen=True)
class Pathwise(Score):
    """The derivative of the mean of the next state; needs no ∇log p.

    Attributes:
      gradient: the user's word for it, for messages.
    """

    gradient: str = "pathwise"

    def moved(self, weights: Weights, sample: Sample) -> Weights:
        if sample.model.noise.requires_grad:
            raise ValueError(f'`gradient` must be "score" where θ moves the noise, got {self.gradient!r}')
        v_leader = sample.judges.leader_gradient(sample.best.policy)
        v_follower = sample.best.v if sample.rule.reads_follower else None
        fixed, batch = sample.model.detach(), sample.batch
        return pathwise(weights, sample.discounts, batch, fixed, v_leader, v_follower, sample.preferences)

    def further(self, weights: Weights, sample: Sample, onward: Rule) -> Tensor | float:
        return 0.0
