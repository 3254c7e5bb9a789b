"""The leader that learns the world in the four rooms, and what it loses without each of its parts.

Every row of the data file is a run: the share of the best known value that it ends with, the environment steps after
which it passes the published value, steps, follower solves and seconds. Runs that are there already are not repeated.
The table is what `docs/exploration.md` includes.

Run: python benchmarks/exploration.py [--seeds 0 ... 9] [--variants default no-optimism ...]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper
from leaders import MBHG, exact

DATA = Path(__file__).parents[1] / "docs" / "data"
PUBLISHED = {1e-3: 0.668, 3e-3: 0.548, 5e-3: 1.333}  # arXiv:2603.14867, Figure 2, after 1,000,000 steps
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no-optimism": {"optimism": False},
    "no-vertices": {"vertices": False},
    "no-draws": {"draws": 0},
    "no-equations": {"equations": False},
    "no-asking": {"ask_every": 0},
}
NAMES = {
    "default": "`MBHG()`",
    "no-optimism": "`optimism=False`",
    "no-vertices": "`vertices=False`",
    "no-draws": "`draws=0`",
    "no-equations": "`equations=False`",
    "no-asking": "`ask_every=0`",
}


@dataclass
class Exploration:
    """Runs what is missing and writes data and table."""

    seeds: tuple[int, ...] = tuple(range(10))
    variants: tuple[str, ...] = tuple(VARIANTS)
    betas: tuple[float, ...] = tuple(PUBLISHED)
    iterations: int = 24
    """of two batches of 500 transitions each"""
    out: Path = DATA / "exploration.json"
    figure: bool = False
    """draw the landscape and where the budget goes, and nothing else"""

    def run(self) -> None:
        """Runs, run by run."""
        torch.set_num_threads(1)
        if self.figure:
            draw(DATA.parent / "images" / "exploration.png")
            return
        runs = json.loads(self.out.read_text()) if self.out.exists() else {}
        for variant in self.variants:
            for seed in self.seeds:
                for beta in self.betas:
                    key = f"{variant} {beta:g} {seed}"
                    if key not in runs:
                        runs[key] = one(variant, beta, seed, self.iterations)
                        self.out.write_text(json.dumps(runs, indent=1) + "\n")
                        print(key, runs[key], flush=True)
        self.out.with_suffix(".md").write_text(table(runs))
        print(table(runs))


def one(variant: str, beta: float, seed: int, iterations: int) -> dict[str, float | None]:
    """A run's figures."""
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", beta=beta))
    started = time.process_time()
    leader = MBHG(env, seed=seed, **VARIANTS[variant]).learn(iterations)
    seconds = time.process_time() - started
    value, steps = leader.history["leader_value"][:, 0], leader.history["env_steps"][:, 0]
    passed = steps[value >= PUBLISHED[beta]]
    assert env.best_known is not None
    return {
        "share": round(exact.objective(env, leader.theta) / float(env.best_known), 5),
        "passed": int(passed[0]) if len(passed) else None,
        "steps": int(steps[-1]),
        "solves": int(leader.history["follower_solves"][-1, 0]),
        "seconds": round(seconds, 1),
    }


def draw(path: Path, beta: float = 5e-3) -> None:
    """J_L with all of the budget on one cell, for each cell; the best θ known; and what a run of MBHG deployed."""
    import matplotlib.pyplot as plt

    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", beta=beta))
    corners = torch.nn.functional.one_hot(torch.arange(104), 105)[:, :-1] * -0.2
    known = env.best_known
    assert known is not None
    leader, tried = MBHG(env, seed=0), []
    for _ in range(8):
        leader.learn(1)
        tried.append(leader.theta)
    panels = {
        "J_L, all of the budget on one cell": exact.objective(env, corners.double().numpy()),
        f"best θ known, J_L = {float(known):.2f}": -np.asarray(known.theta),
        f"MBHG after {int(leader.history['env_steps'][-1, 0]):,} steps": -tried[-1],
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        picture = axis.imshow(env.problem.grid(values), cmap="viridis")
        axis.set_facecolor("0.85")
        for letter, (row, column) in env.problem.landmarks.items():
            axis.text(column, row, letter, ha="center", va="center", color="white", weight="bold")
        axis.set_title(title, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
        figure.colorbar(picture, ax=axis, shrink=0.8)
    figure.savefig(path, dpi=110)


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Mean and worst shares by β, and what they cost."""
    lines = [
        "| | β = 1e-3 | 3e-3 | 5e-3 | passes the published value, median / worst | solves | seconds | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, name in NAMES.items():
        mine = {key: run for key, run in runs.items() if key.split()[0] == variant}
        if not mine:
            continue
        shares = [
            np.array([100 * run["share"] for key, run in mine.items() if float(key.split()[1]) == beta])
            for beta in PUBLISHED
        ]
        cells = [f"{found.mean():.1f} / {found.min():.1f} %" if len(found) else "" for found in shares]
        passed = np.array([np.inf if run["passed"] is None else run["passed"] for run in mine.values()])
        worst = "never" if np.isinf(passed.max()) else f"{passed.max():,.0f}"
        median = "never" if np.isinf(np.median(passed)) else f"{np.median(passed):,.0f}"
        solves, seconds = (np.median([run[name] for run in mine.values()]) for name in ("solves", "seconds"))
        runs_each = "/".join(str(len(found)) for found in shares)
        lines.append(
            f"| {name} | {' | '.join(cells)} | {median} / {worst} | {solves:,.0f} | {seconds:.0f} | {runs_each} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(Exploration).run()
