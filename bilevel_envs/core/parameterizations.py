"""Parameterisations: modules whose `forward()` is θ, one row per run."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.mdp import Parameterization
from bilevel_envs.core.noise import Noise


class Free(Parameterization):
    """θ is the raw parameter itself.

    Args:
      start: first θ, [R, ...].
    """

    def __init__(self, start: np.ndarray) -> None:
        super().__init__()
        self.runs = len(start)
        self.raw = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """θ, [R, ...]."""
        return self.raw * 1.0  # a new tensor, so that callers never hold the parameter itself


class Box(Parameterization):
    """θ = low + (high − low) · sigmoid(raw): every entry strictly inside its interval.

    Args:
      start: first raw values, [R, ...].
      low: lower bounds, broadcast against `start`.
      high: upper bounds, likewise.
    """

    def __init__(self, start: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> None:
        super().__init__()
        self.runs = len(start)
        self.low = torch.as_tensor(low, dtype=torch.float64)
        self.high = torch.as_tensor(high, dtype=torch.float64)
        self.raw = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """θ, [R, ...]."""
        return self.low + (self.high - self.low) * self.raw.sigmoid()


class Budget(Parameterization):
    """θ_j = total · softmax(raw)_j: a signed budget spread over places; the last raw entry holds what is not spent.

    Args:
      start: first logits, [R, places + 1].
      total: what is spread, negative for penalties.
    """

    def __init__(self, start: np.ndarray, total: float) -> None:
        super().__init__()
        self.runs, self.total = len(start), total
        self.raw = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """θ, [R, places]."""
        return self.total * self.raw.softmax(-1)[..., :-1]


class Softmax(Parameterization):
    """θ = softmax(raw) over the last axis: a policy as a table.

    Args:
      start: first logits, [R, ..., A].
    """

    def __init__(self, start: np.ndarray) -> None:
        super().__init__()
        self.runs = len(start)
        self.raw = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """θ, [R, ..., A]."""
        return self.raw.softmax(-1)


class SoftmaxNetwork(Parameterization):
    """θ = softmax of a network's outputs at each of S one-hot states: S–64–64–A with ReLU.

    Args:
      noise: draws the first weights, Xavier-uniform; biases begin at 0.
      states: S.
      actions: A.
      hidden: width of both hidden layers.
    """

    def __init__(self, noise: Noise, states: int, actions: int, hidden: int = 64) -> None:
        super().__init__()
        self.runs, self.states = noise.runs, states
        sizes = (states, hidden, hidden, actions)
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for inner, outer in pairwise(sizes):
            bound = (6 / (inner + outer)) ** 0.5
            start = bound * (2 * noise.uniform(inner, outer) - 1)
            self.weights.append(torch.nn.Parameter(torch.from_numpy(start)))
            self.biases.append(torch.nn.Parameter(torch.zeros(self.runs, 1, outer, dtype=torch.float64)))

    def forward(self) -> Tensor:
        """θ, [R, S, A]."""
        x = torch.eye(self.states, dtype=torch.float64).expand(self.runs, -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if layer < len(self.weights) - 1:
                x = x.relu()
        return x.softmax(-1)
