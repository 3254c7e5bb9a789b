r"""Leader's values and hypergradient of a table by linear solves.

For a table three linear solves give the hypergradient in any dimension of θ, by the adjoint of the follower's fixed
point. With d the discounted visits of the leader and c the indicator that the episode goes on,

    ω(s, b) = d(s) g(b|s) B_L(s, b) / β + m(s) g(b|s),    m = γ_F Πᵀ-resolvent of what the first part sends on,

is the weight of ∇r_F(s, b) + γ_F c Σ ∇p V_F; the direct term weighs ∇r_L + γ_L c Σ ∇p V_L by d g, and ∇ρ0 by V_L. The
first part sums to 0 over b, because E_b[B_L] = 0, and so ∇V_F(s) never enters at s itself.

Source: Theorem 1 of arXiv:2603.14867, with the infinite sums solved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_envs.core.mdp import Preferences
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse


def value(model: TabularModel, policy: BoltzmannPolicy, gamma: float, horizon: int | None = None) -> Tensor:
    """E_ρ0[V_L] under a policy, over so many steps or without end, [R]; no gradients."""
    probs = policy.probs.expand(max(model.runs, policy.probs.shape[0]), -1, -1)
    if horizon is None:
        v = leader_value(model, probs, gamma)
    else:
        v = torch.zeros(probs.shape[:2], dtype=probs.dtype)
        for _ in range(horizon):
            v = (probs * (model.r_leader + gamma * model.expected_next(v))).sum(-1)
    return (model.initial * v).sum(-1)


def surrogates(model: TabularModel, best: TabularResponse, preferences: Preferences) -> tuple[Tensor, Tensor]:
    """Scalars of each run, [R], whose gradients in θ are the direct and the guiding term at a best response."""
    _, direct, guiding = value_and_surrogates(model, best, preferences)
    return direct, guiding


def value_and_surrogates(
    model: TabularModel, best: TabularResponse, preferences: Preferences
) -> tuple[Tensor, Tensor, Tensor]:
    """J_L, for which nothing is left to solve, and `surrogates`; [R] each."""
    needed = model.theta_moves_transitions
    fixed = model.detach()
    direct, guiding = table_weights(fixed, best, preferences, with_transition=needed)
    reached = (fixed.initial * direct.initial).sum(-1)  # direct.initial is V_L
    return reached, tables_surrogate(model, direct), tables_surrogate(model, guiding)


@dataclass(frozen=True)
class TableWeights:
    """Constants that multiply the entries of a model's tables.

    Attributes:
      r_leader, r_follower: [R, S, B].
      transition: of `model.moves.probability`, [R, S, B, S] or [R, S, B, K], or None where it would not be used.
      initial: [R, S].
    """

    r_leader: Tensor
    r_follower: Tensor
    transition: Tensor | None
    initial: Tensor


def table_weights(
    model: TabularModel, best: TabularResponse, preferences: Preferences, *, with_transition: bool = True
) -> tuple[TableWeights, TableWeights]:
    """The weights of the direct and of the guiding term at a best response; no gradients."""
    gamma_leader, gamma_follower = preferences.gamma_leader, preferences.gamma_follower
    probs = best.policy.probs
    runs = max(model.runs, len(probs))
    probs = probs.expand(runs, -1, -1)
    leader = model.resolvents(probs, gamma_leader)
    follower_too = leader if gamma_follower == gamma_leader else model.resolvents(probs, gamma_follower)
    v_leader = leader((probs * model.r_leader).sum(-1))
    q_leader = model.r_leader + gamma_leader * model.expected_next(v_leader)
    start = model.initial.expand(runs, -1)
    visits = leader(start, transpose=True)  # d
    pairs = visits[..., None] * probs
    sent = pairs * (q_leader - v_leader[..., None]) / preferences.beta
    inflow = follower_too(gamma_follower * model.sent(sent), transpose=True)  # m
    follower = sent + inflow[..., None] * probs  # ω
    v_follower = best.v.values.expand(runs, -1)

    def arrivals(weight: Tensor, gamma: float, v: Tensor) -> Tensor | None:
        if not with_transition:
            return None
        return (gamma * model.continues * weight)[..., None] * model.moves.at(v)

    zero = torch.zeros_like(pairs)
    return (
        TableWeights(pairs, zero, arrivals(pairs, gamma_leader, v_leader), v_leader),
        TableWeights(zero, follower, arrivals(follower, gamma_follower, v_follower), torch.zeros_like(start)),
    )


def tables_surrogate(model: TabularModel, weights: TableWeights) -> Tensor:
    """⟨weights, tables(θ)⟩ of each run, [R]; its gradient is the term that the weights stand for."""
    total = torch.zeros(len(weights.initial), dtype=weights.initial.dtype)
    pairs = (
        (model.r_leader, weights.r_leader),
        (model.r_follower, weights.r_follower),
        (model.moves.probability, weights.transition),
        (model.initial, weights.initial),
    )
    for table, weight in pairs:
        if table.requires_grad and weight is not None:
            total = total + (weight * table).flatten(1).sum(1)
    return total


def leader_value(model: TabularModel, probs: Tensor, gamma: float) -> Tensor:
    """V_L under a policy [R, S, B], [R, S]."""
    return model.resolvent(probs, gamma, (probs * model.r_leader).sum(-1))
