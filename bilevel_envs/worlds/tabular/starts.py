"""Where the episodes of a table begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Starts:
    """The possible first states and no others; NumPy, a leading 1 where shared by all runs.

    Attributes:
      states: in rising order, int [R|1, M]; a run with fewer of them repeats its last one.
      cdf: their cumulative probabilities, exactly 1 from a run's last possible state on, [R|1, M].
    """

    states: np.ndarray
    cdf: np.ndarray

    @classmethod
    def of(cls, initial: np.ndarray) -> Starts:
        """From ρ0, [R|1, S]; a ValueError where no state is possible."""
        possible = [np.flatnonzero(row > 0) for row in initial]
        if not all(len(one) for one in possible):
            raise ValueError("`initial` must have a state of positive probability in every run")
        width = max(len(one) for one in possible)
        states = np.stack([np.pad(one, (0, width - len(one)), mode="edge") for one in possible])
        cdf = np.cumsum(np.take_along_axis(initial, states, axis=-1), axis=-1)
        for row, one in zip(cdf, possible, strict=True):
            row[len(one) - 1 :] = 1.0  # a draw never falls behind the last state, whatever the sum was rounded to
        return cls(states, cdf)
