"""Every leader in every small environment, at equal budgets of environment steps and follower solves, ten seeds.

A leader takes its plain defaults and what the environment advises, nothing tuned. It goes on until either budget would
be exceeded; what counts is the exact value of the θ that it deployed in the last iteration within both. Runs are kept
in raw/, one file for a leader in an environment, with the command that made it; files that are there are not made
again, unless `--again` asks whether the same comes of them. The tables are made of these files alone.

Run: python benchmarks/leaderboard/leaderboard.py [--envs toll-bridge ...] [--leaders bchg ...] [--again] [--tables]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback

from bilevel_envs import BilevelWrapper
from leaders.algorithms.registry import LEADERS
from leaders.experiments.statistics import summary
from leaders.leader import Leader

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE, README = ROOT / "docs" / "data" / "leaderboard.md", ROOT / "README.md"
BEGIN, END = "<!-- leaderboard -->", "<!-- end of the leaderboard -->"
SEEDS = 10
SOLVES = 3_000
ENVS: dict[str, tuple[str, dict[str, Any], int]] = {  # id, arguments, environment steps
    "toll-bridge": ("BiLevel/TollBridge-v0", {}, 10_000),
    "four-rooms": ("BiLevel/FourRooms-v0", {"beta": 5e-3}, 300_000),
    "four-rooms, β = 1e-3": ("BiLevel/FourRooms-v0", {"beta": 1e-3}, 300_000),
    "random-mdp": ("BiLevel/RandomMDP-v0", {}, 25_000),
    "warehouse": ("BiLevel/Warehouse-v0", {}, 25_000),
    "toy-game, R1": ("BiLevel/ToyMarkovGame-v0", {"variant": "R1"}, 100_000),
    "toy-game, R2": ("BiLevel/ToyMarkovGame-v0", {"variant": "R2"}, 100_000),
    "lqr": ("BiLevel/BilevelLQR-v0", {}, 100_000),
    "building": ("BiLevel/BuildingThermalControl-v0", {}, 300_000),
}
ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in LEADERS if name != "hpgd"} | {
    f"hpgd, {variant}": ("hpgd", {"variant": variant}) for variant in ("oracle", "mc", "sa", "td")
}
LEFT_OUT = {
    "`TaxDesign-v0`, `TaxDesign-small-v0`": "an iteration draws the 100,000 steps that they advise, so that a budget "
    "for ten iterations is a million steps of each of ten seeds and of every leader; they are judged against long "
    "searches on the page of best known values",
    "`GuidedCartPole-v0`, `GuidedPendulum-v0`": "they have no model, so that the exact leader's value of a θ, which is "
    "what counts here, is not known",
}
INTERVALS = (
    "Intervals are 95 % percentile bootstraps over ten seeds; of so few, on normal scores, they cover the mean in "
    "about 89 % of cases."
)
TOLERANCE = 1e-6  # between the values of an entry and of its repetition
KNOWS = {"exact": "the model", "hpgd, oracle": "the model", "mbhg": "the follower's tables"}


class WithinBudget(BaseCallback):
    """Ends the training once no run can go on."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        history = self.model.history  # type: ignore[attr-defined]
        return bool(((history["env_steps"][-1] < self.steps) & (history["follower_solves"][-1] < SOLVES)).any())


@dataclass
class Leaderboard:
    """What is run."""

    envs: tuple[str, ...] = tuple(ENVS)
    leaders: tuple[str, ...] = tuple(ENTRIES)
    again: bool = False
    """repeat what is there instead, and end with status 1 unless the same comes of it; writes nothing"""
    tables: bool = False
    """make the tables of what is there, and run nothing"""

    def run(self) -> None:
        """Runs what is missing and writes the tables."""
        torch.set_num_threads(1)
        if self.again:
            return self.repeat()
        for env in self.envs if not self.tables else ():
            for leader in self.leaders:
                path = HERE / "raw" / f"{_file(env)}--{_file(leader)}.json"
                if not path.exists():
                    told = entry(env, leader)
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(json.dumps(told, indent=1) + "\n")
                    print(env, leader, told.get("values") or told.get("refused"), told.get("seconds"), flush=True)
        TABLE.write_text(tables())
        README.write_text(with_overview(README.read_text()))
        print(tables())

    def repeat(self) -> None:
        """Runs again those that are there, and says in which values they differ from the files.

        Raises:
          SystemExit: if any do, or if none of those asked for is there.
        """
        paths = [HERE / "raw" / f"{_file(env)}--{_file(leader)}.json" for env in self.envs for leader in self.leaders]
        there = [json.loads(path.read_text()) for path in paths if path.exists()]
        lines = [line for told in there for line in differences(told, entry(told["environment"], told["leader"]))]
        if lines or not there:
            raise SystemExit("\n".join(lines) or f"nothing to repeat: there is none of {', '.join(map(str, paths))}")
        print(f"{len(there)} of {len(there)} entries repeated, all values within {TOLERANCE:g}")


