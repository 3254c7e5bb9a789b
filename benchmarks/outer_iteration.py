"""Cost of one outer iteration of BC-HG in the four rooms, 10 runs at batch 100, in yardsticks of the same minute.

Target: at most 0.2 (the published JAX code, 10 seeds vmapped: 3.5). The iteration includes the exact leader value and
its row in the history.

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
            leader = BCHG(BilevelWrapper(gym.make("BiLevel/FourRooms-v0", beta=beta)), preset=preset, runs=10).learn(
                300
            )
            ratios, seconds = [], []
            for _ in range(ROUNDS):
                unit = yardstick(rng)
                started = time.perf_counter()
                leader.learn(ITERATIONS)
                seconds.append((time.perf_counter() - started) / ITERATIONS)
                ratios.append(seconds[-1] / unit)
            print(
                f"β {beta:g}, preset {preset}: {np.median(ratios):.3f} yardsticks "
                f"(min {min(ratios):.3f}, max {max(ratios):.3f}; {1e3 * np.median(seconds):.2f} ms)"
            )
            if "--profile" in sys.argv:
                profile = cProfile.Profile()
                profile.runcall(leader.learn, 200)
                pstats.Stats(profile).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
