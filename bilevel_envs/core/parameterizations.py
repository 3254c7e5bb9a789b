"""Parameterisations: modules whose `forward()` is θ, one row per run."""

from __future__ import annotations

import warnings
from itertools import pairwise, product
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.mdp import Parameterization
from bilevel_envs.core.noise import Noise

EXTREME = 6.0  # raw value at which sigmoid and softmax are nearly 1
MOST_VERTICES = 256  # of a parameterisation with more corners, those of one entry at a time are named
EDGE = 1e-3  # how near to a bound a first θ may lie, as a share of the interval
SPREAD = 3.0  # standard deviation of scattered raw values
CLOSEST = 1e-12  # to 0 and 1, in the arguments of logarithms


class Free(Parameterization):
    """θ is the raw parameter itself.

    Args:
      start: first θ, [R, ...].
    """

    stacks: ClassVar[bool] = True

    def __init__(self, start: np.ndarray) -> None:
        super().__init__()
        self.runs = len(start)
        self.raw = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """θ, [R, ...]."""
        return self.bounded(self.raw)

    def bounded(self, raw: Tensor) -> Tensor:
        """The raw numbers themselves."""
        return raw * 1.0  # a new tensor, so that callers never hold the parameter itself

    def scattered(self, noise: Noise) -> Tensor:
        """N(0, 9)."""
        return torch.from_numpy(SPREAD * noise.normal(*self.raw.shape[1:]))

    def inverse(self, theta: Tensor) -> Tensor:
        """θ itself."""
        return theta.clone()


class Box(Parameterization):
    """θ = low + (high − low) · sigmoid(raw): every entry strictly inside its interval.

    Args:
      start: first raw values, [R, ...].
      low: lower bounds, broadcast against `start`.
      high: upper bounds, likewise.
    """

    stacks: ClassVar[bool] = True

    def __init__(self, start: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> None:
        super().__init__()
        self.runs = len(start)
        self.low = torch.as_tensor(low, dtype=torch.float64)
        self.high = torch.as_tensor(high, dtype=torch.float64)
        self.raw = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """θ, [R, ...]."""
        return self.bounded(self.raw)

    def bounded(self, raw: Tensor) -> Tensor:
        """θ of raw numbers [R, ...]."""
        return self.low + (self.high - self.low) * raw.sigmoid()

    def vertices(self) -> Tensor:
        """±6 in every entry, all 2^n corners; of more than 256 corners ±6 in one entry and 0 in the others."""
        shape = self.raw.shape[1:]
        entries = shape.numel()
        if 2**entries <= MOST_VERTICES:
            signs = torch.tensor(list(product((-1.0, 1.0), repeat=entries)), dtype=torch.float64)
        else:
            ends = torch.eye(entries, dtype=torch.float64)
            signs = torch.cat([ends, -ends])
        return (EXTREME * signs).view(-1, *shape)

    def scattered(self, noise: Noise) -> Tensor:
        """N(0, 9)."""
        return torch.from_numpy(SPREAD * noise.normal(*self.raw.shape[1:]))

    def inverse(self, theta: Tensor) -> Tensor:
        """The logit of where θ lies in its interval."""
        return ((theta - self.low) / (self.high - self.low)).logit(CLOSEST)


def around(first: np.ndarray, space: gym.spaces.Box, runs: int) -> Parameterization | None:
    """θ = low + (high − low) · sigmoid(raw) in a space with bounds, else θ = raw; None where some bounds are missing.

    Args:
      first: where every run begins, [*θ.shape]; a thousandth of the interval away from a bound, at which a sigmoid does
        not move: a UserWarning says so.
      space: what θ may be.
      runs: R.

    Raises:
      ValueError: if bounds are too far apart.
    """
    start, low, high = np.broadcast_to(first, (runs, *space.shape)), space.low.astype(float), space.high.astype(float)
    if space.is_bounded():
        with np.errstate(over="ignore"):
            finite = np.isfinite(high - low).all()
        if not finite:
            raise ValueError(f"`theta_space` must have bounds whose difference is a finite number, got {space}")
        width = np.where(high > low, high - low, 1.0)
        share = (start - low) / width
        flat = ((share < EDGE) | (share > 1 - EDGE))[0][high > low]
        if flat.any():
            warnings.warn(
                f"`default_theta` lies at a bound of `theta_space` in {flat.sum()} of {flat.size} entries. Leaders "
                f"begin {EDGE:g} of the interval inside, where the sigmoid that keeps θ between its bounds is nearly "
                "flat, and may take hundreds of iterations to get away: take a default well inside, or write a "
                "`parameterization` that begins there",
                UserWarning,
                stacklevel=2,
            )
        share = np.clip(share, EDGE, 1 - EDGE)
        return Box(np.log(share / (1 - share)), low, high)
    return None if np.isfinite(low).any() or np.isfinite(high).any() else Free(start.copy())


class Budget(Parameterization):
    """θ_j = total · softmax(raw)_j: a signed budget spread over places; the last raw entry holds what is not spent.

    Args:
      start: first logits, [R, places + 1].
      total: what is spread, negative for penalties.
    """

    stacks: ClassVar[bool] = True

    def __init__(self, start: np.ndarray, total: float) -> None:
        super().__init__()
        self.runs, self.total = len(start), total
        self.raw = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """θ, [R, places]."""
        return self.bounded(self.raw)

    def bounded(self, raw: Tensor) -> Tensor:
        """θ of logits [R, places + 1]."""
        return self.total * raw.softmax(-1)[..., :-1]

    def vertices(self) -> Tensor:
        """All of the budget in one place, or unspent: 6 in one entry and 0 in the others."""
        return EXTREME * torch.eye(self.raw.shape[-1], dtype=torch.float64)

    def scattered(self, noise: Noise) -> Tensor:
        """Twice a standard Gumbel number: much of the budget in few places."""
        return _gumbel(noise, self.raw.shape[1:])

    def inverse(self, theta: Tensor) -> Tensor:
        """The logarithms of the shares."""
        shares = theta / self.total
        return torch.cat([shares, 1 - shares.sum(-1, keepdim=True)], -1).clamp(min=CLOSEST).log()


class Softmax(Parameterization):
    """θ = softmax(raw) over the last axis: a policy as a table.

    Args:
      start: first logits, [R, ..., A].
    """

    stacks: ClassVar[bool] = True

    def __init__(self, start: np.ndarray) -> None:
        super().__init__()
        self.runs = len(start)
        self.raw = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self) -> Tensor:
        """θ, [R, ..., A]."""
        return self.bounded(self.raw)

    def bounded(self, raw: Tensor) -> Tensor:
        """θ of logits [R, ..., A]."""
        return raw.softmax(-1)

    def vertices(self) -> Tensor:
        """Deterministic policies: 6 for one choice in every row; of more than 256 policies, in one row at a time."""
        shape = self.raw.shape[1:]
        choices = shape[-1]
        rows = shape.numel() // choices
        one = EXTREME * torch.eye(choices, dtype=torch.float64)
        if choices**rows <= MOST_VERTICES:
            return one[torch.tensor(list(product(range(choices), repeat=rows)))].view(-1, *shape)
        single = torch.zeros(rows, choices, rows, choices, dtype=torch.float64)
        single[torch.arange(rows), :, torch.arange(rows)] = one
        return single.view(-1, *shape)

    def scattered(self, noise: Noise) -> Tensor:
        """Twice a standard Gumbel number."""
        return _gumbel(noise, self.raw.shape[1:])

    def inverse(self, theta: Tensor) -> Tensor:
        """The logarithms of the probabilities."""
        return theta.clamp(min=CLOSEST).log()


