"""What a state that everything leads to costs the solvers: a frozen lake of 70 x 70 cells, with and without one.

The walker slips to either side a third of the time each. "sink": every step ends in an absorbing state with
probability 0.01. "restart": every step leads back to the start with probability 0.01, and from there to any cell.
Prints seconds for the soft-optimal response and for one solve each way, and the ratio to the lake without a hub, which
should be at most 5.

Run: python benchmarks/hub_state.py [cells per side]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from bilevel_envs import Preferences, TabularModel
from bilevel_envs.followers import SoftValueIteration

PREFERENCES = Preferences(0.99, 0.99, 0.05)


def main() -> None:
    torch.set_num_threads(1)
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 70
    base: list[float] = []
    for hub in ("none", "sink", "restart"):
        model = lake(side, hub)
        seconds = timed(model)
        base = base or seconds
        band = model.structure.stepping.band
        print(f"{hub}: {model.states} states, width {band.width}, border {band.border}")
        for name, now, before in zip(("response", "resolvent", "its transpose"), seconds, base, strict=True):
            print(f"  {name}: {now:.3f} s, {now / before:.2f} times that without a hub")


def lake(side: int, hub: str) -> TabularModel:
    """The lake's tables; with a hub, state side² is the sink, or state 0 the restart."""
    cells = np.arange(side * side).reshape(side, side)
    around = [
        np.roll(np.pad(cells, 1, "edge"), turn, (0, 1))[1:-1, 1:-1] for turn in ((0, 1), (1, 0), (0, -1), (-1, 0))
    ]
    states = side * side + (hub == "sink")
    transition = torch.zeros(1, states, 4, states, dtype=torch.float64)
    table, at = transition[0].numpy(), cells.ravel()
    for action in range(4):
        for slip in (-1, 0, 1):
            np.add.at(table, (at, action, around[(action + slip) % 4].ravel()), 1 / 3)
    if hub == "sink":
        table[at] *= 0.99
        table[:, :, -1] += 0.01
        table[-1, :, -1] = 1.0
    elif hub == "restart":
        table *= 0.99
        table[:, :, 0] += 0.01
        table[0] = 1 / states
    reward = torch.from_numpy(np.random.default_rng(0).normal(size=(1, states, 4)))
    return TabularModel(transition, torch.full((1, states), 1 / states).double(), reward, reward)


def timed(model: TabularModel) -> list[float]:
    """Seconds of the response and of a solve in both directions, the best of three each."""
    best = SoftValueIteration().best_response(model, PREFERENCES)  # compiles, and orders the states
    y = model.initial

    def solved(transpose: bool) -> Callable[[], object]:
        return lambda: model.resolvent(best.policy.probs, 0.99, y, transpose=transpose)

    work = (lambda: SoftValueIteration().best_response(model, PREFERENCES), solved(False), solved(True))
    seconds = []
    for job in work:
        spent = []
        for _ in range(3):
            started = time.perf_counter()
            job()
            spent.append(time.perf_counter() - started)
        seconds.append(min(spent))
    return seconds


if __name__ == "__main__":
    main()
