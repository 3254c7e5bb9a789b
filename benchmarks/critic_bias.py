"""Bias and spread of BC-HG's training estimates in worlds of users, by who judges the batch.

Every row: 400 outer iterations at a fixed θ after 100 to warm up, against the exact hypergradient. Writes the table
that `docs/estimators.md` includes.

Run: python benchmarks/critic_bias.py [--estimates 400] [--out docs/data/critic_bias.md]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from leaders import BCHG, exact

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the worlds are those of the tests

from tests.helpers import STRANGERS, leader_at_fixed_theta, policy_at, training_estimates  # noqa: E402

WARM_UP = 100
BEFORE = ROOT / "docs" / "data" / "critic_bias_before.json"
JUDGES: dict[str, dict[str, Any]] = {
    "expected SARSA, own batch": {"critic": "expected_sarsa", "cross_fit": False, "rows": 10},
    "expected SARSA, cross-fitted": {"critic": "expected_sarsa"},
    "empirical (default)": {},
    "exact": {"critic": "exact"},
}


@dataclass
class Args:
    """What is run."""

    estimates: int = 400
    out: Path = ROOT / "docs" / "data" / "critic_bias.md"


def measured(env: Any, batch_size: int, count: int, settings: dict[str, Any]) -> tuple[float, float]:
    """‖mean − exact‖ and the standard deviation of an estimate, both relative to ‖exact‖."""
    theta = env.problem.default_theta
    leader = leader_at_fixed_theta(BCHG, env, policy_at(theta), batch_size=batch_size, **settings).learn(WARM_UP)
    truth, samples = exact.hypergradient(env, theta).flatten(), training_estimates(leader, count).reshape(count, -1)
    size = float(np.linalg.norm(truth))
    return float(np.linalg.norm(samples.mean(0) - truth)) / size, float(np.linalg.norm(samples.std(0, ddof=1))) / size


def main(args: Args) -> None:
    torch.set_num_threads(1)
    before = json.loads(BEFORE.read_text())
    lines = [
        f"Bias of the mean of {args.estimates} training estimates, in brackets the standard deviation of one, both",
        "relative to the length of the exact hypergradient (`python benchmarks/critic_bias.py`; a bias is known up",
        f"to its bracket over {args.estimates**0.5:.0f}). Before: the default of commit 0d96720 (400 estimates):",
        "",
        "| world | batch | before | " + " | ".join(JUDGES) + " |",
        "|---|---|---|" + "---|" * len(JUDGES),
    ]
    for world, make in STRANGERS.items():
        for batch_size in (100, 1000):
            pairs = [measured(make(), batch_size, args.estimates, settings) for settings in JUDGES.values()]
            was = before.get(f"{world}|{batch_size}")
            cells = ["" if pair is None else f"{pair[0]:.2f} ({pair[1]:.1f})" for pair in (was, *pairs)]
            lines.append(f"| {world} | {batch_size} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