class SoftmaxNetwork(Parameterization):
    """θ = softmax of a network's outputs at each of S one-hot states: S–64–64–A with ReLU.

    Args:
      noise: draws the first weights, Xavier-uniform; biases begin at 0.
      states: S.
      actions: A.
      hidden: width of both hidden layers.
    """

    stacks: ClassVar[bool] = True

    def __init__(self, noise: Noise, states: int, actions: int, hidden: int = 64) -> None:
        super().__init__()
        self.runs, self.states = noise.runs, states
        sizes = (states, hidden, hidden, actions)
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for inner, outer in pairwise(sizes):
            self.weights.append(xavier(noise, (inner, outer)))
            self.biases.append(torch.nn.Parameter(torch.zeros(self.runs, 1, outer, dtype=torch.float64)))

    def forward(self) -> Tensor:
        """θ, [R, S, A]."""
        x = torch.eye(self.states, dtype=torch.float64).expand(len(self.weights[0]), -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if layer < len(self.weights) - 1:
                x = x.relu()
        return x.softmax(-1)


def xavier(noise: Noise, shape: tuple[int, int]) -> torch.nn.Parameter:
    """Weights [R, inner, outer], uniform with variance 2 / (inner + outer)."""
    bound = (6 / sum(shape)) ** 0.5
    return torch.nn.Parameter(torch.from_numpy(bound * (2 * noise.uniform(*shape) - 1)))


def _gumbel(noise: Noise, shape: tuple[int, ...]) -> Tensor:
    """Twice a standard Gumbel number, [K, *shape]: the softmax of a row has few large entries."""
    return torch.from_numpy(-2.0 * np.log(-np.log(noise.uniform(*shape).clip(CLOSEST))))
