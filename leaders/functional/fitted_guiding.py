r"""The guiding term as a covariance of two fitted polynomials: less noise, most of all with followers that learn.

Theorem 1 of arXiv:2603.14867 weighs the ∇Q_F of a trajectory by the benefit of the action that began it. Followers that
learn leave much in either that has nothing to do with the other, and the division by β makes noise of it. Here ∇Q_F is
fitted, too, as a function of (s, b), and what is left to sample are states:

.. math::

    E\Big[\sum_t \gamma_L^t \tfrac{1}{\beta} \mathrm{Cov}_b\big(Q_L(s_t, b), \nabla Q_F(s_t, b)\big)\Big].

With z the monomials of (s, b) of degree at most 2 and φ those of s, ∇Q_F = zᵀX is fitted to what one step adds to ∇Q_F
and γ_F φ(s')ᵀU, and ∇V_F = φᵀU by temporal differences before that. The term is linear in what steps add, so it is a
weight for each of them, as an eligibility trace is, and no ∇ of a single step is ever computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import Policy, has_moments
from bilevel_envs.worlds.linear_quadratic.model import Quadratic, linear
from bilevel_envs.worlds.linear_quadratic.polynomials import Polynomial, lstd_adjoint, with_one
from leaders.functional.monomials import Monomials

GUIDINGS = ("sampled", "fitted")


def fitted_trace(
    batch: Rollout, q_leader: Polynomial | Quadratic, policy: Policy, weight: Tensor, gamma: float
) -> Tensor:
    """What takes the place of the eligibility trace: the weight of what each step adds to ∇Q_F, [R, N, T].

    Third and fourth moments of the policy are taken for those of a Gaussian with its mean and covariance.

    Args:
      batch: transitions with vectors for states and actions.
      q_leader: Q_L as a function of (s, b).
      policy: g, with `moments`.
      weight: γ_L^t / β over the number of episodes, [R, N, T].
      gamma: γ_F.

    Raises:
      TypeError: if the policy has no `moments`, or Q_L is no polynomial.
      TooFewTransitions: if there are fewer transitions than numbers to fit.
    """
    if not has_moments(policy):
        raise TypeError(
            '`guiding` must be "sampled" with a policy that has no method `moments` (mean and covariance of the '
            f'action), such as {type(policy).__name__}; got "fitted"'
        )
    q_leader = _polynomial(q_leader, 1 + batch.state.shape[-1] + batch.action.shape[-1])
    seen = Monomials.of(batch, 'guiding="fitted"')
    mean, covariance = policy.moments(batch.state.double())
    wanted = _covariances(seen.state, (mean.double(), covariance.double()), q_leader, weight)
    on_step = lstd_adjoint(seen.z, None, wanted, 0.0) * seen.share[..., 0]
    on_value = lstd_adjoint(seen.phi, seen.later, gamma * (on_step[..., None] * seen.later).sum(1), gamma)
    return (on_step + on_value).view_as(weight)


def _polynomial(q: Polynomial | Quadratic, size: int) -> Polynomial:
    """Q_L as a polynomial with a symmetric matrix of a size; an error that names the critic for all else."""
    if not isinstance(q, Polynomial | Quadratic):
        raise TypeError(
            f"`critic` must give a Polynomial or a Quadratic as its `quadratic()` here, got {type(q).__name__}"
        )
    matrix = (q if isinstance(q, Polynomial) else Polynomial.of(q)).matrix.double()
    if matrix.shape[1:] != (size, size) or not matrix.isfinite().all():
        what = list(matrix.shape) if matrix.isfinite().all() else "entries that are not"
        raise ValueError(f"`critic` must give a finite `quadratic()` of {size} × {size} (1, s and b), got {what}")
    return Polynomial((matrix + matrix.mT) / 2)


def _covariances(state: Tensor, moments: tuple[Tensor, Tensor], q: Polynomial, weight: Tensor) -> Tensor:
    """Σ weight Cov_b(Q_L, z) over a batch, for every monomial z of (s, b) of degree at most 2, [R, F].

    Cov_b(Q_L, x xᵀ) = x̄ vᵀ + v x̄ᵀ + 2 Σ H Σ with x = (1, s, b), x̄ its mean, v = Σ ∇_b Q_L(s, E b), H half the
    Hessian.
    """
    mean, covariance = (part.flatten(1, 2) for part in (moments[0], moments[1].expand(*moments[0].shape[:3], -1, -1)))
    m = mean.shape[-1]
    middle = with_one(state, mean)
    slope = 2 * linear(q.matrix, middle)[..., -m:]
    moved = torch.zeros_like(middle)
    moved[..., -m:] = (covariance @ slope[..., None])[..., 0] * weight.flatten(1)[..., None]
    total = middle.mT @ moved
    total = total + total.mT
    spread = covariance @ q.matrix[:, None, -m:, -m:] @ covariance
    total[:, -m:, -m:] += 2 * (weight.flatten(1)[..., None, None] * spread).sum(1)
    row, column = torch.triu_indices(middle.shape[-1], middle.shape[-1])
    return total[:, row, column]
