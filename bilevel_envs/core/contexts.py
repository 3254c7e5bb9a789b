"""What may differ from one episode of leading to the next: maps, goals, kinds of households."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_count, check_distribution, check_finite, finite_numbers


@dataclass(frozen=True)
class Contexts:
    """The contexts of a problem, numbered 0 … K − 1 (contextual bilevel reinforcement learning, arXiv:2406.01575).

    Nature draws a context ξ, both players see it, the leader chooses θ(ξ) and the follower answers in the world of ξ;
    the leader's objective is the mean over contexts.

    Attributes:
      count: K.
      features: what a policy reads of contexts: from int [R] to a float64 tensor [R, ...].
      probabilities: of the contexts, [K], kept as an array; None for equal ones.
      within: whether `model(theta)` without a context is the mixture, because each episode of the world begins by
        drawing its own; otherwise every model is of one context per run.

    Raises:
      ValueError: if the count, the features of context 0 or the probabilities do not fit.
    """

    count: int
    features: Callable[[np.ndarray], Tensor]
    probabilities: ArrayLike | None = None
    within: bool = False

    def __post_init__(self) -> None:
        check_count(self.count, "count")
        check_choice(self.within, (False, True), "within")
        if self.probabilities is not None:
            given = torch.from_numpy(finite_numbers(self.probabilities, (self.count,), "probabilities"))
            check_distribution(given[None], "probabilities", "[context]")
            object.__setattr__(self, "probabilities", given.numpy())
        self.seen(np.zeros(1, int))

    def seen(self, index: np.ndarray) -> Tensor:
        """The features of contexts int [R], float64 [R, ...].

        Raises:
          TypeError: if `features` returns no tensor.
          ValueError: if it returns NaN, infinite numbers, or another number of rows.
        """
        features = self.features(index)
        if not isinstance(features, Tensor):
            raise TypeError(
                f"`features` must return a tensor, got {type(features).__name__}: torch.as_tensor makes one"
            )
        if features.shape[:1] != (len(index),):
            raise ValueError(
                f"`features` must have one row per context, [{len(index)}, ...], got {list(features.shape)}"
            )
        check_finite(features, "features")
        return features.double()

    def drawn(self, uniform: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """Contexts by inversion of uniform numbers [R], int [R]; `among` those alone, in proportion.

        Raises:
          ValueError: if all of those have probability 0.
        """
        among = np.arange(self.count) if among is None else among
        weights = np.ones(len(among)) if self.probabilities is None else np.asarray(self.probabilities)[among]
        if not weights.any():
            raise ValueError(f"`contexts` must name one of a probability above 0, got {among.tolist()}")
        cdf = np.cumsum(weights / weights.sum())
        cdf[-1] = 1.0
        return among[np.searchsorted(cdf, uniform, side="right")]

    def checked(self, index: ArrayLike, name: str = "context") -> np.ndarray:
        """Numbers of contexts as int [...].

        Raises:
          ValueError: if they are none.
        """
        array = np.asarray(index)
        if array.dtype.kind not in "iu" or array.ndim > 1 or array.size == 0:
            raise ValueError(f"`{name}` must be the number of a context, or a flat list of such numbers, got {index!r}")
        if (array < 0).any() or (array >= self.count).any():
            raise ValueError(f"`{name}` must lie in 0 … {self.count - 1}, got {index!r}")
        return array.astype(np.int64)
