"""Linear dynamics, Gaussian noise, quadratic rewards: continuous worlds that can be solved exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.checks import check_count, check_finite, check_number, check_shape

if TYPE_CHECKING:
    from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy

MOST_DOUBLINGS = 64
OTHERS = ("bound", "bump", "horizon")  # what a model has beside tensors that lead with runs


@dataclass(frozen=True)
class Quadratic:
    """x ↦ xᵀ M x + c, for each run.

    Attributes:
      matrix: M, symmetric, [R|1, d, d].
      constant: c, [R|1].
    """

    kind: ClassVar[str] = "linear_quadratic"
    matrix: Tensor
    constant: Tensor

    def __call__(self, *parts: Tensor) -> Tensor:
        """Values at x = the parts side by side, each [R, ..., d_i]; the result is [R, ...]."""
        x = torch.cat([torch.as_tensor(part) for part in parts], -1)
        return along(self.constant, x[..., 0]) + (x * linear(self.matrix, x)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """∇ at x [R, ..., d], shaped like x."""
        return 2 * linear(self.matrix, x)


def along(numbers: Tensor, x: Tensor) -> Tensor:
    """One number per run, [R|1], with as many axes as x [R, ...]."""
    return numbers.view(-1, *[1] * (x.ndim - 1))


def linear(matrix: Tensor, x: Tensor) -> Tensor:
    """M x for every run: matrix [R|1, p, d], x [R, ..., d], result [R, ..., p]."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    return (flat @ matrix.mT).view(*x.shape[:-1], matrix.shape[-2])


def discounted_sum(step: Tensor, first: Tensor, gamma: float) -> Tensor:
    r"""X = Σ_k γ^k F^k Y (Fᵀ)^k, the solution of X = Y + γ F X Fᵀ, by doubling; differentiable.

    Args:
      step: F, [R|1, n, n].
      first: Y, symmetric, [R|1, n, n].
      gamma: discount.

    Returns:
      X, [R, n, n]. Its gradient solves the adjoint equation G = g + γ Fᵀ G F instead of passing through the doubling.

    Raises:
      ValueError: if the sum diverges: the spectral radius of √γ F is 1 or more.
    """
    with torch.no_grad():
        total = _doubled(step, first, gamma)
    if not torch.is_grad_enabled() or not (step.requires_grad or first.requires_grad):
        return total
    once = first + gamma * step @ total @ step.mT
    transposed = step.detach().mT
    once.register_hook(lambda gradient: _doubled(transposed, gradient, gamma))
    return once


def _doubled(step: Tensor, first: Tensor, gamma: float) -> Tensor:
    power, total = gamma**0.5 * step, first
    for _ in range(MOST_DOUBLINGS):
        added = power @ total @ power.mT
        total = total + added
        power = power @ power
        if not power.isfinite().all():
            break
        if power.abs().max() < 1e-20:
            return total
    raise ValueError(
        "the discounted sum diverges: the closed loop must have a spectral radius below 1/√γ, got "
        f"{float(torch.linalg.eigvals(step).abs().max()):.6g} with γ = {gamma:g}"
    )


