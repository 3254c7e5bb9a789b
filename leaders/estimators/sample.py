"""What one estimate is made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Preferences, kind_of
from bilevel_envs.core.noise import Noise
from leaders.critics.cross_fit import Judges
from leaders.functional.guiding import Rule
from leaders.functional.values import Values, evaluate
from leaders.functional.weights import weights_from_trace


@dataclass(frozen=True)
class Sample:
    """A batch of trajectories with all that an estimate reads of it.

    Attributes:
      theta: θ, [R, ...], with gradients.
      model: the world at θ, with gradients; of which kind it and the response are, those parts know that read them.
      batch: the transitions.
      best: the follower's response.
      judges: the critics of the batch's parts.
      discounts: `discount_weights` of the leader, 0 beyond the steps that its objective sums, [R, N, T].
      tail: what becomes of episodes that the batch cuts.
      preferences: γ_L, γ_F and β.
      noise: one stream per run.
      rule: the estimator.
    """

    theta: Tensor
    model: Any
    batch: Rollout
    best: BestResponse[Any, Any]
    judges: Judges
    discounts: Tensor
    tail: str
    preferences: Preferences
    noise: Noise
    rule: Rule

    @cached_property
    def terms(self) -> Terms:
        """The quantities that carry ∇_θ."""
        return self.model.terms(self.batch, self.best.policy if self.rule.centred else None)

    @cached_property
    def values(self) -> Values:
        """Both players' values, made once: some critics draw for them."""
        # The follower's weigh ∇log p alone.
        unknown = kind_of(self.best.v) == "missing" and self.terms.log_arrival is None
        follower = self.rule.reads_follower and not unknown
        return evaluate(self.judges, self.best, self.batch, follower, self.judges.fold)

    @cached_property
    def guiding(self) -> Tensor:
        """The guiding weight of each step, [R, N, T]."""
        return self.rule.guiding(self.batch, self.values, self.discounts, self.preferences)


def added(sample: Sample, score_weight: str = "td_error") -> Tensor | None:
    """The terms whose gradient is what each step adds to ∇Q_F, [R, N, T]; None where θ is in none of them."""
    batch = sample.batch
    # With a trace of 1 at every step the follower's weights are what that step alone adds to ∇Q_F.
    alone = weights_from_trace(
        batch.valid.to(batch.r_leader.dtype),
        batch,
        sample.values,
        torch.zeros_like(batch.r_leader),
        sample.preferences,
        tail="keep",
        score_weight=score_weight,
    )
    terms = sample.terms
    pairs = [(terms.r_follower, alone.r_follower), (terms.log_arrival, alone.log_arrival)]
    found = [weight * term for term, weight in pairs if term is not None and weight is not None]
    return torch.stack(found).sum(0) if found else None
