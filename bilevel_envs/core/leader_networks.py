"""Networks of the leader's: from what it sees of a context, or of its map, to θ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bilevel_envs.core.checks import check_count, check_shape
from bilevel_envs.core.mdp import Parameterization
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import xavier


class Bounds(Protocol):
    """What turns raw numbers into θ; `Free`, `Box`, `Budget` and `Softmax` do."""

    raw: torch.nn.Parameter

    def bounded(self, raw: Tensor) -> Tensor:
        """θ of raw numbers [R, ...], shaped like `raw`."""


class LeaderNetwork(Parameterization):
    """θ(ξ) = bounded(raw₀ + f(ξ)): a network of each run's adds to the raw numbers of another parameterisation.

    The last layer begins at 0, so that every context begins at the θ of the other parameterisation.

    Args:
      base: the parameterisation whose `bounded` keeps θ to its space; its raw numbers [R, ...] are trained, too.
      features: features [...] that `forward()` reads without a context, such as a picture of the only map; None where
        each call brings those of its contexts.
    """

    def __init__(self, base: Bounds, features: ArrayLike | None = None) -> None:
        super().__init__()
        self.base, self.runs, self.reads_context = base, len(base.raw), features is None
        self.features = None if features is None else torch.as_tensor(np.asarray(features, float))

    def forward(self, context: Tensor | None = None) -> Tensor:
        """θ, ``[R, *θ.shape]``.

        Args:
          context: features of each run's context, [R, ...]; [C·R, ...] for C contexts of each run, the run's number
            varying fastest. None for the features given at construction.

        Raises:
          ValueError: if there are no features, or not those of so many runs.
        """
        if context is None:
            if self.features is None:
                raise ValueError("`context` must be given: the features of each run's context, [R, ...]")
            context = self.features.expand(self.runs, *self.features.shape)
        if len(context) % self.runs:
            raise ValueError(f"`context` must have R = {self.runs} rows, or a multiple, got {list(context.shape)}")
        own = context.view(-1, self.runs, *context.shape[1:]).transpose(0, 1)  # [R, C, ...]
        raw = self.base.raw[:, None] + self.added(own).view(self.runs, -1, *self.base.raw.shape[1:])
        return self.base.bounded(raw.transpose(0, 1).flatten(0, 1))

    def added(self, features: Tensor) -> Tensor:
        """What each run's network adds to raw numbers, [R, C, raw entries], from features [R, C, ...]."""
        raise NotImplementedError


class MLP(LeaderNetwork):
    """A perceptron with ReLU reads the features as a vector.

    Args:
      base: the parameterisation whose raw numbers it shifts, see `LeaderNetwork`.
      noise: draws the first weights, Xavier-uniform; one stream per run.
      inputs: how many features there are.
      hidden: widths of the hidden layers.
      features: see `LeaderNetwork`.
    """

    def __init__(
        self,
        base: Bounds,
        noise: Noise,
        inputs: int,
        hidden: Sequence[int] = (64, 64),
        features: ArrayLike | None = None,
    ) -> None:
        super().__init__(base, features)
        self.inputs = check_count(inputs, "inputs")
        widths = [inputs, *(check_count(width, "hidden") for width in hidden), base.raw[0].numel()]
        self.weights = torch.nn.ParameterList(xavier(noise, pair) for pair in pairwise(widths))
        self.biases = torch.nn.ParameterList(
            torch.zeros(self.runs, 1, width, dtype=torch.float64) for width in widths[1:]
        )
        torch.nn.init.zeros_(self.weights[-1])

    def added(self, features: Tensor) -> Tensor:
        """See `LeaderNetwork`."""
        x = features.flatten(2)
        check_shape(x, (self.inputs,), "context", "[features]")
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if layer < len(self.weights) - 1:
                x = x.relu()
        return x


class CNN(LeaderNetwork):
    """A convolutional network reads a picture of the map and adds a number at each cell.

    Each of its layers sees 3 x 3 cells and, through their means over the map, all others. Of θ with more entries than
    there are cells, such as the unspent share of a `Budget`, the rest is not moved by the picture.

    Args:
      base: the parameterisation whose raw numbers it shifts, one per cell in the order of `cells` first, see
        `LeaderNetwork`.
      noise: draws the first weights, Xavier-uniform; one stream per run.
      cells: (row, column) of each cell in the picture, int [cells, 2].
      channels: how many numbers a pixel has.
      hidden: channels of the hidden layers.
      features: a picture [channels, height, width], see `LeaderNetwork`.
    """

    def __init__(
        self,
        base: Bounds,
        noise: Noise,
        cells: ArrayLike,
        channels: int,
        hidden: Sequence[int] = (16, 16, 16),
        features: ArrayLike | None = None,
    ) -> None:
        super().__init__(base, features)
        self.cells, self.channels = np.asarray(cells), check_count(channels, "channels")
        if self.cells.ndim != 2 or self.cells.shape[1] != 2 or self.cells.dtype.kind not in "iu":
            raise ValueError(f"`cells` must be whole numbers [cells, 2], got shape {list(self.cells.shape)}")
        self.rest = base.raw[0].numel() - len(self.cells)
        if self.rest < 0:
            raise ValueError(f"`cells` must be at most the {base.raw[0].numel()} raw numbers, got {len(self.cells)}")
        widths = [channels, *(check_count(width, "hidden") for width in hidden), 1]
        self.weights = torch.nn.ParameterList(xavier(noise, (9 * inner, outer)) for inner, outer in pairwise(widths))
        self.means = torch.nn.ParameterList(xavier(noise, pair) for pair in pairwise(widths))
        self.biases = torch.nn.ParameterList(
            torch.zeros(self.runs, 1, width, dtype=torch.float64) for width in widths[1:]
        )
        for last in (self.weights[-1], self.means[-1]):
            torch.nn.init.zeros_(last)

    def added(self, features: Tensor) -> Tensor:
        """See `LeaderNetwork`."""
        runs, contexts, _, height, width = features.shape
        check_shape(features, (self.channels, height, width), "context", "[channels, height, width]")
        x = features.transpose(0, 1).flatten(1, 2)  # [C, R · channels, height, width]
        for layer, (weight, mean, bias) in enumerate(zip(self.weights, self.means, self.biases, strict=True)):
            outer = weight.shape[-1]
            kernel = weight.transpose(1, 2).reshape(runs * outer, -1, 3, 3)
            pooled = torch.einsum("crk,rko->cro", x.view(contexts, runs, -1, height, width).mean((3, 4)), mean)
            shift = (pooled + bias[:, 0]).reshape(contexts, -1, 1, 1)
            x = torch.nn.functional.conv2d(x, kernel, padding=1, groups=runs) + shift
            if layer < len(self.weights) - 1:
                x = x.relu()
        at_cells = x[..., self.cells[:, 0], self.cells[:, 1]].transpose(0, 1)  # [R, C, cells]
        return torch.nn.functional.pad(at_cells, (0, self.rest))
