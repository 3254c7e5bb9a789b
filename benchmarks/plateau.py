"""Where leaders end in the four rooms that begin at θ ≈ 0: on the plateau J_L ≈ 0, or beyond it.

Published dynamics, ten runs, batches of 100; the figure is the mean of the leader's exact value over the last 100 of
3,000 iterations, for the exact gradient the value after 2,000. Writes the table of `docs/four_rooms_plateau.md`; what
the data file holds is not run again.

Run: python benchmarks/plateau.py   (a quarter of an hour on one core)
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from bilevel_envs import BilevelWrapper
from leaders import BCHG, ExactGradient
from leaders.leader import Leader

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import Record  # noqa: E402

BETAS = (1e-3, 3e-3, 5e-3)
NOISY = {
    "exploration": "none",
    "critic": "expected_sarsa",
    "cross_fit": False,
    "tail": "keep",
    "control_variate": "none",
    "learning_rate": 0.02,
}
LEADERS: dict[str, tuple[type[Leader], dict[str, Any], int]] = {
    "`ExactGradient`, Adam, step 0.02": (ExactGradient, {"learning_rate": 0.02}, 2_000),
    '`BCHG(exploration="none")`': (BCHG, {"exploration": "none", "batch_size": 100, "runs": 10}, 3_000),
    "noisy settings": (BCHG, NOISY | {"batch_size": 100, "runs": 10}, 3_000),
    '`BCHG(preset="paper")`': (BCHG, {"preset": "paper", "batch_size": 100, "runs": 10}, 3_000),
}


@dataclass
class Args:
    """Where the data go."""

    out: Path = ROOT / "docs" / "data" / "plateau.json"


def ended(name: str, beta: float) -> list[float]:
    """Mean value of each run over the last 100 iterations; of the exact gradient the last."""
    make, settings, iterations = LEADERS[name]
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", beta=beta))
    value = make(env, seed=0, **settings).learn(iterations).history["leader_value"]
    return value[-1 if make is ExactGradient else -100 :].mean(0).round(4).tolist()


def table(found: dict[str, list[float]]) -> str:
    """By leader and β: mean over runs ± standard error."""
    lines = ["| leader | " + " | ".join(f"β = {beta:g}" for beta in BETAS) + " |", "|---|---|---|---|"]
    for name in LEADERS:
        cells = []
        for beta in BETAS:
            values = found[key_of(name, beta)]
            error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{error}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    best = [gym.make("BiLevel/FourRooms-v0", beta=beta).unwrapped.best_known for beta in BETAS]
    return "\n".join([*lines, "| best known | " + " | ".join(f"{value:.3f}" for value in best) + " |"]) + "\n"


def key_of(name: str, beta: float) -> str:
    """Name of a measurement in the data file."""
    return f"{name}; β = {beta:g}"


def main(args: Args) -> None:
    torch.set_num_threads(1)
    record = Record(args.out)
    for name in LEADERS:
        for beta in BETAS:
            record.get(key_of(name, beta), lambda name=name, beta=beta: ended(name, beta))
    record.table(table(record.found))


if __name__ == "__main__":
    main(tyro.cli(Args))
