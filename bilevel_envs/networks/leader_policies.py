"""A leader's policy as a network whose weights are one flat vector: Gaussian, or Gaussian squashed by tanh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_count, check_number, check_shape
from bilevel_envs.core.noise import Noise

FIRST_LOG_DEVIATION = -0.5
Array = TypeVar("Array", Tensor, np.ndarray)
EDGE = 1 - 1e-6  # squashed actions stay within ±EDGE: tanh rounds to 1 near 19, and float32 keeps this number below 1


@dataclass(frozen=True)
class GaussianNetwork:
    r"""a ~ N(μ(s), diag σ²), μ a network with ReLU between its layers.

    θ is one vector: weights (row by row) and biases of each layer in turn, then log σ unless `deviation` fixes σ.

    Attributes:
      sizes: entries of s, widths of the hidden layers, entries of a.
      deviation: σ, above 0; None where θ ends with one log σ for each entry of a.
    """

    sizes: tuple[int, ...]
    deviation: float | None = None

    def __post_init__(self) -> None:
        if len(self.sizes) < 2:
            raise ValueError(f"`sizes` must name the entries of s and of a at least, got {self.sizes}")
        object.__setattr__(self, "sizes", tuple(check_count(size, "sizes") for size in self.sizes))
        if self.deviation is not None:
            check_number(self.deviation, "deviation", above=0)

    @cached_property
    def count(self) -> int:
        """Entries of θ, P."""
        free = 0 if self.deviation is not None else self.sizes[-1]
        return sum((inner + 1) * outer for inner, outer in pairwise(self.sizes)) + free

    def start(self, noise: Noise) -> np.ndarray:
        """First weights, Xavier-uniform, biases 0, log σ = −1/2, [R, P]."""
        parts = []
        for inner, outer in pairwise(self.sizes):
            bound = (6 / (inner + outer)) ** 0.5
            parts += [bound * (2 * noise.uniform(inner * outer) - 1), np.zeros((noise.runs, outer))]
        if self.deviation is None:
            parts.append(np.full((noise.runs, self.sizes[-1]), FIRST_LOG_DEVIATION))
        return np.concatenate(parts, 1)

    def log_prob(self, theta: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """log f_θ(a | s), differentiable in θ.

        Args:
          theta: [R, P].
          state: s, [R, ..., n].
          action: a, [R, ..., m].

        Returns:
          [R, ...].
        """
        check_shape(theta, (self.count,), "theta", "[weights]")
        x = state.reshape(len(theta), -1, self.sizes[0])
        for layer, (weight, bias) in enumerate(self._layers(theta)):
            x = (x.relu() if layer else x) @ weight + bias[:, None]
        log_deviation = self._log_deviation(theta)[:, None]
        white = (action.reshape(x.shape) - x) * torch.exp(-log_deviation)
        each = -(white**2) / 2 - log_deviation - math.log(2 * math.pi) / 2
        return each.sum(-1).reshape(action.shape[:-1])

    def sample(self, theta: np.ndarray, state: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Actions at states, in NumPy; each row is worked out by itself, so that it does not depend on its neighbours.

        Args:
          theta: [R, P].
          state: s, [R, N, n].
          normal: standard normal numbers, [R, N, m].

        Returns:
          [R, N, m].
        """
        x = state[..., None, :]
        for layer, (weight, bias) in enumerate(self._layers(theta)):
            x = (np.maximum(x, 0.0) if layer else x) @ weight[:, None] + bias[:, None, None]
        return x[..., 0, :] + np.exp(np.asarray(self._log_deviation(theta)))[:, None] * normal

    def _layers(self, theta: Array) -> Iterator[tuple[Array, Array]]:
        """Weight [R, inner, outer] and bias [R, outer] of each layer, of an array or a tensor."""
        read = 0
        for inner, outer in pairwise(self.sizes):
            weight = theta[:, read : read + inner * outer].reshape(-1, inner, outer)
            read += inner * outer
            yield weight, theta[:, read : read + outer]
            read += outer

    def _log_deviation(self, theta: Tensor | np.ndarray) -> Tensor:
        """log σ, [R|1, m]."""
        if self.deviation is not None:
            return torch.full((1, self.sizes[-1]), math.log(self.deviation), dtype=torch.float64)
        return torch.as_tensor(theta[:, self.count - self.sizes[-1] :])


@dataclass(frozen=True)
class GaussianTanhNetwork:
    r"""a = reach · tanh(u), u ~ N(μ(s), diag σ²): a `GaussianNetwork` squashed into (−reach, reach).

    Attributes:
      sizes: entries of s, widths of the hidden layers, entries of a.
      reach: the bound of every action, above 0.
    """

    sizes: tuple[int, ...]
    reach: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.reach, "reach", above=0)
        _ = self.inner  # refuses bad sizes

    @cached_property
    def inner(self) -> GaussianNetwork:
        """Before the tanh."""
        return GaussianNetwork(self.sizes)

    @property
    def count(self) -> int:
        """Entries of θ, P."""
        return self.inner.count

    def start(self, noise: Noise) -> np.ndarray:
        """First weights, as those of a `GaussianNetwork`, [R, P]."""
        return self.inner.start(noise)

    def log_prob(self, theta: Tensor, state: Tensor, action: Tensor) -> Tensor:
        r"""log f_θ(a | s) = log N(u; μ, σ²) − Σ log(reach (1 − tanh² u)), differentiable in θ; arguments as there.

        With log(1 − tanh² u) = 2 (log 2 − u − softplus(−2 u)), which does not round to log 0. Actions at the edge or
        behind it count as those just inside.
        """
        u = torch.atanh((action / self.reach).clamp(-EDGE, EDGE))
        slope = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u)) + math.log(self.reach)
        return self.inner.log_prob(theta, state, u) - slope.sum(-1)

    def sample(self, theta: np.ndarray, state: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Actions at states, strictly inside (−reach, reach); arguments as of `GaussianNetwork.sample`."""
        return self.reach * np.clip(np.tanh(self.inner.sample(theta, state, normal)), -EDGE, EDGE)
