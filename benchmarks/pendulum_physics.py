"""A pendulum's design by several leaders, at equal environment steps of leader and agent, on a known truth.

World and agent are those of `examples/real/pendulum_physics.py`; BC-HG and Naive-PGD learn the dynamics. The objective
at θ is that of the agent's soft optimum, solved on a grid (`tests/pendulum.py`). What the data file holds is not run
again.

Run: python benchmarks/pendulum_physics.py [--leaders bchg ...] [--seeds 0 1 2]   (up to ten minutes a run on one core)
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
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

from benchmarks.seeds import told  # noqa: E402
from tests.pendulum import led_pendulum, solved  # noqa: E402

STEPS = {"learning_rate": 0.15, "learning_rate_decay": 0.95}
LEADERS = {
    "bchg": lambda env, seed: BCHG(env, seed=seed, batch_size=2_000, dynamics="learnt", **STEPS),
    "cmaes": lambda env, seed: CMAES(env, seed=seed, episodes=10, population=6),
    "zeroth-order": lambda env, seed: ZerothOrder(env, seed=seed, episodes=10, **STEPS),
    "naive-pgd": lambda env, seed: NaivePGD(env, seed=seed, batch_size=2_000, dynamics="learnt", **STEPS),
}
COMPARED = (114_000, 200_000)  # steps of both at which the table reads J_L; only BC-HG goes on beyond the first
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
            for seed in self.seeds:
                key = f"{leader}; {seed}"
                if key not in self._kept():
                    found = led(leader, seed)
                    self.out.write_text(json.dumps(self._kept() | {key: found}, indent=1) + "\n")  # others may write
                    print(key, found, flush=True)
        self.out.with_suffix(".md").write_text(table(self._kept()))

    def _kept(self) -> dict[str, dict]:
        return json.loads(self.out.read_text()) if self.out.exists() else {}


def led(name: str, seed: int) -> dict[str, object]:
    """One run: designs and steps of both on the way, exact objectives, and CPU seconds without those of the truth."""
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
    leader = LEADERS[name](led_pendulum(agent), seed)
    designs, steps, began = [leader.theta], [0], time.process_time()
    for mark in MARKS[: None if name == "bchg" else MARKS.index(COMPARED[0]) + 1]:
        while (spent := _spent(leader, agent)) < mark:
            leader.learn(1)
        designs.append(leader.theta)
        steps.append(spent)
    seconds = time.process_time() - began
    return {
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
    return told([run["objective"][int(np.argmax(np.array(run["steps"]) >= at))] for run in runs], 1)


if __name__ == "__main__":
    tyro.cli(Pendulum).run()
