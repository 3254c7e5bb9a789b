"""A pendulum's design by several leaders, at equal environment steps of leader and agent, on a known truth.

World and agent are those of `examples/real/pendulum_physics.py`; BC-HG and Naive-PGD learn the dynamics. The objective
at θ is that of the agent's soft optimum, solved on a grid (`tests/pendulum.py`). What the data file holds is not run
again.

Run: python benchmarks/pendulum_physics.py [--leaders bchg ...] [--seeds 0 1 2]   (up to ten minutes a run on one core)
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from bilevel_envs.followers import SB3Follower
from leaders import BCHG, CMAES, NaivePGD, ZerothOrder
from leaders.leader import Leader

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the world is that of the tests

from benchmarks.record import Record  # noqa: E402
from benchmarks.seeds import with_interval  # noqa: E402
from bilevel_envs.core.checks import check_choice  # noqa: E402
from tests.pendulum import led_pendulum, solved  # noqa: E402

STEPS = {"learning_rate": 0.15, "learning_rate_decay": 0.97}
LEADERS = {
    "bchg": (BCHG, {"batch_size": 2_000, "dynamics": "learnt"} | STEPS),
    "cmaes": (CMAES, {"episodes": 10, "population": 6}),
    "zeroth-order": (ZerothOrder, {"episodes": 10} | STEPS),
    "naive-pgd": (NaivePGD, {"batch_size": 2_000, "dynamics": "learnt"} | STEPS),
}
COMPARED = (114_000, 200_000)  # steps of both at which the table reads J_L
MARKS = (*range(32_000, 200_000, 20_500), 200_000)  # steps of both at which designs are kept


@dataclass
class Pendulum:
    """Runs what is missing and writes data and table."""

    leaders: tuple[str, ...] = tuple(LEADERS)
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = ROOT / "docs" / "data" / "pendulum_physics.json"

    def run(self) -> None:
        """Run by run."""
        torch.set_num_threads(1)
        for leader in self.leaders:
            check_choice(leader, LEADERS, "leaders")
        record = Record(self.out)
        for leader in self.leaders:
            settings = LEADERS[leader][1]
            for seed in self.seeds:
                record.get(
                    f"{leader}; {seed}",
                    lambda leader=leader, seed=seed: run_of(leader, seed),
                    valid=lambda found, settings=settings: found["settings"] == settings,
                )
        record.table(table(record.found))


def run_of(name: str, seed: int) -> dict[str, object]:
    """One run: designs and steps of both on the way, exact objectives, CPU seconds without those of the truth."""
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
    kind, settings = LEADERS[name]
    leader: Leader = kind(led_pendulum(agent), seed=seed, **settings)
    designs, steps, began = [leader.theta], [0], time.process_time()
    for mark in MARKS:
        while (spent := _spent(leader, agent)) < mark:
            leader.learn(1)
        designs.append(leader.theta)
        steps.append(spent)
    seconds = time.process_time() - began
    return {
        "settings": settings,
        "steps": steps,
        "theta": [theta.round(4).tolist() for theta in designs],
        "objective": [round(solved(*theta).objective, 3) for theta in designs],
        "seconds": round(seconds),
    }


def _spent(leader: Leader, agent: SB3Follower) -> int:
    """Environment steps of both so far."""
    return int(leader.history["env_steps"][-1, 0] + agent.spent) if leader.progress.iterations else 0


def table(runs: dict[str, dict]) -> str:
    """By leader: J_L at the start and after both numbers of steps."""
    lines = ["| leader | start | " + " | ".join(f"J_L after {at:,} steps" for at in COMPARED) + " | CPU s |"]
    lines += ["|---" * (len(COMPARED) + 3) + "|"]
    for leader in LEADERS:
        mine = [run for key, run in runs.items() if key.split("; ")[0] == leader]
        if mine:
            cells = [f"{mine[0]['objective'][0]:.1f}", *(_after(mine, at) for at in COMPARED)]
            cells += [f"{np.median([run['seconds'] for run in mine]):.0f}"]
            lines.append(f"| {leader} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _after(runs: list[dict], at: int) -> str:
    """J_L of the first design that took so many steps; nothing for runs that ended before."""
    if any(run["steps"][-1] < at for run in runs):
        return ""
    return with_interval([run["objective"][int(np.argmax(np.array(run["steps"]) >= at))] for run in runs], 1)


if __name__ == "__main__":
    tyro.cli(Pendulum).run()