def differences(told: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Where an entry and its repetition differ, a line each."""
    name = f"{told['environment']}, {told['leader']}"
    if told.get("refused") or again.get("refused"):
        same = told.get("refused") == again.get("refused")
        return [] if same else [f"{name}: refused: {told.get('refused')} there, {again.get('refused')} now"]
    return [
        f"{name}: {column} of seed {seed}: {there} there, {now} now"
        for column in ("start", "values", "env_steps", "follower_solves")
        for seed, there, now in zip(told["seeds"], told[column], again[column], strict=True)
        if not abs(there - now) <= TOLERANCE
    ]


def _file(name: str) -> str:
    return name.replace(", ", "-").replace("β = ", "").replace(" ", "-")


def entry(env: str, leader: str) -> dict[str, object]:
    """One leader in one environment: what it reached in each seed and what it spent, or why it cannot be taken."""
    env_id, arguments, steps = ENVS[env]
    name, settings = ENTRIES[leader]
    world = BilevelWrapper(gym.make(env_id, **arguments))
    told: dict[str, object] = {
        "environment": env,
        "leader": leader,
        "command": f"python benchmarks/leaderboard/leaderboard.py --envs {env!r} --leaders {leader!r}",
        "version": version("bilevel-envs"),
        "budget": {"env_steps": steps, "follower_solves": SOLVES},
    }
    try:
        made: Leader = LEADERS[name](world, runs=SEEDS, seed=0, **settings)
    except (ValueError, TypeError) as error:
        return told | {"refused": str(error)}
    started = time.process_time()
    made.learn(SOLVES, callback=WithinBudget(steps))
    history = made.history
    spent = {name: np.asarray(history[name]) for name in ("env_steps", "follower_solves")}
    within = (spent["env_steps"] <= steps) & (spent["follower_solves"] <= SOLVES)
    last = within.sum(0) - 1  # of each run; counts only grow
    if (last < 0).any():
        return told | {"refused": f"one iteration takes {spent['env_steps'][0].max():,.0f} steps, more than the budget"}
    seeds = np.arange(SEEDS)
    return told | {
        "seeds": seeds.tolist(),
        "start": history["leader_value"][0].tolist(),
        "values": history["leader_value"][last, seeds].tolist(),
        "env_steps": spent["env_steps"][last, seeds].tolist(),
        "follower_solves": spent["follower_solves"][last, seeds].tolist(),
        "best_known": None if world.best_known is None else float(world.best_known),
        "seconds": round(time.process_time() - started, 1),
    }


def entries() -> list[dict[str, Any]]:
    """What the files hold, but for leaders that an environment refuses."""
    raw = [json.loads(path.read_text()) for path in sorted((HERE / "raw").glob("*.json"))]
    return [one for one in raw if "values" in one]


def overview() -> str:
    """Means of ten seeds: a row for each leader, a column for each environment."""
    mean = {(one["leader"], one["environment"]): np.mean(one["values"]) for one in entries()}
    best = {one["environment"]: one["best_known"] for one in entries()}
    envs = [env for env in ENVS if env in best]
    lines = ["| | " + " | ".join(envs) + " |", "|---" * (len(envs) + 1) + "|"]
    known = [(f"{best[env]:.4g}" if best[env] is not None else "") for env in envs]
    lines += ["| best known | " + " | ".join(known) + " |"]
    for leader in ENTRIES:
        cells = [f"{mean[leader, env]:.4g}" if (leader, env) in mean else "–" for env in envs]
        lines += [f"| {leader} | " + " | ".join(cells) + " |"]
    return "\n".join(lines)


def with_overview(readme: str) -> str:
    """The README with the overview between its two marks."""
    before, _, rest = readme.partition(BEGIN)
    return before + f"{BEGIN}\n{overview()}\n{END}" + rest.partition(END)[2]


def tables() -> str:
    """A table for each environment, best leader first."""
    raw, parts = entries(), []
    for env, (env_id, arguments, budget) in ENVS.items():
        here = [one for one in raw if one["environment"] == env]
        if not here:
            continue
        best = here[0]["best_known"]
        known = "" if best is None else f", best known {best:.4g}"
        given = "".join(f", {name}={value}" for name, value in arguments.items())
        parts += [f"**`{env_id}`**{given}: {budget:,} steps, {SOLVES:,} solves{known}", ""]
        parts += ["| leader | mean of ten seeds | 95 % interval | worst | steps | solves | seconds | knows |"]
        parts += ["|---|---|---|---|---|---|---|---|"]
        for one in sorted(here, key=lambda one: -np.mean(one["values"])):
            told = summary(np.array(one["values"]))
            low, high = told.mean_interval
            steps, solves = np.mean(one["env_steps"]), np.mean(one["follower_solves"])
            parts.append(
                f"| {one['leader']} | {told.mean:.4g} | {low:.4g} to {high:.4g} | "
                f"{min(one['values']):.4g} | {steps:,.0f} | {solves:,.0f} | "
                f"{one['seconds']:.0f} | {KNOWS.get(one['leader'], '')} |"
            )
        parts.append("")
    parts += [INTERVALS, "", "Left out:", "", *(f"- {names}: {why}." for names, why in LEFT_OUT.items()), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    tyro.cli(Leaderboard).run()