@dataclass(frozen=True)
class Bump:
    """x ↦ exp(−½ (x − c)ᵀ diag(p) (x − c)) of a state's first entries: worth 1 at c, nothing far from it.

    Attributes:
      centre: c, [d].
      precision: p, positive, [d].
    """

    centre: Tensor
    precision: Tensor

    def __call__(self, state: Tensor) -> Tensor:
        """At states [..., n], [...]."""
        off = state[..., : len(self.centre)] - self.centre
        return torch.exp(-(off**2 * self.precision).sum(-1) / 2)

    def expected(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Its mean over x ~ N(mean, covariance): [..., n] and [..., n, n], broadcast; [...]."""
        d = len(self.centre)
        spread = covariance[..., :d, :d] + (1 / self.precision).diag()
        off = (mean[..., :d] - self.centre)[..., None]
        factor = torch.linalg.cholesky(spread)
        white = torch.linalg.solve_triangular(factor, off, upper=False)[..., 0]
        volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + self.precision.log().sum() / 2
        return torch.exp(-(white**2).sum(-1) / 2 - volume)


@dataclass(frozen=True)
class LinearQuadraticModel:
    r"""s' = A s + B b + w, w ~ N(0, W), r_F = −sᵀQs − bᵀRb, r_L = −sᵀCs − bᵀEb − c, and a bump if there is one.

    Every matrix leads with a runs axis, R or 1 for "the same in every run", and may depend on θ, the first state's
    covariance excepted.

    Attributes:
      A: [R|1, n, n].
      B: [R|1, n, m].
      noise: W, diagonal, no entry negative, [R|1, n, n]; what has no noise must not depend on θ.
      initial: covariance of the first state, diagonal, no entry negative, [1, n, n].
      state_cost: Q, symmetric, [R|1, n, n].
      action_cost: R, symmetric and positive definite, [R|1, m, m].
      leader_state_cost: C, symmetric, [R|1, n, n].
      leader_action_cost: E, symmetric, [R|1, m, m].
      leader_cost: c, [R|1].
      bound: states are kept in [−bound, bound]: the mean A s + B b is clipped to it, and w truncated, entry by entry.
        Solutions take no notice of it; inf for no bound.
      start: mean of the first state, [R|1, n]; None for 0.
      bump: a further reward of the leader's that depends on the state; None for none.
      horizon: the leader's objective is a sum over so many steps; None for no end.

    Raises:
      TypeError: if a matrix is no float64 tensor.
      ValueError: if one has the wrong shape, is not finite, or is not symmetric, diagonal or positive where it must be.
    """

    kind: ClassVar[str] = "linear_quadratic"
    A: Tensor
    B: Tensor
    noise: Tensor
    initial: Tensor
    state_cost: Tensor
    action_cost: Tensor
    leader_state_cost: Tensor
    leader_action_cost: Tensor
    leader_cost: Tensor
    bound: float = float("inf")
    start: Tensor = field(default=cast(Tensor, None))  # made by __post_init__
    bump: Bump | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.start is None and isinstance(self.B, Tensor):
            object.__setattr__(self, "start", torch.zeros(1, self.B.shape[-2], dtype=torch.float64))
        for name, matrix in self._matrices():
            if not isinstance(matrix, Tensor) or matrix.dtype != torch.float64:
                got = f"a tensor of {matrix.dtype}" if isinstance(matrix, Tensor) else type(matrix).__name__
                raise TypeError(f"`{name}` must be a float64 torch tensor, got {got}")
        if len(self.B.shape) != 3:
            raise ValueError(f"`B` must have shape [runs, n, m], got {list(self.B.shape)}")
        for name, matrix in self._matrices():
            self._check_matrix(name, matrix)
        for name in ("noise", "initial"):
            self._check_variance(name, getattr(self, name).detach())
        least = float(torch.linalg.eigvalsh(self.action_cost.detach()).min())
        if least <= 0:
            raise ValueError(f"`action_cost` must be positive definite; its smallest eigenvalue is {least:.3g}")
        if self.initial.requires_grad:
            raise ValueError("`initial` must not depend on θ, got a tensor with gradients")
        if self.bound != float("inf"):
            check_number(self.bound, "bound", above=0)
        if self.horizon is not None:
            check_count(self.horizon, "horizon")

    def _check_matrix(self, name: str, matrix: Tensor) -> None:
        """Refuses another shape, entries that are not finite, and costs and covariances that are not symmetric."""
        n, m = self.B.shape[-2:]
        of_actions = ("action_cost", "leader_action_cost")
        square = (m, m) if name in of_actions else (n, n)
        wanted = {"B": (n, m), "leader_cost": (), "start": (n,)}.get(name, square)
        check_shape(matrix, wanted, name)
        leading = (1,) if name == "initial" else (1, self.runs)
        if len(matrix.shape) != len(wanted) + 1 or matrix.shape[0] not in leading:
            axis = " or ".join(map(str, sorted(set(leading))))
            raise ValueError(f"`{name}` must have a leading runs axis ({axis}), got shape {list(matrix.shape)}")
        check_finite(matrix, name)
        if name not in ("A", "B", "leader_cost", "start") and not torch.allclose(matrix, matrix.mT, atol=1e-9):
            raise ValueError(f"`{name}` must be symmetric; it is off by {float((matrix - matrix.mT).abs().max())}")

    def _check_variance(self, name: str, matrix: Tensor) -> None:
        """Refuses a covariance that is not diagonal, or has entries that are too small."""
        unbounded = self.bound == float("inf")
        variance = matrix.diagonal(dim1=-2, dim2=-1)
        least_allowed = 0.0 if unbounded else np.finfo(float).tiny
        if (matrix != torch.diag_embed(variance)).any() or (variance < least_allowed).any():
            wanted = "no negative entry" if unbounded else "positive entries, as there is a `bound`"
            raise ValueError(f"`{name}` must be diagonal with {wanted}, got {matrix[0].tolist()}")

    @property
    def runs(self) -> int:
        """R, or 1 where every run shares the model."""
        return max(matrix.shape[0] for _, matrix in self._matrices())

    @property
    def state_size(self) -> int:
        """n."""
        return self.B.shape[-2]

    @property
    def action_size(self) -> int:
        """m."""
        return self.B.shape[-1]

    @property
    def is_quadratic(self) -> bool:
        """Whether the leader's reward is a quadratic of (s, b): whether it has no bump."""
        return self.bump is None

    @property
    def entries(self) -> int:
        """Numbers in all matrices."""
        return sum(matrix.numel() for _, matrix in self._matrices())

    def detach(self) -> LinearQuadraticModel:
        """The same model without gradients."""
        fixed: dict[str, Any] = {name: matrix.detach() for name, matrix in self._matrices()}
        return replace(self, **fixed)

    def mean_next(self, state: Tensor, action: Tensor) -> Tensor:
        """A s + B b, clipped to the bound, at states [R, ..., n] and actions [R, ..., m]."""
        return (linear(self.A, state) + linear(self.B, action)).clamp(-self.bound, self.bound)

    def r_follower(self, state: Tensor, action: Tensor) -> Tensor:
        """−sᵀQs − bᵀRb, [R, ...]."""
        return -(state * linear(self.state_cost, state)).sum(-1) - (action * linear(self.action_cost, action)).sum(-1)

    def r_leader(self, state: Tensor, action: Tensor) -> Tensor:
        """−sᵀCs − bᵀEb − c, [R, ...]."""
        states = (state * linear(self.leader_state_cost, state)).sum(-1)
        actions = (action * linear(self.leader_action_cost, action)).sum(-1)
        total = -states - actions - along(self.leader_cost, states)
        return total if self.bump is None else total + self.bump(state)

    def log_arrival(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """log N(s'; A s + B b, W) of the entries with noise, [R, ...]."""
        return _log_density(next_state - self.mean_next(state, action), self.noise)

    def log_start(self, state: Tensor) -> Tensor:
        """log N(s_0; start, initial) of the entries that vary, [R, ...]."""
        mean = self.start.view(len(self.start), *[1] * (state.ndim - 2), -1)
        return _log_density(state - mean, self.initial)

    def terms(self, rollout: Rollout, policy: GaussianPolicy | None = None) -> Terms:
        """The differentiable terms at the visited steps; None where no gradient can flow.

        Args:
          rollout: the steps, states [R, N, T, n] and actions [R, N, T, m].
          policy: with one, a `GaussianPolicy`, also E_b[r_F(s_k, b)] under it.
        """
        state, action = rollout.state, rollout.action

        def moves(*names: str) -> bool:
            return any(getattr(self, name).requires_grad for name in names)

        follower = moves("state_cost", "action_cost")
        arrives, starts = moves("A", "B", "noise"), moves("start")
        expected = None
        if policy is not None and follower:
            expected = policy.expect(Quadratic(-block(self.state_cost, self.action_cost), torch.zeros(1)), state)
        leader = moves("leader_state_cost", "leader_action_cost", "leader_cost")
        return Terms(
            r_leader=self.r_leader(state, action) if leader else None,
            r_follower=self.r_follower(state, action) if follower else None,
            log_start=self.log_start(state) if starts else None,
            log_arrival=self.log_arrival(state, action, rollout.next_state) if arrives else None,
            expected_r_follower=expected,
            mean_next=self.mean_next(state, action) if moves("A", "B") and not moves("noise") else None,
            mean_start=self.start[:, None, None].expand_as(state) if starts else None,
        )

    def _matrices(self) -> list[tuple[str, Tensor]]:
        return [(one.name, getattr(self, one.name)) for one in fields(self) if one.name not in OTHERS]


def _log_density(off: Tensor, covariance: Tensor) -> Tensor:
    """Of N(0, covariance), diagonal [R|1, n, n], at [R, ..., n]; entries without variance count for nothing."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    varies = variance.detach() > 0
    variance = torch.where(varies, variance, 1.0)
    squares = off**2 / variance.view(len(variance), *[1] * (off.ndim - 2), -1)
    inside = varies.view(len(varies), *[1] * (off.ndim - 2), -1)
    volume = torch.where(varies, variance.log() + np.log(2 * np.pi), 0.0).sum(-1) / 2
    return -torch.where(inside, squares, 0.0).sum(-1) / 2 - along(volume, off[..., 0])


def truncated_normal(mean: np.ndarray, deviation: np.ndarray, bound: float, uniform: np.ndarray) -> np.ndarray:
    """Normal numbers within [−bound, bound] by inverse CDF; all arguments broadcast, `uniform` in [0, 1)."""
    if np.isfinite(bound):
        low, high = ndtr((-bound - mean) / deviation), ndtr((bound - mean) / deviation)
        uniform = low + uniform * (high - low)
    least = np.finfo(float).tiny  # of a uniform number that is 0
    return np.clip(mean + deviation * ndtri(np.maximum(uniform, least)), -bound, bound)


def block(upper: Tensor, lower: Tensor) -> Tensor:
    """[[upper, 0], [0, lower]] of every run."""
    runs = max(len(upper), len(lower))
    n, m = upper.shape[-1], lower.shape[-1]
    top = torch.cat([upper.expand(runs, -1, -1), upper.new_zeros(runs, n, m)], -1)
    bottom = torch.cat([lower.new_zeros(runs, m, n), lower.expand(runs, -1, -1)], -1)
    return torch.cat([top, bottom], -2)
