"""A pendulum's design led by BC-HG with learnt dynamics, 200,000 steps of leader and agent, on a known truth.

World and leader are those of `examples/real/pendulum_physics.py`; the objective at θ is that of the agent's soft
optimum, solved on a grid (`tests/pendulum.py`). Seeds that the data file holds are not run again.

Run: python benchmarks/pendulum_physics.py [--seeds 0 1 2] [--iterations 46]   (some ten minutes a seed on an idle core)
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from bilevel_envs.followers import SB3Follower
from leaders import BCHG

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the world is that of the tests

from tests.pendulum import led_pendulum, solved  # noqa: E402

EVERY = 5  # iterations from one exact objective to the next


@dataclass
class Pendulum:
    """Runs what is missing and writes data and table."""

    seeds: tuple[int, ...] = (0, 1, 2)
    iterations: int = 46
    out: Path = ROOT / "docs" / "data" / "pendulum_physics.json"

    def run(self) -> None:
        """Seed by seed."""
        torch.set_num_threads(1)
        for seed in self.seeds:
            if str(seed) not in self._kept():
                found = led(seed, self.iterations)
                kept = self._kept() | {str(seed): found}  # others may have written
                self.out.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
                print(seed, found, flush=True)
        self.out.with_suffix(".md").write_text(table(self._kept()))

    def _kept(self) -> dict[str, dict]:
        return json.loads(self.out.read_text()) if self.out.exists() else {}


def led(seed: int, iterations: int) -> dict[str, object]:
    """One run: designs, their exact objectives, steps of both, and CPU seconds without those of the truth."""
    agent = SB3Follower(
        "SoftDQN",
        1_500,
        first_steps=6_000,
        seed=seed,
        learning_rate=2e-3,
        train_freq=4,
        gradient_steps=2,
        batch_size=128,
        buffer="keep",
        buffer_size=8_000,
        target_update_interval=200,
    )
    leader = BCHG(led_pendulum(agent), seed=seed, batch_size=2_000, learning_rate=0.2, dynamics="learnt")
    designs, began = [leader.theta], time.process_time()
    while leader.progress.iterations < iterations:
        designs.append(leader.learn(min(EVERY, iterations - leader.progress.iterations)).theta)
    seconds = time.process_time() - began
    return {
        "steps": int(leader.history["env_steps"][-1, 0] + agent.spent),
        "theta": [theta.round(4).tolist() for theta in designs],
        "objective": [round(solved(*theta).objective, 3) for theta in designs],
        "seconds": round(seconds),
    }


def table(runs: dict[str, dict]) -> str:
    """A line for each seed."""
    lines = ["| seed | steps of both | J_L at the start | best on the way | J_L at the end | CPU s |", "|---" * 6 + "|"]
    for seed, run in runs.items():
        values = run["objective"]
        lines.append(
            f"| {seed} | {run['steps']:,} | {values[0]:.1f} | {max(values):.1f} | {values[-1]:.1f} | {run['seconds']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(Pendulum).run()
