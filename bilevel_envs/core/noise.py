"""One random stream per run, stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Noise:
    """Independent generators, one per run, that are read side by side.

    Stream i depends on `seeds[i]` alone: a run draws the same numbers alone or beside others.

    Args:
      seeds: one seed per run; an int, or a sequence of ints for a sub-stream such as `[seed, 1]`.
    """

    def __init__(self, seeds: Sequence[int | Sequence[int]]) -> None:
        self._streams = [np.random.default_rng(seed) for seed in seeds]

    @property
    def runs(self) -> int:
        """How many streams there are, R."""
        return len(self._streams)

    def uniform(self, *shape: int) -> np.ndarray:
        """Uniform numbers in [0, 1), ``[R, *shape]``."""
        out = np.empty((self.runs, *shape))
        for row, stream in zip(out, self._streams, strict=True):
            stream.random(out=row)
        return out

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers, ``[R, *shape]``."""
        return np.stack([stream.standard_normal(shape) for stream in self._streams])

    def permutation(self, size: int) -> np.ndarray:
        """A random order of 0 … size−1 for each run, [R, size]."""
        return np.stack([stream.permutation(size) for stream in self._streams])

    def seeds(self, count: int) -> np.ndarray:
        """Fresh seeds for environments that keep generators of their own, int64 [R, count]."""
        return np.stack([stream.integers(2**31 - 1, size=count) for stream in self._streams])

    def state_dict(self) -> list[dict[str, object]]:
        """The state of every stream; JSON-able."""
        return [dict(stream.bit_generator.state) for stream in self._streams]

    def load_state_dict(self, state: Sequence[Mapping[str, object]]) -> None:
        """Puts every stream back to where `state_dict` found it."""
        for stream, saved in zip(self._streams, state, strict=True):
            stream.bit_generator.state = saved
