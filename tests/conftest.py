"""Shared by all tests: one thread, and the environments in common use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import SoftValueIteration
from tests.helpers import wrapped_env

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: a long one that begins last keeps one of the two processes waiting for it."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def make() -> Callable[..., BilevelWrapper]:
    """`make("FourRooms", beta=1e-3)`: the environment with a soft-optimal follower."""

    def wrapped(name: str, **kwargs: Any) -> BilevelWrapper:
        return wrapped_env(name, SoftValueIteration(), **kwargs)

    return wrapped


@pytest.fixture
def blocked_corridor() -> np.ndarray:
    """Raw four-rooms logits with most of the budget on the cell before the top corridor: the follower is torn."""
    from bilevel_envs.envs.four_rooms import STATE

    raw = np.zeros(105)
    raw[STATE[3, 5]] = 5.5
    return raw
