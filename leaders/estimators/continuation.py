r"""How an episode that a batch cuts goes on, in the world as the leader has seen it.

A cut in state s' leaves γ_L^{k+1} of the leader's count and γ_F w_k of the follower's trace unspent. What they would
collect is the hypergradient of an episode that starts there with those weights, which `leaders.exact.tables` solves for
known tables; here it is solved for the transitions seen in other episodes (`leaders.critics.empirical_model`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import TabularResponse
from leaders.critics.cross_fit import Judges
from leaders.critics.empirical import Empirical
from leaders.critics.empirical_model import KnownMoves, moves_of_pairs, of_pairs, pairs_where
from leaders.functional.guiding import Rule
from leaders.functional.visits import sum_table
from leaders.functional.weights import Weights


def continuation(
    judges: Judges,
    model: TabularModel,
    batch: Rollout,
    best: TabularResponse,
    discounts: Tensor,
    weights: Weights,
    preferences: Preferences,
    *,
    rule: Rule,
) -> Tensor:
    """The surrogate of what lies behind the cuts of a batch, [R].

    Args:
      judges: with the world as seen outside of each part of the batch.
      model: the tables at θ, with gradients.
      batch: the transitions.
      best: the follower's response.
      discounts: `discount_weights` of the leader, [R, N, T].
      weights: of the batch; that of r_F is the follower's trace.
      preferences: γ_L, γ_F and β.
      rule: the estimator; where it `goes_on`, steps behind the cut weigh ∇Q_F by their benefit, and the trace decays as
        it says.
    """
    total = torch.zeros(len(discounts), dtype=discounts.dtype)
    decay = preferences.gamma_follower if rule.decay is None else rule.decay
    for seen, part in zip(judges.seen, judges.parts, strict=True):
        cut = batch.cut & part
        if cut.any():
            places = seen.seen.places
            where = places.of(batch.next_state).clamp(min=0)  # nothing is known of a state without a place
            cut = cut & (places.of(batch.next_state) >= 0)
            leader, follower = (
                sum_table(torch.where(cut, weight, 0.0), where, len(places)).numpy()
                for weight in (preferences.gamma_leader * discounts, decay * weights.r_follower * rule.goes_on)
            )
            total = total + _from_here(seen, model, best, leader, follower, preferences, rule)
    return total


def _from_here(
    seen: Empirical,
    model: TabularModel,
    best: TabularResponse,
    leader: np.ndarray,
    follower: np.ndarray,
    preferences: Preferences,
    rule: Rule,
) -> Tensor:
    """The surrogate of episodes that start with a leader's and a follower's weight on each state seen, [R, V] each."""
    moves, places = seen.moves, seen.seen.places
    gamma_leader, gamma_follower = preferences.gamma_leader, preferences.gamma_follower
    decay = gamma_follower if rule.decay is None else rule.decay
    q_leader, v_leader = seen.tables
    visits = moves.resolvent(gamma_leader, leader, transpose=True)[..., None] * moves.policy
    weight = np.zeros_like(visits)
    if rule.goes_on:
        weight = visits * (q_leader - v_leader[..., None]) / preferences.beta
        onward = moves.sent(weight)
        inflow = moves.resolvent(decay, follower + decay * onward, transpose=True)
        weight = weight + inflow[..., None] * moves.policy
    total = torch.zeros(len(visits), dtype=torch.float64)
    for table, on_pair in ((model.r_leader, visits), (model.r_follower, weight)):
        if table.requires_grad:
            total = total + (torch.from_numpy(on_pair) * places.gathered(table)).sum((1, 2))
    if model.theta_moves_transitions:
        on_move = _arriving(v_leader, q_leader - seen.reward, gamma_leader, visits, moves)
        if rule.goes_on and not rule.centred:
            q = (places.gathered(best.q.values) - places.gathered(model.r_follower)).detach().numpy()
            on_move = on_move + _arriving(places.gathered(best.v.values).numpy(), q, gamma_follower, weight, moves)
        pair = pairs_where(on_move != 0.0)
        on_pair = torch.from_numpy(of_pairs(on_move, pair))
        probability = model.moves.of(*moves_of_pairs(moves.successor, pair, places))
        log = torch.where(on_pair != 0.0, probability, 1.0).log()
        total = total + (on_pair * log).sum((1, 2))
    return total


def _arriving(v: np.ndarray, expected: np.ndarray, gamma: float, weight: np.ndarray, moves: KnownMoves) -> np.ndarray:
    """Weight of each ∇log p(s' | s, b): γ V(s') − `expected`, where the move is likely, [R, V, B, K]."""
    run = np.arange(len(moves.successor))[:, None, None, None] % len(v)
    arrives = gamma * moves.going_on * v[run, moves.successor] - moves.probability * expected[..., None]
    return weight[..., None] * arrives
