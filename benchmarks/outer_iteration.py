"""Cost of one outer iteration of BC-HG in the four rooms, 10 runs at batch 100, in yardsticks of the same minute.

Target for the published form: at most 0.05 (the published JAX code, 10 seeds vmapped: 3.5), and no more per run with
240 runs. The iteration includes the exact leader value and its row in the history. `outer_iteration.md` beside this
file says where the time goes.

Run: python benchmarks/outer_iteration.py [--profile]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for both sides; before NumPy loads its BLAS

import cProfile
import pstats
import sys
import time

import gymnasium as gym
import numpy as np
import torch
from yardstick import yardstick

from bilevel_envs import BilevelWrapper
from leaders import BCHG

ITERATIONS, ROUNDS = 100, 9


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for beta in (1e-3, 5e-3):
        for preset in (None, "paper"):
            measure(rng, beta, preset, 10, profiled="--profile" in sys.argv)
    measure(rng, 5e-3, "paper", 240)


def measure(rng: np.random.Generator, beta: float, preset: str | None, runs: int, profiled: bool = False) -> None:
    """Prints yardsticks per iteration, and per iteration and run."""
    iterations = max(10, ITERATIONS * 10 // runs)
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", beta=beta))
    leader = BCHG(env, preset=preset, runs=runs, exploration="none").learn(300)
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        unit = yardstick(rng)
        started = time.perf_counter()
        leader.learn(iterations)
        seconds.append((time.perf_counter() - started) / iterations)
        ratios.append(seconds[-1] / unit)
    print(
        f"β {beta:g}, preset {preset}, {runs} runs: {np.median(ratios):.3f} yardsticks, "
        f"{np.median(ratios) / runs:.5f} per run "
        f"(min {min(ratios):.3f}, max {max(ratios):.3f}; {1e3 * np.median(seconds):.2f} ms)"
    )
    if profiled:
        profile = cProfile.Profile()
        profile.runcall(leader.learn, 200)
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
