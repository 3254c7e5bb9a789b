"""Python's, NumPy's and torch's global random streams, kept apart for environments that draw from them."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch

StreamStates: TypeAlias = tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]


def streams_now() -> StreamStates:
    """The states of all three."""
    return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002


def put_back(state: StreamStates) -> None:
    """Goes on from states that `streams_now` gave."""
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])


def same_streams(one: StreamStates, other: StreamStates) -> bool:
    """Whether nothing was drawn or seeded between two states."""
    mine, yours = one[1]["state"], other[1]["state"]
    numpy = mine["pos"] == yours["pos"] and np.array_equal(mine["key"], yours["key"])
    return one[0] == other[0] and numpy and torch.equal(one[2], other[2])


class GlobalStreams:
    """States of the global streams for one environment; with `with`, what is drawn inside changes nothing outside.

    Args:
      seed: where they begin.
    """

    def __init__(self, seed: int) -> None:
        self._outside: StreamStates = streams_now()
        self._own: StreamStates = self._outside
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begins anew."""
        with self:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)

    def __enter__(self) -> None:
        self._outside = streams_now()
        put_back(self._own)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = streams_now()
        put_back(self._outside)
