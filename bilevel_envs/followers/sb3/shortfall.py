"""How far a follower that learns is from the soft optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers.planners.riccati import Riccati
from bilevel_envs.followers.planners.soft_value_iteration import SoftValueIteration
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy

SMALL = 1e-3  # of the discount, beyond which an episode is not followed


def table_shortfall(model: TabularModel, policy: BoltzmannPolicy, preferences: Preferences) -> Tensor:
    """The optimum of the soft return less that of a policy, exactly, [R]."""
    optimum = SoftValueIteration().best_response(model, preferences).v.values
    own = soft_evaluation(model, policy, preferences.gamma_follower, preferences.beta)
    return (model.initial * (optimum - own)).sum(-1)


def soft_evaluation(model: TabularModel, policy: BoltzmannPolicy, gamma: float, beta: float) -> Tensor:
    """The soft value of a policy, V(s) = E_g[r_F − β log g + γ V(s')], [R, S]."""
    log_g = policy.log_probs.clamp(min=-1e30)  # 0 · log 0 is 0
    reward = (policy.probs * (model.r_follower - beta * log_g)).sum(-1)
    return model.resolvent(policy.probs, gamma, reward)


def sampled_shortfall(
    env: Any,
    theta: np.ndarray,
    model: LinearQuadraticModel,
    policy: Any,
    preferences: Preferences,
    *,
    episodes: int,
    noise: Noise,
) -> Tensor:
    """The exact optimum of the soft return less a sampled one, the same first states in both, [R].

    Args:
      env: the `BilevelWrapper`.
      theta: ``[R, *θ.shape]``.
      model: its model at θ.
      policy: g, with `log_prob`.
      preferences: the follower's β and γ_F.
      episodes: how many are played per run.
      noise: one stream per run.
    """
    gamma, beta = preferences.gamma_follower, preferences.beta
    truth = Riccati().best_response(model, preferences)
    horizon = max(1, int(np.ceil(np.log(SMALL) / np.log(gamma)))) if gamma > 0 else 1
    best = BestResponse(policy, None, None, torch.zeros(1), optimal=False)
    batch = env.rollout(theta, best, noise, rows=episodes, horizon=horizon, whole_episodes=True)
    reward = batch.r_follower - beta * policy.log_prob(batch.state, batch.action)
    own = (gamma ** batch.step.double() * reward * batch.valid).sum(-1)
    return (truth.v(batch.state[:, :, 0]) - own).mean(-1)


def improvement(rewards: list[float]) -> float:
    """Mean reward per step in the last quarter of a training, less that in the quarter before."""
    quarter = len(rewards) // 4
    if not quarter:
        return float("nan")
    return float(np.mean(rewards[-quarter:]) - np.mean(rewards[-2 * quarter : -quarter]))
