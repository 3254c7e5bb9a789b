"""∇Q_F − ∇V_F from trajectories that begin where one likes: what an oracle adds to a leader, for HPGD only."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse
from bilevel_envs.worlds.tabular.rollout import First, table_rollout
from leaders.critics.monte_carlo import MonteCarlo
from leaders.functional.returns import returns_to_go
from leaders.functional.values import Values, evaluate
from leaders.functional.visits import mean_table, sum_table
from leaders.functional.weights import Weights, weights_from_guiding


def oracle_batch(
    world: TabularModel,
    policy: BoltzmannPolicy,
    noise: Noise,
    batch: Rollout,
    guiding: Tensor,
    *,
    draws: int,
    horizon: int,
) -> tuple[Rollout, Tensor]:
    """Fresh whole episodes from every visited pair and from every visited state, with the guiding weights they carry.

    Each on-policy step k sends `draws` episodes from (s_k, b_k), which carry guiding_k / draws at their first step, and
    as many from s_k with an action of the follower's own, which carry minus that. Summed they estimate
    guiding_k (∇Q_F(s_k, b_k) − ∇V_F(s_k)) without bias, however few the draws.

    Returns:
      The episodes [R, 2 · draws · N · T, horizon] and their guiding weights.
    """
    runs = noise.runs
    state = batch.state.reshape(runs, -1).repeat(1, 2 * draws).numpy()
    own = batch.action.reshape(runs, -1).repeat(1, draws)
    action = torch.cat([own, torch.full_like(own, -1)], 1).numpy()
    rows = state.shape[1]
    oracle = table_rollout(
        world, policy, noise, rows=rows, horizon=horizon, whole_episodes=True, first=First(state=state, action=action)
    )
    carried = guiding.reshape(runs, -1).repeat(1, draws) / draws
    first = torch.zeros(oracle.r_leader.shape, dtype=guiding.dtype)
    first[..., 0] = torch.cat([carried, -carried], 1)
    return oracle, first


def published_oracle_guiding(
    oracle: Rollout, batch: Rollout, discounts: Tensor, preferences: Preferences, states: int, actions: int
) -> Tensor:
    """Guiding weights on the oracle batch: Σ over on-policy visits of their weight, shared among its visits."""
    runs = len(batch.state)
    returns = returns_to_go(oracle, preferences.gamma_leader)
    oracle_pair, pair = (b.state * actions + b.action for b in (oracle, batch))
    q = mean_table(returns, oracle_pair, oracle.valid, states * actions)
    v = mean_table(returns, oracle.state, oracle.valid, states)
    run = torch.arange(runs).view(-1, 1, 1)
    weight = discounts * (q[run, pair] - v[run, batch.state]) / preferences.beta
    # The mean over visits times their number is the sum over visits.
    on_pair, on_state = (
        sum_table(weight, key, size) for key, size in ((pair, states * actions), (batch.state, states))
    )
    one = oracle.valid.double()
    visits = sum_table(one, oracle_pair, states * actions), sum_table(one, oracle.state, states)
    share = on_pair[run, oracle_pair] / visits[0][run, oracle_pair].clamp(min=1)
    return (share - on_state[run, oracle.state] / visits[1][run, oracle.state].clamp(min=1)) * oracle.valid


def oracle_weights(
    oracle: Rollout, guiding: Tensor, best: TabularResponse, preferences: Preferences, *, score_weight: str
) -> Weights:
    """The weights of an oracle batch: the follower's part alone."""
    critic = MonteCarlo(preferences.gamma_leader)
    critic.fit(oracle, best, None, Noise([]))
    values: Values = evaluate(critic, best, oracle)
    nothing = torch.zeros_like(guiding)
    weights = weights_from_guiding(
        guiding, oracle, values, nothing, preferences, tail="keep", score_weight=score_weight
    )
    return replace(weights, log_start=None)  # the oracle chose where its episodes begin; ρ0 may be 0 there
