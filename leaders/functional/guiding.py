"""Every estimator's guiding weight, side by side: what each step adds to the eligibility trace of ∇r_F.

`weights.py` explains the trace. `discounts` is how much a step counts for the leader, γ_L^k divided by the number of
episodes, [R, N, T]; it is 0 where a step does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.mdp import Preferences
from leaders.functional.returns import returns_to_go
from leaders.functional.values import Values
from leaders.functional.visits import start_share, visit_mean

Guiding = Callable[[Rollout, Values, Tensor, Preferences], Tensor]


def guiding_naive_pgd(batch: Rollout, values: Values, discounts: Tensor, preferences: Preferences) -> Tensor:
    """No guiding weight: the follower is treated as if it would not react."""
    return torch.zeros_like(discounts)


def guiding_bc_hg(batch: Rollout, values: Values, discounts: Tensor, preferences: Preferences) -> Tensor:
    """γ_L^k B_L / β, with the benefit B_L = Q_L − E_b[Q_L] (arXiv:2603.14867, eq. 5)."""
    return discounts * values.benefit / preferences.beta


def guiding_bc_hg_shared(batch: Rollout, values: Values, discounts: Tensor, preferences: Preferences) -> Tensor:
    """The same, shared among all visits of (s, b) (arXiv:2603.14867, Algorithm 1, line 12)."""
    return visit_mean(guiding_bc_hg(batch, values, discounts, preferences), pair_of(batch, values.fold), batch.valid)


def guiding_hpgd(batch: Rollout, values: Values, discounts: Tensor, preferences: Preferences) -> Tensor:
    """The same, centred over repeat visits of s instead of under g (arXiv:2603.14867, eq. 7; 0 without repeats)."""
    guiding = guiding_bc_hg(batch, values, discounts, preferences)
    pair, state = pair_of(batch, values.fold), within(batch.state, values.fold)
    return visit_mean(guiding, pair, batch.valid) - visit_mean(guiding, state, batch.valid)


def guiding_hpgd_learned(batch: Rollout, values: Values, discounts: Tensor, preferences: Preferences) -> Tensor:
    """γ_L^k Q_L / β, to be centred by a fitted ∇V_F of the state (arXiv:2603.14867, eq. 7, in continuous worlds)."""
    return discounts * values.q_leader / preferences.beta


def guiding_hpgd_realised(batch: Rollout, values: Values, discounts: Tensor, preferences: Preferences) -> Tensor:
    """The same with the return that followed for Q_L; biased, as it depends on the very moves that ∇Q_F collects."""
    return discounts * returns_to_go(batch, preferences.gamma_leader) / preferences.beta


def guiding_sobirl(batch: Rollout, values: Values, discounts: Tensor, preferences: Preferences) -> Tensor:
    """Q_L(s_0, b_0) / β at the first step only; the trace does not decay, r_F is centred under g."""
    counted = batch.starts & (discounts > 0)  # episodes that are left out count for nothing
    return start_share(counted) * values.q_leader / preferences.beta


def guiding_sobirl_modified(batch: Rollout, values: Values, discounts: Tensor, preferences: Preferences) -> Tensor:
    """γ_L^k Q_L(s_k, b_k) / β at every step, for that step's own r_F alone, centred under g."""
    return discounts * values.q_leader / preferences.beta


def pair_of(batch: Rollout, fold: Tensor | None = None) -> Tensor:
    """One number per (s, b), and per part of the batch, [R, N, T]."""
    return within(batch.state * (int(batch.action.max()) + 1) + batch.action, fold)


def within(key: Tensor, fold: Tensor | None) -> Tensor:
    """A key that tells the parts of a batch apart."""
    return key if fold is None else key * (int(fold.max()) + 1) + fold


@dataclass(frozen=True)
class Rule:
    """An estimator: its guiding weight, and what becomes of it.

    Attributes:
      guiding: what each step adds to the trace.
      decay: the trace's factor per step; None for γ_F.
      centred: take E_b[r_F(s_k, b)] from every r_F(s_k, b_k).
      goes_on: whether its expected guiding weight is BC-HG's, also behind a cut (`leaders.estimators.continuation`).
    """

    guiding: Guiding
    decay: float | None = None
    centred: bool = False
    goes_on: bool = False

    @property
    def reads_follower(self) -> bool:
        """Whether the follower's values enter."""
        return self.guiding is not guiding_naive_pgd and not self.centred


ESTIMATORS: dict[str, Rule] = {
    "naive_pgd": Rule(guiding_naive_pgd),
    "bc_hg": Rule(guiding_bc_hg, goes_on=True),
    "bc_hg_shared": Rule(guiding_bc_hg_shared, goes_on=True),
    "hpgd": Rule(guiding_hpgd, goes_on=True),
    "hpgd_learned": Rule(guiding_hpgd_learned),
    "hpgd_realised": Rule(guiding_hpgd_realised),
    "sobirl": Rule(guiding_sobirl, decay=1.0, centred=True),
    "sobirl_modified": Rule(guiding_sobirl_modified, decay=0.0, centred=True, goes_on=True),
}
