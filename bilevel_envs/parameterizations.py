"""Parameterisations: modules whose `forward()` is θ, one row per run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.model import Parameterization


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
