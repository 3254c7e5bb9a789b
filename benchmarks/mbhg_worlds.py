"""MBHG, one setting, in every world with a truth to hold it against: optima, 600 exact gradient steps, users' worlds.

Every row of the data file is a run; runs that are there already are not repeated. `docs/exploration.md` includes the
table.

Run: python benchmarks/mbhg_worlds.py [--worlds toll ...] [--seeds 0 1 2]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro

from bilevel_envs import BilevelWrapper
from leaders import BCHG, MBHG, ExactGradient, exact

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.helpers import STRANGERS  # noqa: E402

ITERATIONS = 30  # of two batches of 500 transitions each
TAXES, RIVAL = 12, 60  # MBHG's and BC-HG's in tax design, of two batches and of one of 100,000
OPTIMA = {
    "toll bridge": ("BiLevel/TollBridge-v0", {}),
    "toy game, R1": ("BiLevel/ToyMarkovGame-v0", {"variant": "R1"}),
    "toy game, R2": ("BiLevel/ToyMarkovGame-v0", {"variant": "R2"}),
}


def led(make: Callable[[], BilevelWrapper], seed: int, exact_steps: int) -> dict[str, float]:
    """MBHG against exact gradient steps from the same start."""
    env = make()
    truth = ExactGradient(env, seed=seed).learn(exact_steps)
    return one(env, seed, float(np.ravel(exact.objective(env, truth.theta))[0]))


def one(env: BilevelWrapper, seed: int, reference: float, iterations: int = ITERATIONS) -> dict[str, float]:
    """Where a run begins, where it ends, and what it took."""
    started = time.process_time()
    leader = MBHG(env, seed=seed).learn(iterations)
    history = leader.history
    return {
        "start": float(history["leader_value"][0, 0]),
        "value": float(np.ravel(exact.objective(env, leader.theta))[0]),
        "reference": reference,
        "steps": int(history["env_steps"][-1, 0]),
        "solves": int(history["follower_solves"][-1, 0]),
        "seconds": round(time.process_time() - started, 1),
    }


def optimum(name: str, seed: int) -> dict[str, float]:
    """Against the best known value."""
    env_id, arguments = OPTIMA[name]
    env = BilevelWrapper(gym.make(env_id, **arguments))
    assert env.best_known is not None
    return one(env, seed, float(env.best_known))


def random_mdp(seed: int) -> dict[str, float]:
    """Against 600 exact gradient steps; world and leader have the same seed."""
    return led(lambda: BilevelWrapper(gym.make("BiLevel/RandomMDP-v0", seed=seed)), seed, 600)


def taxes(seed: int) -> dict[str, float]:
    """Against BC-HG's plain default after 2.5 times as many environment steps, both with the batches recommended."""
    env = BilevelWrapper(gym.make("BiLevel/TaxDesign-v0"))
    rival = BCHG(env, seed=seed).learn(RIVAL)
    return one(env, seed, float(np.ravel(exact.objective(env, rival.theta))[0]), TAXES)


MEASURES: dict[str, Callable[[int], dict[str, float]]] = (
    {name: lambda seed, name=name: optimum(name, seed) for name in OPTIMA}
    | {"RandomMDP": random_mdp}
    | {f"stranger: {name}": lambda seed, make=make: led(make, seed, 400) for name, make in STRANGERS.items()}
    | {"tax design": taxes}
)
SEEDS = {"RandomMDP": range(10)}
AGAINST = dict.fromkeys(OPTIMA, "best known value") | {
    "RandomMDP": "600 exact gradient steps",
    "tax design": "BC-HG, 2.5 times as many steps",
}


@dataclass
class Worlds:
    """Runs what is missing and writes data and table."""

    worlds: tuple[str, ...] = tuple(MEASURES)
    seeds: tuple[int, ...] = ()
    """default: 0, 1 and 2, RandomMDP 0 to 9"""
    out: Path = ROOT / "docs" / "data" / "mbhg_worlds.json"

    def run(self) -> None:
        """Runs, run by run."""
        torch.set_num_threads(1)
        runs = json.loads(self.out.read_text()) if self.out.exists() else {}
        for world in self.worlds:
            for seed in self.seeds or SEEDS.get(world, range(3)):
                key = f"{world}; {seed}"
                if key not in runs:
                    runs[key] = MEASURES[world](seed)
                    self.out.write_text(json.dumps(runs, indent=1) + "\n")
                    print(key, runs[key], flush=True)
        self.out.with_suffix(".md").write_text(table(runs))
        print(table(runs))


def table(runs: dict[str, dict[str, float]]) -> str:
    """Shares of what the reference wins from the same start, by world."""
    lines = [
        "| world | against | share of its gain: mean / worst | solves | seconds | runs |",
        "|---|---|---|---|---|---|",
    ]
    for world in MEASURES:
        mine = [run for key, run in runs.items() if key.split("; ")[0] == world]
        if not mine:
            continue
        shares = np.array([100 * (run["value"] - run["start"]) / (run["reference"] - run["start"]) for run in mine])
        solves, seconds = (np.median([run[name] for run in mine]) for name in ("solves", "seconds"))
        lines.append(
            f"| {world.removeprefix('stranger: ')} | {AGAINST.get(world, '400 exact gradient steps')} | "
            f"{shares.mean():.2f} / {shares.min():.2f} % | {solves:,.0f} | {seconds:.0f} | {len(mine)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(Worlds).run()
