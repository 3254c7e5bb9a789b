"""The protocols and batch types that both packages speak.

Shape legend, here and everywhere: R runs (seeds, hyper-parameter settings), N rows of a batch, T steps of a
row, S states, B follower actions. The runs axis leads; a leading 1 stands for "the same in every run".
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs._checks import check_finite, check_number, check_shape
from bilevel_envs.noise import Noise


@dataclass(frozen=True)
class Preferences:
    """What the two players want; belongs to the problem, so it travels with the environment.

    Attributes:
      gamma_leader: γ_L in [0, 1), the leader's discount.
      gamma_follower: γ_F in [0, 1), the follower's discount.
      beta: β > 0, the follower's entropy coefficient, in units of its reward per nat.
    """

    gamma_leader: float
    gamma_follower: float
    beta: float

    def __post_init__(self) -> None:
        for name in ("gamma_leader", "gamma_follower"):
            check_number(getattr(self, name), name, at_least=0, below=1)
        check_number(self.beta, "beta", above=0, remedy="β is the follower's entropy coefficient")


@dataclass(frozen=True)
class Rollout:
    """A batch of transitions; a row may hold several episodes, one after another.

    Attributes:
      state: s_k, [R, N, T, ...].
      action: b_k, the action the follower intended, [R, N, T, ...].
      next_state: where the step led; never the first state of the next episode, [R, N, T, ...].
      r_leader: r_L(s_k, b_k), [R, N, T].
      r_follower: r_F(s_k, b_k), [R, N, T].
      terminated: the episode ended with this step and nothing follows, bool [R, N, T].
      truncated: the episode was cut after this step by a time limit, bool [R, N, T].
      step: index inside the episode, 0 at its first step, int [R, N, T].
      valid: False where a row has run out (its only episode ended earlier), or where critics are to leave a step out,
        bool [R, N, T].
    """

    state: Tensor
    action: Tensor
    next_state: Tensor
    r_leader: Tensor
    r_follower: Tensor
    terminated: Tensor
    truncated: Tensor
    step: Tensor
    valid: Tensor

    def steps(self, first: int, last: int | None) -> Rollout:
        """The steps of every row from `first` up to `last`, excluded."""
        return Rollout(**{field.name: getattr(self, field.name)[:, :, first:last] for field in fields(self)})

    @cached_property
    def starts(self) -> Tensor:
        """Where an episode begins, bool [R, N, T]."""
        return self.valid & (self.step == 0)

    @cached_property
    def finished(self) -> Tensor:
        """Where an episode ends by itself, bool [R, N, T]."""
        return self.valid & self.terminated

    @cached_property
    def cut(self) -> Tensor:
        """Where an episode goes on but the batch does not: time limits and ends of rows, bool [R, N, T]."""
        last = torch.zeros_like(self.valid)
        last[..., -1] = True
        last[..., :-1] = ~self.valid[..., 1:]
        return self.valid & ~self.terminated & (self.truncated | last)


@dataclass(frozen=True)
class Terms:
    """The only quantities that carry ∇_θ, one per step, [R, N, T]; None where θ does not enter.

    Attributes:
      r_leader: r_L(s_k, b_k; θ).
      r_follower: r_F(s_k, b_k; θ).
      log_start: log ρ0(s_k; θ); meaningful where an episode starts.
      log_arrival: log p(next_state_k | s_k, b_k; θ).
      expected_r_follower: E_b[r_F(s_k, b; θ)] under a policy held fixed; only where one was given.
      mean_next: E[next_state_k | s_k, b_k; θ], [R, N, T, n]; only in continuous worlds whose noise is free of θ.
      mean_start: E[s_0; θ], [R, N, T, n]; meaningful where an episode starts; only in continuous worlds.
    """

    r_leader: Tensor | None
    r_follower: Tensor | None
    log_start: Tensor | None
    log_arrival: Tensor | None
    expected_r_follower: Tensor | None = None
    mean_next: Tensor | None = None
    mean_start: Tensor | None = None


class Model(Protocol):
    """The follower's MDP at one θ; differentiable in θ through `terms` alone."""

    @property
    def runs(self) -> int:
        """R, or 1 where every run shares the model."""

    def terms(self, rollout: Rollout, policy: Any = None) -> Terms:
        """The differentiable terms at the visited steps, with E_b[r_F] under `policy` if one is given."""

    def detach(self) -> Model:
        """The same model without gradients."""


class Parameterization(torch.nn.Module):
    """Raw numbers that an optimiser moves; `forward()` is θ, ``[R, *θ.shape]``, inside θ's space.

    Subclasses keep R independent runs: every parameter has R as its leading axis.
    """

    runs: int = 1

    def forward(self) -> Tensor:
        """θ, ``[R, *θ.shape]``."""
        raise NotImplementedError

    def regulariser(self) -> Tensor:
        """Φ_L, added to the leader's objective, [R] or a scalar."""
        return torch.zeros(())


class BestKnown(float):
    """The best leader value known for a task; a float that says where it is from.

    Attributes:
      source: how the number was found.
      exact: True for a proven optimum, False for a lower bound.
    """

    source: str
    exact: bool

    def __new__(cls, value: float, source: str, exact: bool = False) -> BestKnown:
        number = super().__new__(cls, value)
        number.source, number.exact = source, exact
        return number

    def __repr__(self) -> str:
        return f"BestKnown({float(self):.6g}, {'optimum' if self.exact else 'lower bound'}: {self.source})"

    def __reduce__(self) -> tuple[Any, ...]:
        return BestKnown, (float(self), self.source, self.exact)


class ConfigurableMDP(Protocol):
    """What an environment's author writes: a space for θ, a default, preferences, and `model(theta)`."""

    @property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be, in the environment's own units."""

    @property
    def default_theta(self) -> np.ndarray:
        """θ in force until `configure` is called, shaped like `theta_space`."""

    @property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""

    def model(self, theta: Tensor) -> Model:
        """The follower's MDP at θ ``[R, *θ.shape]``, differentiable in θ: what planners and `exact` use."""

    @property
    def simulates_its_model(self) -> bool:
        """Whether `step` simulates `model(θ)`; a task with a `simulator` of its own does not, unless it says so."""
        return type(self).simulator is ConfigurableMDP.simulator

    @property
    def on_grid(self) -> bool:
        """Whether `model(θ)` is a table on a grid of states, which `step` does not keep to."""
        return False

    def simulator(self, theta: Tensor) -> Model:
        """The world that `step` simulates; differs from `model` only where a task says so."""
        return self.model(theta)

    def check_theta(self, theta: np.ndarray) -> None:
        """Refuses θ ``[..., *θ.shape]`` with a ValueError unless every entry lies in `theta_space`."""
        space = self.theta_space
        check_shape(theta, space.shape, "theta")
        check_finite(theta, "theta")
        slack = 1e-6  # rounding of a float32 parameterisation that touches the boundary
        outside = (theta < space.low - slack) | (theta > space.high + slack)
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            inner = at[theta.ndim - len(space.shape) :]
            raise ValueError(
                f"`theta` must lie in theta_space; at {at} it is {theta[at]:.6g}, "
                f"outside [{space.low[inner]:.6g}, {space.high[inner]:.6g}]"
            )

    def parameterization(self, runs: int, noise: Noise) -> Parameterization:
        """The task's default parameterisation of θ, freshly initialised for `runs` runs."""

    def best_known(self, preferences: Preferences) -> BestKnown | None:
        """The best leader value known under `preferences`; None where nobody has looked."""
        return None
