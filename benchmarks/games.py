"""The toy Markov game in yardsticks of the same minute: a follower's solve for ten runs, and an outer iteration.

Targets: at most 0.02 for the solve, cold, and at most 0.1 per run for the default outer iteration, ten runs stacked.

Run: python benchmarks/games.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import gymnasium as gym
import numpy as np
import torch
from yardstick import yardstick

from bilevel_envs import BilevelWrapper
from leaders import BCHG

RUNS, ROUNDS = 10, 9


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    for variant in ("R1", "R2"):
        env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", variant=variant))
        leader = BCHG(env, runs=RUNS).learn(50)
        models = [env.model(rng.dirichlet(np.ones(2), (RUNS, 3))) for _ in range(20)]
        env.follower.best_response(models[0], env.preferences)
        solves, iterations = [], []
        for _ in range(ROUNDS):
            unit = yardstick(rng)
            started = time.perf_counter()
            for model in models:
                env.follower.best_response(model, env.preferences)
            solves.append((time.perf_counter() - started) / len(models) / unit)
            started = time.perf_counter()
            leader.learn(50)
            iterations.append((time.perf_counter() - started) / 50 / RUNS / unit)
        print(
            f"{variant}: a cold solve for {RUNS} runs {np.median(solves):.4f} yardsticks "
            f"({min(solves):.4f} to {max(solves):.4f}); an outer iteration {np.median(iterations):.4f} per run "
            f"({min(iterations):.4f} to {max(iterations):.4f})"
        )


if __name__ == "__main__":
    main()
