"""Followers that are not quite rational, each in one respect.

Their policy is what they do; Q_F and V_F are those of the planner inside, which a leader takes for theirs. So the
identity β log g = Q_F − V_F, on which the Boltzmann covariance rests, holds for none of them exactly; each class says
what a leader estimates then.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_seed, keep_numbers
from bilevel_envs.core.follower import (
    BestResponse,
    Capabilities,
    Follower,
    UnsupportedModelError,
    capabilities_of,
    check_planner,
    own_beta,
)
from bilevel_envs.core.mdp import Model, Preferences, kind_of
from bilevel_envs.followers.planners.soft_value_iteration import SoftValueIteration
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse


class _ChangedTable:
    """What those have in common who plan, and then act by another table."""

    follower: Follower

    @property
    def capabilities(self) -> Capabilities:
        """Tables; not optimal."""
        return replace(capabilities_of(self.follower), kinds=("tabular",), optimal=False, cuts_short=False)

    @property
    def beta(self) -> float | None:
        """The planner's."""
        return self.follower.beta


@dataclass(frozen=True)
class Quantal:
    """Plans softly with a β of its own, of which the leader knows nothing.

    What a leader with the problem's β estimates: the direct term, and β'/β times this follower's guiding term; for the
    reaction ∇log g is ∇(Q_F − V_F) / β', and the leader divides by β. `SoftValueIteration(beta=...)` instead tells the
    leader.

    Gives what the planner gives, with its own β in g, Q_F and V_F. Costs and residual: the planner's.

    Attributes:
      precision_beta: β', the follower's own.
      follower: the planner, whose `beta` must be None.
    """

    precision_beta: float
    follower: Follower = field(default_factory=SoftValueIteration)

    def __post_init__(self) -> None:
        keep_numbers(self, "precision_beta", above=0)
        check_planner(self.follower)
        if own_beta(self.follower) is not None:
            raise ValueError(f"`follower` must leave its β to Quantal, beta=None; got {self.follower!r}")

    @property
    def capabilities(self) -> Capabilities:
        """The planner's worlds; not optimal."""
        return replace(capabilities_of(self.follower), optimal=False, cuts_short=False)

    @property
    def beta(self) -> None:
        """None: the leader goes on with the problem's β."""
        return

    def best_response(self, model: Model, preferences: Preferences, init: BestResponse | None = None) -> BestResponse:
        """The planner's response with the follower's own β; arguments as the planner's."""
        own = replace(preferences, beta=self.precision_beta)
        return replace(self.follower.best_response(model, own, init), optimal=False)


@dataclass(frozen=True)
class Mixture(_ChangedTable):
    """Acts by its plan, and with a certain probability at random: g = (1 − share) g* + share / B.

    What a leader estimates: it takes covariances under g where the reaction is (1 − share) times those under g*. They
    are close only where share / B is small beside g*(b) for every move that matters; where g* all but excludes a move
    that the leader minds, a share of a few per cent makes the estimated guiding term several times too large.

    Gives g and log g of the mixture, Q_F and V_F of the plan. Costs and residual: the planner's.

    Attributes:
      share: of random moves, in [0, 1].
      follower: the planner.
    """

    share: float
    follower: Follower = field(default_factory=SoftValueIteration)

    def __post_init__(self) -> None:
        keep_numbers(self, "share", at_least=0, at_most=1)
        check_planner(self.follower)

    def best_response(self, model: Model, preferences: Preferences, init: BestResponse | None = None) -> BestResponse:
        """The planner's response, mixed; arguments as the planner's.

        Raises:
          TypeError: if actions are not countable.
        """
        best = self.follower.best_response(model, preferences, init)
        probs = _table_of(best, self).probs
        mixed = (1 - self.share) * probs + self.share / probs.shape[-1]
        return replace(best, policy=BoltzmannPolicy(mixed.log()), optimal=False)


@dataclass(frozen=True)
class Suboptimal(_ChangedTable):
    """Misjudges its values by noise that stays the same; it loses at most `delta` of its soft return anywhere.

    Q_F is off by U(−e, e) with e = δ (1 − γ_F) / 2, drawn once for each run, state and action; a softmax of values that
    are wrong by e loses 2 e / (1 − γ_F) at most. What a leader estimates: the hypergradient with the optimal follower's
    values under this one's distribution; the noise does not move with θ, so the reaction is right to first order.

    Gives g and log g as they are, Q_F and V_F of the plan without noise. Costs and residual: the planner's.

    Attributes:
      delta: δ, in units of the follower's reward.
      follower: the planner.
      seed: run i draws from the stream of (seed, i).
    """

    delta: float
    follower: Follower = field(default_factory=SoftValueIteration)
    seed: int = 0

    def __post_init__(self) -> None:
        keep_numbers(self, "delta", at_least=0)
        check_planner(self.follower)
        object.__setattr__(self, "seed", check_seed(self.seed))

    def best_response(self, model: Model, preferences: Preferences, init: BestResponse | None = None) -> BestResponse:
        """The planner's response with noise in its values; arguments as the planner's.

        Raises:
          TypeError: if actions are not countable.
        """
        best = self.follower.best_response(model, preferences, init)
        table = _table_of(best, self).log_probs
        beta = preferences.beta if self.beta is None else self.beta
        most = self.delta * (1 - preferences.gamma_follower) / 2
        draws = [
            np.random.default_rng([self.seed, run]).uniform(-most, most, table.shape[1:]) for run in range(len(table))
        ]
        policy = BoltzmannPolicy(torch.log_softmax(table + torch.from_numpy(np.stack(draws)) / beta, -1))
        return replace(best, policy=policy, optimal=False)


@dataclass(frozen=True)
class Sticky(_ChangedTable):
    """Changes its ways slowly: g = (1 − share) g* + share · what it did at the last θ.

    What a leader estimates: as if the whole policy moved with θ, while only 1 − share of it does at once; after many
    small steps of θ the follower has caught up, and the estimate is right on average over them.

    Gives g and log g of the mixture, Q_F and V_F of the new plan. Costs and residual: the planner's.

    Attributes:
      share: what it keeps of its last policy, in [0, 1).
      follower: the planner.
    """

    share: float
    follower: Follower = field(default_factory=SoftValueIteration)

    def __post_init__(self) -> None:
        keep_numbers(self, "share", at_least=0, below=1)
        check_planner(self.follower)

    def best_response(
        self, model: Model, preferences: Preferences, init: TabularResponse | None = None
    ) -> BestResponse:
        """The planner's response, mixed with `init`'s policy; arguments as the planner's.

        Raises:
          TypeError: if actions are not countable.
        """
        best = self.follower.best_response(model, preferences, init)
        probs = _table_of(best, self).probs
        if init is not None and init.policy.probs.shape == probs.shape:
            mixed = (1 - self.share) * probs + self.share * init.policy.probs
            best = replace(best, policy=BoltzmannPolicy(_logarithm(mixed)))
        return replace(best, optimal=False)


def _logarithm(probs: Tensor) -> Tensor:
    return probs.clamp(min=np.finfo(float).tiny).log()


def _table_of(best: BestResponse, follower: object) -> BoltzmannPolicy:
    if kind_of(best.policy) != "tabular":
        raise UnsupportedModelError(
            f"`follower` must answer with a table for {type(follower).__name__}, got {type(best.policy).__name__}"
        )
    return cast(BoltzmannPolicy, best.policy)  # or what calls itself a table
