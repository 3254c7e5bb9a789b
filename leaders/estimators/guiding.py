"""How the guiding term is made: sampled, fitted, in closed form, by an oracle, or around a fitted ∇V_F."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.worlds.linear_quadratic.polynomials import products
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.rollout import First, table_rollout
from leaders.critics.reaction import covariance
from leaders.estimators.oracle import oracle_batch, oracle_weights, published_oracle_guiding
from leaders.estimators.sample import Sample, added
from leaders.functional.errors import TooFewTransitions
from leaders.functional.fitted_guiding import fitted_trace
from leaders.functional.guiding import ESTIMATORS, Rule, guiding_bc_hg
from leaders.functional.pathwise import analytic_guiding
from leaders.functional.per_step import per_step_gradient
from leaders.functional.surrogate import surrogate
from leaders.functional.weights import eligibility_trace, residualised

Further = tuple[Tensor | float, Tensor | int]


@dataclass(frozen=True)
class Guiding:
    """∇Q_F as trajectories collect it, weighed by the estimator's guiding weight.

    Attributes:
      rule: the estimator.
      control_variate: of the guiding weight, "constant", "quadratic", "none" or a function state → [..., F].
      behind_cuts: the estimator by which cut episodes go on.
      numbers: how many are held of each transition, beside its own, for a fit.
    """

    rule: Rule
    control_variate: str | Callable[[Tensor], Tensor] = "none"
    behind_cuts: Rule | None = None
    numbers: int = field(default=0, kw_only=True)

    @property
    def onward(self) -> Rule:
        """The estimator by which cut episodes go on."""
        return self.rule if self.behind_cuts is None else self.behind_cuts

    def trace(self, sample: Sample) -> Tensor:
        """The weight of what each step adds to ∇Q_F, 0 where a step is not valid, [R, N, T]."""
        guiding = sample.guiding
        if self.control_variate != "none":
            guiding = residualised(guiding, self._features(sample.batch), sample.batch)
        decay = sample.preferences.gamma_follower if self.rule.decay is None else self.rule.decay
        return eligibility_trace(guiding, decay, sample.batch.starts) * sample.batch.valid

    def further(self, sample: Sample) -> Further:
        """What is added to the surrogate, [R], and the environment steps that it took."""
        return 0.0, 0

    def steps_drawn(self, steps: int, horizon: int) -> int:
        """The most steps that are held for a batch of `steps` on-policy ones, episodes being cut at `horizon`."""
        return steps

    def _features(self, batch: Rollout) -> Tensor:
        if callable(self.control_variate):
            features = torch.as_tensor(self.control_variate(batch.state)).to(batch.r_leader.dtype)
            if features.shape[:-1] != batch.r_leader.shape:
                wanted = [*batch.r_leader.shape, "F"]
                raise ValueError(f"`control_variate` must map states to shape {wanted}, got {list(features.shape)}")
            return features
        ones = torch.ones(*batch.r_leader.shape, 1, dtype=batch.r_leader.dtype)
        if self.control_variate == "constant":
            return ones
        return torch.cat([ones, batch.state, products(batch.state)], -1)


@dataclass(frozen=True)
class FittedGuiding(Guiding):
    """∇Q_F fitted as a polynomial of (s, b); each part of the batch fits its own."""

    def trace(self, sample: Sample) -> Tensor:
        weight = sample.discounts / sample.preferences.beta
        gamma, total = sample.preferences.gamma_follower, torch.zeros_like(weight)
        for critic, part in zip(sample.judges.critics, sample.judges.parts, strict=True):
            own = replace(sample.batch, valid=sample.batch.valid & part)
            try:
                trace = fitted_trace(own, critic.quadratic(), sample.best.policy, weight * part, gamma)
            except TooFewTransitions as error:
                raise error.of_half() if len(sample.judges.critics) > 1 else error from None
            total = total + trace * part
        return total


@dataclass(frozen=True)
class NetworkGuiding(Guiding):
    r"""∇Q_F learnt by a network of (s, b): Σ_t γ_L^t Cov_b(Q_L, ∇Q_F)(s_t) / β, of which states alone are sampled.

    Each critic is multiplied by a ∇Q_F that was fitted to the steps which that critic has not seen, at all states.

    Attributes:
      added: `Score.added`.
    """

    added: Callable[[Sample], Tensor | None] = field(kw_only=True)

    def trace(self, sample: Sample) -> Tensor:
        return torch.zeros_like(sample.discounts)

    def further(self, sample: Sample) -> Further:
        batch, policy, judges = sample.batch, sample.best.policy, sample.judges
        learnt, half = judges.whole.learnt
        term = self.added(sample) if learnt is batch else sample.model.terms(learnt).r_follower
        if term is None:
            return 0.0, 0
        brought = per_step_gradient(term, sample.theta)
        weight = sample.discounts / sample.preferences.beta / len(judges.critics)
        estimate = torch.zeros_like(brought[:, 0, 0])
        for part, (critic, reaction) in enumerate(zip(judges.critics, judges.whole.reactions, strict=False)):
            own = replace(learnt, valid=learnt.valid & (half == part))
            reaction.fit_to(brought, own, policy, sample.noise)
            estimate = estimate + covariance(critic, reaction, batch.state, policy, weight)
        return (estimate * sample.theta.flatten(1)).sum(1), 0


@dataclass(frozen=True)
class AnalyticGuiding(Guiding):
    """∇Q_F − ∇V_F in closed form, which an optimal follower in a linear-quadratic world has."""

    def trace(self, sample: Sample) -> Tensor:
        return torch.zeros_like(sample.guiding)

    def further(self, sample: Sample) -> Further:
        return analytic_guiding(sample.guiding, sample.batch, sample.model, sample.preferences), 0


@dataclass(frozen=True)
class OracleGuiding(Guiding):
    """∇Q_F − ∇V_F from episodes that begin in the visited states, which an oracle draws.

    Attributes:
      simulator: the world that is simulated at θ, without gradients.
      score_weight: as in `weights_from_guiding`.
      draws: episodes from each visited pair and state.
    """

    simulator: Callable[[Tensor], TabularModel] = field(kw_only=True)
    score_weight: str = "td_error"
    draws: int = 1
    horizon: int = 1

    def further(self, sample: Sample) -> Further:
        oracle, guiding = self._episodes(sample)
        weights = oracle_weights(oracle, guiding, sample.best, sample.preferences, score_weight=self.score_weight)
        return surrogate(sample.model.terms(oracle), weights), oracle.valid.sum((1, 2))

    def steps_drawn(self, steps: int, horizon: int) -> int:
        return steps + 2 * self.draws * steps * horizon

    def _episodes(self, sample: Sample) -> tuple[Rollout, Tensor]:
        """The oracle's episodes and their guiding weights."""
        world, policy = self.simulator(sample.theta.detach()), sample.best.behavior_policy
        own = guiding_bc_hg(sample.batch, sample.values, sample.discounts, sample.preferences)
        how = {"draws": self.draws, "horizon": self.horizon}
        return oracle_batch(world, policy, sample.noise, sample.batch, own, **how)


