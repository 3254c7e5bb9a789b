r"""Weights on the differentiable terms of a batch: the whole hypergradient in four arrays of scalars.

Exchanging the sums over the leader's steps t and the follower's later steps k turns Theorem 1 of arXiv:2603.14867
into one pass forward in time: each step adds to a trace c_t = γ_L^t B_L / β, the trace decays by γ_F, and at step k
it is the weight of everything that ∇Q_F collects there,

    Σ_t c_t ∇Q_F(s_t, b_t) = Σ_k w_k [∇r_F(s_k, b_k) + γ_F V_F(s_{k+1}) ∇log p(s_{k+1} | s_k, b_k)],
    w_k = γ_F w_{k−1} + c_k.

Whatever is known before a move is drawn may be taken from the weight of its ∇log p: given (s_k, b_k) the expectation
of what arrives follows from the value of the pair, γ E[V(s')] = Q − r, so γ V(s') − (Q − r), a (soft)
temporal-difference error, has the same mean gradient and far less variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Required, TypedDict, Unpack

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.worlds.tabular.kernels.critics import decaying_sum, moments_by_group
from leaders.functional.values import Values
from leaders.functional.visits import number, start_share, visit_mean

TAILS = ("drop", "keep", "continue", "reference")
SCORE_WEIGHTS = ("td_error", "value", "clipped")


@dataclass(frozen=True)
class Weights:
    """Constants that multiply the fields of `Terms`, [R, N, T] each.

    Attributes:
      r_leader: on r_L.
      r_follower: on r_F.
      log_start: on log ρ0.
      log_arrival: on log p(next state); None where `mean_next` takes its place.
      expected_r_follower: on E_b[r_F(s_k, b)]; None where the estimator has no use for it.
      mean_next: on the mean of the next state, [R, N, T, n]; None where the estimator has no use for it.
      mean_start: on the mean of the first state, likewise; it takes the place of `log_start`.
    """

    r_leader: Tensor
    r_follower: Tensor
    log_start: Tensor | None
    log_arrival: Tensor | None
    expected_r_follower: Tensor | None = None
    mean_next: Tensor | None = None
    mean_start: Tensor | None = None


def eligibility_trace(guiding: Tensor, decay: float, starts: Tensor) -> Tensor:
    r"""Accumulates guiding weights forward in time: w_k = decay · w_{k−1} + guiding_k, from 0 where an episode starts.

    Args:
      guiding: what each step adds, [..., T].
      decay: factor per step, in [0, 1]; 0 keeps each step's own guiding weight only.
      starts: where an episode starts, bool [..., T].

    Returns:
      The trace w, [..., T], in the units of `guiding`.

    Raises:
      ValueError: if `decay` is outside [0, 1].

    Source: Kudo, Tanabe, Wachi, Akimoto, arXiv:2603.14867, Theorem 1, with the sums exchanged.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"`decay` must lie in [0, 1], got {decay}")
    steps = guiding.shape[-1]
    starts = starts.expand_as(guiding)
    rows = decaying_sum(guiding.reshape(-1, steps).numpy(), decay, starts.reshape(-1, steps).numpy())
    return torch.from_numpy(rows).view(guiding.shape)


def discount_weights(batch: Rollout, gamma: float, tail: str) -> Tensor:
    """How much each step counts for the leader: γ_L^k over the number of episodes, [R, N, T].

    Args:
      batch: the transitions.
      gamma: γ_L.
      tail: what becomes of episodes that the batch cuts. "keep": they count as far as they go, among the episodes
        started. "drop": they are left out. "continue": as "keep", and what lies behind the cut is added by
        `leaders.estimators.continuation`. "reference": they count, but not as episodes (published code).
    """
    discount = gamma ** batch.step.double() * batch.valid
    if tail == "drop":
        return discount * _reaches(batch, batch.finished) / number(batch.finished)
    if tail == "reference":
        return discount / number(batch.valid & (batch.terminated | batch.truncated))
    return discount / number(batch.starts)


def residualised(guiding: Tensor, features: Tensor, batch: Rollout) -> Tensor:
    r"""Subtracts from every episode's ∇Q_F the least-squares fit on φ(s) made on the other episodes of its run.

    E_b[B_L | s] = 0, so a function of s that was not made from the same episode leaves the estimate's mean as it is. In
    terms of guiding weights: c ← c − Mᵀ c with the rows M_e = Φ_e (Φ₋ₑᵀ Φ₋ₑ)⁻¹ Φ₋ₑᵀ. With a single episode nothing is
    subtracted.

    Args:
      guiding: [R, N, T].
      features: φ(s_k), [R, N, T, F].
      batch: the transitions.

    Returns:
      The residualised guiding weights, [R, N, T].
    """
    runs, rows, horizon = guiding.shape
    steps, size = rows * horizon, features.shape[-1]
    phi = (features * batch.valid[..., None]).reshape(runs, steps, size)
    # An episode is named by its first step; what is not valid belongs to the last one of its row.
    position = torch.arange(steps).view(1, rows, horizon)
    first = torch.where(batch.starts, position, 0).cummax(-1).values.view(runs, steps)
    names, episode = torch.unique(first + steps * torch.arange(runs)[:, None], return_inverse=True)
    run = names // steps
    sums = moments_by_group(
        phi.reshape(-1, size).numpy(), guiding.reshape(-1).numpy(), episode.flatten().numpy(), len(names)
    )
    gram, moment = (torch.from_numpy(table) for table in sums)
    total = torch.zeros(runs, size, size, dtype=guiding.dtype).index_add_(0, run, gram)
    # φ_jᵀ Σ_{e ≠ e(j)} (Φ₋ₑᵀ Φ₋ₑ)⁻¹ Φ_eᵀ c_e; the pseudo-inverse is 0 where there is no other episode.
    # What an episode holds is subtracted from the total, so directions below the total's rounding are none.
    noise_floor = 1e-10 * total.diagonal(dim1=-2, dim2=-1).sum(-1)[run]
    share = (torch.linalg.pinv(total[run] - gram, atol=noise_floor, hermitian=True) @ moment[..., None])[..., 0]
    everyone = torch.zeros(runs, size, dtype=guiding.dtype).index_add_(0, run, share)
    others = everyone[:, None, :] - share[episode].view(runs, steps, size)
    return (guiding - (phi * others).sum(-1).view_as(guiding)) * batch.valid


