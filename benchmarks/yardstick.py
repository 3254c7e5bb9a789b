"""The unit in which speeds are quoted: 500 soft Bellman sweeps of ten four-rooms-sized tables, in plain NumPy."""

from __future__ import annotations

import time

import numpy as np


def yardstick(rng: np.random.Generator) -> float:
    """Seconds for one yardstick, now, on this machine (47 ms on a quiet one)."""
    v, p = rng.random((10, 104)), rng.random((104, 416))
    started = time.perf_counter()
    for _ in range(500):
        q = (v @ p).reshape(10, 104, 4)
        top = q.max(-1, keepdims=True)
        np.log(np.exp(q - top).sum(-1)) + top[..., 0]
    return time.perf_counter() - started