@dataclass(frozen=True)
class PublishedOracleGuiding(OracleGuiding):
    """The published oracle: a separate batch with uniform starts, whose means are looked up.

    Attributes:
      size: its transitions.
      rows: its rows.
      time_limit: of its episodes.
    """

    size: int = 10_000
    rows: int = 1
    time_limit: int | None = None

    def steps_drawn(self, steps: int, horizon: int) -> int:
        return steps + self.size

    def _episodes(self, sample: Sample) -> tuple[Rollout, Tensor]:
        """Q_L, V_L, ∇Q_F and ∇V_F are means over the oracle batch alone; the on-policy batch says how much they count.

        A pair that the oracle never saw has Q_L = 0 and ∇Q_F = 0, as in the published code.
        """
        world, policy = self.simulator(sample.theta.detach()), sample.best.behavior_policy
        oracle = table_rollout(
            world,
            policy,
            sample.noise,
            rows=self.rows,
            horizon=self.size // self.rows,
            time_limit=self.time_limit,
            first=First(np.full(world.states, 1 / world.states)),
        )
        at = (sample.batch, sample.discounts, sample.preferences, world.states, world.actions)
        return oracle, published_oracle_guiding(oracle, *at)


@dataclass(frozen=True)
class CentredGuiding(Guiding):
    """∇Q_F as trajectories collect it, less a ∇V_F that is fitted to the batch.

    Attributes:
      score_weight: as in `weights_from_trace`.
    """

    score_weight: str = "td_error"

    def further(self, sample: Sample) -> Further:
        """−⟨Σ_k c_k Û(s_k), θ⟩ of each run, with Û fitted to what each step adds to ∇Q_F."""
        batch, guiding = sample.batch, sample.guiding
        term = added(sample, self.score_weight)
        if term is None:
            return 0.0, 0
        # The published form adds nothing at the last step of an episode, which is no step of the process then.
        used = batch.valid & ~batch.cut if self.score_weight == "clipped" else batch.valid
        baseline = sample.judges.whole.baseline  # fitted to half a batch it would be some ten times noisier
        baseline.fit(batch, per_step_gradient(term, sample.theta), used, sample.noise)
        centre = (guiding[..., None] * baseline(batch.state)).sum((1, 2))
        return -(centre * sample.theta.flatten(1)).sum(1), 0


HPGD_RULE = ESTIMATORS["hpgd"]  # by which HPGD's cut episodes go on: what an oracle's episodes carry, too
