"""What restarts, learning-rate adaptation and probes bring CMA-ES at equal environment steps.

The value is exact, at the θ in force when a run has spent the budget. Writes the table that `docs/estimators.md`
includes.

Run: python benchmarks/cma_es.py [--steps 40000] [--seeds 10] [--out docs/data/cma_es.md]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper
from leaders import CMAES, exact

ROOT = Path(__file__).parents[1]
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "TollBridge": ("BiLevel/TollBridge-v0", {}),
    "FourRooms, β = 5e-3": ("BiLevel/FourRooms-v0", {"beta": 5e-3}),
    "BuildingThermalControl": ("BiLevel/BuildingThermalControl-v0", {}),
    "TaxDesign-small": ("BiLevel/TaxDesign-small-v0", {}),
}
FORMS: dict[str, dict[str, Any]] = {
    "neither": {"restarts": "none", "lr_adapt": False},
    "lr_adapt": {"restarts": "none", "lr_adapt": True},
    "restarts": {"restarts": "bipop", "lr_adapt": False},
    "both": {"restarts": "bipop", "lr_adapt": True},
    "restarts, 30 probes": {"restarts": "bipop", "lr_adapt": False, "probes": 30},
    "both, 30 probes": {"restarts": "bipop", "lr_adapt": True, "probes": 30},
}


@dataclass
class Args:
    """What is run."""

    steps: int = 40_000
    seeds: int = 10
    out: Path = ROOT / "docs" / "data" / "cma_es.md"


def values(env: BilevelWrapper, form: dict[str, Any], steps: int, seeds: int) -> np.ndarray:
    """J_L of each run at the θ in force when it had spent so many environment steps, [seeds]."""
    leader = CMAES(env, runs=seeds, evaluate_every=1_000_000, **form)
    found: list[np.ndarray | None] = [None] * seeds
    while any(theta is None for theta in found):
        leader.learn(1)
        spent = leader.history.last("env_steps")
        found = [
            leader.theta[run] if theta is None and spent[run] >= steps else theta for run, theta in enumerate(found)
        ]
    return np.array([exact.objective(env, theta) for theta in found])


def main(args: Args) -> None:
    torch.set_num_threads(1)
    lines = [
        f"Leader's value after {args.steps:,} environment steps of a run, mean ± standard error and smallest of",
        f"{args.seeds} seeds (`python benchmarks/cma_es.py`):",
        "",
        "| world | start | " + " | ".join(FORMS) + " |",
        "|---|---|" + "---|" * len(FORMS),
    ]
    for world, (name, arguments) in WORLDS.items():
        env = BilevelWrapper(gym.make(name, **arguments))
        start = np.mean([exact.objective(env, theta) for theta in CMAES(env, runs=args.seeds).theta])
        cells = []
        for form in FORMS.values():
            found = values(env, form, args.steps, args.seeds).ravel()
            error = found.std(ddof=1) / len(found) ** 0.5
            cells.append(f"{found.mean():.4g} ± {error:.2g} ({found.min():.4g})")
            print(world, cells[-1], flush=True)
        lines.append(f"| {world} | {start:.4g} | " + " | ".join(cells) + " |")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
