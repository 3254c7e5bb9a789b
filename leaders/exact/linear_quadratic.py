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

from bilevel_envs.core.mdp import Preferences
from bilevel_envs.followers import Riccati
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel, Quadratic, block, discounted_sum
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy, LinearResponse


def value(model: LinearQuadraticModel, policy: GaussianPolicy, gamma: float, horizon: int | None = None) -> Tensor:
    """J_L under a policy, over so many steps (None for the model's own) or without end, [R]."""
    step, noise, cost = _closed_loop(model, policy)
    horizon = model.horizon if horizon is None else horizon
    first = model.initial + model.start[..., None] * model.start[:, None]
    if horizon is None:
        if model.bump is not None:
            raise ValueError("`horizon` must be given where the leader's reward is a bump: its sum has no closed form")
        steps = 1 / (1 - gamma)
        moments = discounted_sum(step, first + gamma * steps * noise, gamma)
    else:
        steps = sum(gamma**k for k in range(horizon))
        if model.bump is not None:
            return _bumps(model, step, noise, gamma, horizon)
        now = first
        moments = now
        for k in range(1, horizon):
            now = step @ now @ step.mT + noise
            moments = moments + gamma**k * now
    return -_trace(cost, moments) - steps * _spent(model, policy)


def _bumps(model: LinearQuadraticModel, step: Tensor, noise: Tensor, gamma: float, horizon: int) -> Tensor:
    """Σ_k γ^k E[bump(s_k)], s_k ~ N(m_k, S_k), [R]; the leader's other rewards must be 0."""
    assert model.bump is not None
    mean, covariance = model.start[..., None], model.initial
    total = torch.zeros((), dtype=step.dtype)
    for k in range(horizon):
        total = total + gamma**k * model.bump.expected(mean[..., 0], covariance)
        mean, covariance = step @ mean, step @ covariance @ step.mT + noise
    return total


class BumpValues:
    """Q_L, V_L and their gradients where the leader's reward is a bump and its objective a finite sum.

    Args:
      model: the world, without gradients.
      policy: the follower's.
      gamma: γ_L.
    """

    def __init__(self, model: LinearQuadraticModel, policy: GaussianPolicy, gamma: float) -> None:
        assert model.bump is not None
        assert model.horizon is not None
        self.model, self.gamma, self.horizon = model, gamma, model.horizon
        self.bump = model.bump
        step, noise, _ = _closed_loop(model, policy)
        runs = len(step)
        powers, spreads = [torch.eye(step.shape[-1], dtype=step.dtype).expand(runs, -1, -1)], [torch.zeros_like(step)]
        for _ in range(self.horizon - 1):
            powers.append(step @ powers[-1])
            spreads.append(step @ spreads[-1] @ step.mT + noise)
        d = len(self.bump.centre)
        self.powers = torch.stack(powers, 1)[..., :d, :]  # F^j, [R, T, d, n]
        self.step, self.spreads = step, torch.stack(spreads, 1)[..., :d, :d]  # of s_j given s_0, [R, T, d, d]
        # of s_j given what lies before the first move's noise: j − 1 steps of the loop after it, [R, T, d, d]
        after = self.powers @ model.noise[:, None] @ self.powers.mT
        self.spreads_after = self.spreads + after

    def v(self, state: Tensor, k: Tensor) -> Tensor:
        """V_L at states [R, N, T, n] that are reached at step k [R, N, T], [R, N, T]."""
        return self._sum(state, self.spreads, self.horizon - k)

    def q(self, state: Tensor, action: Tensor, k: Tensor) -> Tensor:
        """Q_L at states and actions at step k, [R, N, T]."""
        mean = self.model.mean_next(state, action)
        return self.bump(state) + self.gamma * self._sum(mean, self.spreads_after, self.horizon - k - 1)

    def gradient(self, state: Tensor, k: Tensor) -> Tensor:
        """∇V_L(s) at step k, [R, N, T, n]."""
        with torch.enable_grad():
            leaf = state.detach().requires_grad_()
            return torch.autograd.grad(self.v(leaf, k).sum(), leaf)[0]

    def _sum(self, first: Tensor, spreads: Tensor, steps: Tensor) -> Tensor:
        """Σ_j γ^j E[bump] over `steps` [R, N, T] steps whose means start at `first` [R, N, T, n]."""
        shape = first.shape[:-1]
        mean = torch.einsum("rjdn,rkn->rkjd", self.powers, first.flatten(1, 2))
        worth = self.bump.expected(mean, spreads[:, None])  # [R, K, T]
        j = torch.arange(self.horizon)
        counted = torch.where(j < steps.flatten(1)[..., None], self.gamma**j, 0.0)
        return (worth * counted).sum(-1).view(shape)


def leader_values(model: LinearQuadraticModel, policy: GaussianPolicy, gamma: float) -> tuple[Quadratic, Quadratic]:
    """Q_L(s, b) and V_L(s) under a policy."""
    step, noise, cost = _closed_loop(model, policy)
    p = discounted_sum(step.mT, cost, gamma)
    constant = (_spent(model, policy) + gamma * _trace(p, noise)) / (1 - gamma)
    both = _beside(model)
    q = block(model.leader_state_cost, model.leader_action_cost) + gamma * both.mT @ p @ both
    behind = model.leader_cost + gamma * (_trace(p, model.noise) + constant)
    return Quadratic(-q, -behind), Quadratic(-p, -constant)


def surrogates(model: LinearQuadraticModel, best: LinearResponse, preferences: Preferences) -> tuple[Tensor, Tensor]:
    """Scalars of each run, [R], whose gradients in θ are the direct and the guiding term at a best response."""
    _, direct, guiding = value_and_surrogates(model, best, preferences)
    return direct, guiding


def value_and_surrogates(
    model: LinearQuadraticModel, best: LinearResponse, preferences: Preferences
) -> tuple[Tensor, Tensor, Tensor]:
    """J_L and `surrogates`, [R] each."""
    reacting = Riccati().reaction(model, preferences).policy
    gamma = preferences.gamma_leader
    direct = value(model, best.policy, gamma)
    return direct.detach(), direct, value(model.detach(), reacting, gamma)


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
