"""Slow, plain, independent forms of what the package computes fast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bilevel_envs import Preferences, TabularModel


def unrolled_objective(model: TabularModel, preferences: Preferences, rounds: int = 60) -> Tensor:
    """J_L with gradients through every step of the follower's solver: dense soft policy iteration, no adjoint."""
    return model.initial[0] @ unrolled_values(model, preferences, rounds)[0]


def unrolled_values(
    model: TabularModel, preferences: Preferences, rounds: int = 60, run: int = 0
) -> tuple[Tensor, Tensor]:
    """V_L and V_F of a run, [S] each, with the same gradients."""
    transition, continues, r_leader, r_follower = (
        table[run % len(table)] for table in (model.transition, model.continues, model.r_leader, model.r_follower)
    )
    kernel = transition * continues[..., None]
    eye = torch.eye(len(kernel), dtype=torch.float64)
    v = torch.zeros(len(kernel), dtype=torch.float64)
    for _ in range(rounds):
        q = r_follower + preferences.gamma_follower * (kernel @ v)
        log_g = torch.log_softmax(q / preferences.beta, -1)
        g = log_g.exp()
        moves = (g[..., None] * kernel).sum(1)
        reward = (g * (r_follower - preferences.beta * log_g)).sum(-1)
        v = torch.linalg.solve(eye - preferences.gamma_follower * moves, reward)
    g = torch.softmax((r_follower + preferences.gamma_follower * (kernel @ v)) / preferences.beta, -1)
    moves = (g[..., None] * kernel).sum(1)
    return torch.linalg.solve(eye - preferences.gamma_leader * moves, (g * r_leader).sum(-1)), v


def central_differences(function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Fourth-order central differences, coordinate by coordinate."""
    gradient = np.empty_like(x)
    for i in range(len(x)):
        e = np.zeros_like(x)
        e[i] = step
        near, far = function(x + e) - function(x - e), function(x + 2 * e) - function(x - 2 * e)
        gradient[i] = (8 * near - far) / (12 * step)
    return gradient


def z_scores(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(mean − truth) / standard error, per coordinate; a coordinate that never varies must be exactly right."""
    error, miss = samples.std(0, ddof=1) / len(samples) ** 0.5, samples.mean(0) - truth
    return np.divide(miss, error, out=np.where(np.abs(miss) > 1e-12, np.inf, 0.0), where=error > 0)
