"""How far a follower that learns is from the soft optimum."""

from __future__ import annotations

from typing import cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.follower import BestResponse, FollowerTask, Missing, Policy
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers.planners.riccati import Riccati
from bilevel_envs.followers.planners.soft_value_iteration import SoftValueIteration
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy

SMALL = 1e-3  # of the discount, beyond which an episode is not followed


def shortfall(
    task: FollowerTask, policy: Policy, preferences: Preferences, *, episodes: int, noise: Noise
) -> Tensor | None:
    """The optimum of the soft return less that of a policy, [R]; None where the optimum is not known.

    Args:
      task: the world at θ.
      policy: g.
      preferences: the follower's β and γ_F.
      episodes: how many are sampled per run, where the return is sampled.
      noise: one stream per run.
    """
    if task.model.kind == "tabular":
        return table_shortfall(cast(TabularModel, task.model), cast(BoltzmannPolicy, policy), preferences)
    if task.model.kind == "linear_quadratic" and isinstance(task.action_space, gym.spaces.Box):
        return sampled_shortfall(task, policy, preferences, episodes=episodes, noise=noise)
    return None


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
    task: FollowerTask, policy: Policy, preferences: Preferences, *, episodes: int, noise: Noise
) -> Tensor:
    """The exact optimum of the soft return less a sampled one, the same first states in both, [R]."""
    gamma, beta = preferences.gamma_follower, preferences.beta
    truth = Riccati().best_response(task.model, preferences)
    horizon = max(1, int(np.ceil(np.log(SMALL) / np.log(gamma)))) if gamma > 0 else 1
    nothing = Missing("values are not asked for")
    best = BestResponse(policy, nothing, nothing, torch.zeros(1), optimal=False)
    batch = task.rollout(task.theta, best, noise, rows=episodes, horizon=horizon, whole_episodes=True)
    reward = batch.r_follower - beta * policy.log_prob(batch.state, batch.action)
    own = (gamma ** batch.step.double() * reward * batch.valid).sum(-1)
    return (truth.v(batch.state[:, :, 0]) - own).mean(-1)


def improvement(rewards: list[float]) -> float:
    """Mean reward per step in the last quarter of a training, less that in the quarter before."""
    quarter = len(rewards) // 4
    if not quarter:
        return float("nan")
    return float(np.mean(rewards[-quarter:]) - np.mean(rewards[-2 * quarter : -quarter]))
