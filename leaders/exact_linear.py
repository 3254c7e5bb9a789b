r"""Leader's values and hypergradient of a linear-quadratic world by Lyapunov equations.

Under g(b|s) = N(−K s, Σ) the closed loop is s' = F s + noise with F = A − BK and noise covariance N = BΣBᵀ + W, so

    X = Σ_t γ^t E[s sᵀ] = X_0 + γ/(1−γ) N + γ F X Fᵀ,
    J_L = −tr((C + KᵀEK) X) − [tr(EΣ) + c] / (1−γ).

Everything here is differentiable, K and Σ included, because both fixed points carry their adjoint equations: the
direct term is the gradient with K and Σ held, the guiding term the gradient through them alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_envs.follower import BestResponse
from bilevel_envs.followers import Riccati
from bilevel_envs.linear_quadratic import LinearQuadraticModel, Quadratic, block, discounted_sum
from bilevel_envs.model import Preferences
from bilevel_envs.policies import GaussianPolicy


def value(model: LinearQuadraticModel, policy: GaussianPolicy, gamma: float, horizon: int | None = None) -> Tensor:
    """J_L under a policy, over so many steps or without end, [R]."""
    step, noise, cost = _closed_loop(model, policy)
    if horizon is None:
        steps = 1 / (1 - gamma)
        moments = discounted_sum(step, model.initial + gamma * steps * noise, gamma)
    else:
        steps = sum(gamma**k for k in range(horizon))
        now = model.initial
        moments = now
        for k in range(1, horizon):
            now = step @ now @ step.mT + noise
            moments = moments + gamma**k * now
    return -_trace(cost, moments) - steps * _spent(model, policy)


def leader_values(model: LinearQuadraticModel, policy: GaussianPolicy, gamma: float) -> tuple[Quadratic, Quadratic]:
    """Q_L(s, b) and V_L(s) under a policy."""
    step, noise, cost = _closed_loop(model, policy)
    p = discounted_sum(step.mT, cost, gamma)
    constant = (_spent(model, policy) + gamma * _trace(p, noise)) / (1 - gamma)
    both = _beside(model)
    q = block(model.leader_state_cost, model.leader_action_cost) + gamma * both.mT @ p @ both
    behind = model.leader_cost + gamma * (_trace(p, model.noise) + constant)
    return Quadratic(-q, -behind), Quadratic(-p, -constant)


def surrogates(model: LinearQuadraticModel, best: BestResponse, preferences: Preferences) -> tuple[Tensor, Tensor]:
    """Scalars of each run, [R], whose gradients in θ are the direct and the guiding term at a best response."""
    reacting = Riccati().reaction(model, preferences).policy
    gamma = preferences.gamma_leader
    return value(model, best.policy, gamma), value(model.detach(), reacting, gamma)


def _closed_loop(model: LinearQuadraticModel, policy: GaussianPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """F, N and the leader's cost per state C + KᵀEK, [R, n, n] each."""
    gain, spread = policy.gain, model.B @ policy.covariance @ model.B.mT
    cost = model.leader_state_cost + gain.mT @ model.leader_action_cost @ gain
    return model.A - model.B @ gain, spread + model.noise, cost


def _beside(model: LinearQuadraticModel) -> Tensor:
    """[A B], [R, n, n + m]."""
    runs = max(len(model.A), len(model.B))
    return torch.cat([model.A.expand(runs, -1, -1), model.B.expand(runs, -1, -1)], -1)


def _spent(model: LinearQuadraticModel, policy: GaussianPolicy) -> Tensor:
    """What every step costs beside the states, tr(EΣ) + c, [R]."""
    return _trace(model.leader_action_cost, policy.covariance) + model.leader_cost


def _trace(cost: Tensor, moments: Tensor) -> Tensor:
    """tr(cost · moments) for symmetric matrices, [R]."""
    return (cost * moments).sum((-2, -1))
