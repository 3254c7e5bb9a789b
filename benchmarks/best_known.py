"""Best known values against five seeds of `leaders.exact.multi_start`.

Writes the table of `docs/best_known.md`; what the data file holds is not run again.

Run: python benchmarks/best_known.py   (a quarter of an hour on one core)
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from leaders import exact

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import Record  # noqa: E402

SEEDS = 5
ENVS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "`TollBridge`": ("TollBridge", {}, {}),
    "`FourRooms`, β = 1e-3": ("FourRooms", {"beta": 1e-3}, {}),
    "`FourRooms`, β = 3e-3": ("FourRooms", {"beta": 3e-3}, {}),
    "`FourRooms`, β = 5e-3": ("FourRooms", {"beta": 5e-3}, {}),
    "`Warehouse`": ("Warehouse", {}, {}),
    "`BuildingThermalControl`": ("BuildingThermalControl", {}, {}),
    "`ToyMarkovGame`, R1": ("ToyMarkovGame", {"variant": "R1"}, {}),
    "`ToyMarkovGame`, R2": ("ToyMarkovGame", {"variant": "R2"}, {}),
    "`BilevelLQR`": ("BilevelLQR", {}, {"draws": 64, "schedule": ((16, 40), (2, 80)), "learning_rate": (0.5, 0.1)}),
    "`TaxDesign-small`": (
        "TaxDesign-small",
        {},
        {"draws": 32, "schedule": ((16, 20), (4, 40)), "learning_rate": (0.5, 0.1)},
    ),
    "`TaxDesign`": ("TaxDesign", {}, {"draws": 16, "schedule": ((8, 15), (2, 30)), "learning_rate": (0.5, 0.1)}),
}


@dataclass
class Args:
    """Where the data go."""

    out: Path = ROOT / "docs" / "data" / "best_known.json"


def searched(name: str) -> dict[str, Any]:
    """What five seeds found, beside what is recorded."""
    env_id, arguments, how = ENVS[name]
    env = gym.make(f"BiLevel/{env_id}-v0", **arguments)
    recorded: Any = env.unwrapped.best_known  # type: ignore[attr-defined]
    began = time.process_time()
    found = [exact.multi_start(env, seed=seed, **how) for seed in range(SEEDS)]
    return {
        "recorded": float(recorded),
        "proof": recorded.proof,
        "values": [one.value for one in found],
        "evaluations": int(np.median([one.evaluations for one in found])),
        "seconds": (time.process_time() - began) / SEEDS,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """By environment: the recorded value, and how far below it the worst and the best seed end."""
    lines = ["| environment | recorded | proof | worst and best of five seeds | evaluations | CPU s | arguments |"]
    lines.append("|---" * 7 + "|")
    for name, (_, _, how) in ENVS.items():
        one = found[name]
        best = one["recorded"]
        worst, nearest = (f"{(value - best) / abs(best):+.4%}" for value in (min(one["values"]), max(one["values"])))
        arguments = "`" + ", ".join(f"{key}={value}" for key, value in how.items()) + "`" if how else ""
        cells = [f"{best:.6f}", f"`{one['proof']}`", f"{worst}, {nearest}", f"{one['evaluations']:,}"]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{one['seconds']:.0f}", arguments]) + " |")
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    torch.set_num_threads(1)
    record = Record(args.out)
    for name in ENVS:
        record.get(name, lambda name=name: searched(name))
    record.table(table(record.found))


if __name__ == "__main__":
    main(tyro.cli(Args))
