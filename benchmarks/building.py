"""Building thermal control: an outer iteration of BC-HG against the published critic fit, and against the zones.

The yardstick is what the published code does in every outer iteration of one run: 5,000 full-batch Adam steps of a
6-64-64-1 network on 10,000 transitions, timed in this very run with one thread. Target: our whole iteration, follower
and exact value included, below 1 % of it.

Run: python benchmarks/building.py [--zones 4 8 16 32] [--iterations 200] [--steps 5000]
Writes building.png and building.md beside this file.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.temporal_differences import PUBLISHED_FIT
from leaders import BCHG
from leaders.critics import NetworkCritic
from leaders.experiments import plots

HERE = Path(__file__).parent
ENV = "BiLevel/BuildingThermalControl-v0"


def published_fit(steps: int) -> float:
    """Seconds for the published critic fit, measured over `steps` of its 5,000 steps."""
    env = BilevelWrapper(gym.make(ENV))
    theta = env.problem.default_theta[None]
    best = env.best_response(theta)
    batch = env.rollout(theta, best, Noise([0]), rows=10, horizon=1_000)
    critic = NetworkCritic(0.9, replace(PUBLISHED_FIT, steps=steps))
    started = time.perf_counter()
    critic.fit(batch, best, None, Noise([0]))
    return (time.perf_counter() - started) * PUBLISHED_FIT.steps / steps


def iteration(gradient: str, runs: int, count: int = 20) -> float:
    """Seconds per outer iteration and run at 10,000 transitions."""
    leader = BCHG(BilevelWrapper(gym.make(ENV)), runs=runs, batch_size=10_000, gradient=gradient).learn(3)
    started = time.perf_counter()
    leader.learn(count)
    return (time.perf_counter() - started) / count / runs


def ring(zones: int, iterations: int) -> tuple[float, np.ndarray, int]:
    """Median seconds per iteration of a whole run with the default batch, its values, and that batch."""
    leader = BCHG(BilevelWrapper(gym.make(ENV, zones=zones)))
    seconds = []
    for _ in range(iterations):
        started = time.perf_counter()
        leader.learn(1)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)), leader.history["leader_value"][:, 0], leader.estimator_config.batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zones", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--steps", type=int, default=PUBLISHED_FIT.steps)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| outer iteration of one run, 10,000 transitions | seconds | share of the published critic fit |"]
    lines += ["|---|---|---|"]
    before = {(k, r): iteration(k, r) for k in ("analytic", "pathwise", "score") for r in (1, 10)}
    unit = published_fit(arguments.steps)
    lines.append(f"| published critic fit alone | {unit:.1f} | 1 |")
    for (gradient, runs), seconds in before.items():
        again = iteration(gradient, runs)
        cost = (seconds + again) / 2  # once before and once after the yardstick
        stacked = f", {runs} runs stacked" if runs > 1 else ""
        lines.append(f'| BC-HG, gradient="{gradient}"{stacked} | {cost:.3f} | {cost / unit:.3%} |')
    lines += [
        "",
        "| zones | leader parameters | batch | median seconds per iteration | J_L at the start | at the end |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    costs = []
    for zones in arguments.zones:
        seconds, value, batch = ring(zones, arguments.iterations)
        costs.append(seconds)
        lines.append(f"| {zones} | {2 * zones} | {batch:,} | {seconds:.3f} | {value[0]:.1f} | {value[-1]:.1f} |")
        print(lines[-1], flush=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(arguments.zones, costs, "o-")
    axes.set_xticks(arguments.zones, [str(zones) for zones in arguments.zones], minor=False)
    axes.set_xlabel("zones (leader parameters: twice as many)")
    axes.set_ylabel("seconds per outer iteration, median")
    axes.set_title(f"BC-HG, default batch, {arguments.iterations} iterations", fontsize=11)
    axes.grid(alpha=0.25, which="both")
    plots.save(figure, HERE / "building.png")
    (HERE / "building.md").write_text("# Building thermal control: cost\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