class WeightOptions(TypedDict, total=False):
    """What `weights_from_guiding` hands on to `weights_from_trace`."""

    tail: Required[str]
    score_weight: str
    centred: bool


def weights_from_guiding(
    guiding: Tensor,
    batch: Rollout,
    values: Values,
    discounts: Tensor,
    preferences: Preferences,
    *,
    decay: float | None = None,
    **options: Unpack[WeightOptions],
) -> Weights:
    """The weights of an estimator, from its guiding weight.

    Args:
      guiding: what each step adds to the follower's trace, [R, N, T].
      batch, values, discounts, preferences: as in `weights_from_trace`.
      decay: the trace's factor per step; None for γ_F.
      options: `tail`, `score_weight` and `centred`, as in `weights_from_trace`.
    """
    decay = preferences.gamma_follower if decay is None else decay
    trace = eligibility_trace(guiding, decay, batch.starts) * batch.valid
    return weights_from_trace(trace, batch, values, discounts, preferences, **options)


def weights_from_trace(
    trace: Tensor,
    batch: Rollout,
    values: Values,
    discounts: Tensor,
    preferences: Preferences,
    *,
    tail: str,
    score_weight: str = "td_error",
    centred: bool = False,
) -> Weights:
    """The weights of an estimator, from what takes the place of the guiding weights' trace.

    Args:
      trace: the weight of what each step adds to ∇Q_F, 0 where a step is not valid, [R, N, T].
      batch: the transitions.
      values: both players' values at the visited steps.
      discounts: `discount_weights(batch, γ_L, tail)`.
      preferences: γ_L and γ_F.
      tail: as in `discount_weights`.
      score_weight: "td_error" weighs ∇log p by the (soft) temporal-difference error, "value" by the value that arrives;
        "clipped" is the published form for continuous worlds: by the value, the last step of an episode left out, and
        the leader's part, whose ∇log p are clipped one by one, left to the caller.
      centred: take E_b[r_F(s_k, b)] from every r_F(s_k, b_k); such estimators know no ∇log p of the follower's.
    """
    check_choice(score_weight, SCORE_WEIGHTS, "score_weight")
    gamma_leader, gamma_follower = preferences.gamma_leader, preferences.gamma_follower
    leader = _first_visit_shared(batch, gamma_leader) if tail == "reference" else discounts
    arriving_leader = gamma_leader * values.v_leader_next
    arriving_follower = gamma_follower * values.v_follower_next
    if score_weight == "td_error":
        arriving_leader = arriving_leader - (values.q_leader - batch.r_leader)
        arriving_follower = arriving_follower - (values.q_follower - batch.r_follower)
    if score_weight == "clipped":
        arriving_leader, arriving_follower = torch.zeros_like(arriving_leader), arriving_follower * ~batch.cut
    return Weights(
        r_leader=leader,
        r_follower=trace,
        log_start=_start_weight(values.v_leader, batch, score_weight),
        log_arrival=discounts * arriving_leader + (0.0 if centred else trace * arriving_follower),
        expected_r_follower=-trace if centred else None,
    )


def _start_weight(v_leader: Tensor, batch: Rollout, score_weight: str) -> Tensor:
    """V_L(s_0) over the number of episodes; less the mean over the other episodes where variance is to be reduced."""
    starts = batch.starts
    episodes = number(starts)
    value = v_leader * starts
    if score_weight == "td_error":
        others = (value.sum((1, 2), keepdim=True) - value) / (episodes - 1).clamp(min=1)
        value = torch.where(episodes > 1, value - others, value) * starts
    return value / episodes


def _first_visit_shared(batch: Rollout, gamma: float) -> Tensor:
    """The published direct term: an every-visit average over the start states, cut tails included."""
    return eligibility_trace(visit_mean(start_share(batch.starts), batch.state, batch.valid), gamma, batch.starts)


def _reaches(batch: Rollout, mark: Tensor) -> Tensor:
    """True for the steps of episodes that come to a marked step."""
    ends = (batch.valid & (batch.terminated | batch.truncated)).clone()
    ends[..., -1] = True
    position = torch.arange(ends.shape[-1]).expand_as(ends)
    end_at = torch.where(ends, position, ends.shape[-1] - 1).flip(-1).cummin(-1).values.flip(-1)
    return mark.gather(-1, end_at) & batch.valid
