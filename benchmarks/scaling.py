"""Cost of planning and leading in large tables, 10^4 to 10^6 states: warehouses and grids of rooms.

CPU seconds of one thread, the least of three measurements on a machine that may be shared, and the process' peak
memory, torch included; a process for each row. The exponent is the slope of log seconds over log states.

Run: python benchmarks/scaling.py [--states 10000 100000 1000000]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper, ConfigurableMDP, Noise, Preferences, TabularEnv, TabularModel, Transitions
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.parameterizations import Box
from leaders import BCHG, ExactGradient, exact

DATA = Path(__file__).parents[1] / "docs" / "data"
COLUMNS = ("build", "cold", "hypergradient", "exact", "sampled", "memory")
HEADS = (
    "first model",
    "cold solve to 1e-8",
    "exact hypergradient",
    "exact outer iteration",
    "sampled outer iteration",
    "peak memory, GB",
)


class Rooms(ConfigurableMDP):
    """Rooms of 10 x 10 cells with a door in each wall; a penalty for each cell, γ = 0.99, β = 5e-3.

    Args:
      states: at least so many.
    """

    def __init__(self, states: int) -> None:
        side = int(np.ceil(states**0.5 / 0.9))
        wall = np.zeros((side, side), bool)
        wall[::11], wall[:, ::11] = True, True
        for offset in (4, 5):
            wall[::11, offset::11] = False
            wall[offset::11, ::11] = False
        wall[[0, -1]], wall[:, [0, -1]] = True, True
        number = np.full(wall.shape, -1)
        number[~wall] = np.arange((~wall).sum())
        rows, columns = np.nonzero(~wall)
        steps = ((-1, 0), (0, 1), (1, 0), (0, -1))
        reached = np.stack([number[rows + down, columns + right] for down, right in steps], -1)
        own = np.arange(len(rows))
        reached = np.where(reached < 0, own[:, None], reached)
        slip = np.full((4, 4), 0.44 / 3)
        np.fill_diagonal(slip, 0.56)
        self.size = len(rows)
        self.transition = Transitions.from_lists(reached[:, None], np.broadcast_to(slip, (self.size, 4, 4)).copy())
        self.goal = torch.zeros(self.size, dtype=torch.float64)
        self.goal[self.size // 2 + 7] = 1.0
        self.start = torch.zeros(1, self.size, dtype=torch.float64)
        self.start[0, self.size // 2] = 1.0
        self.continues = (1.0 - self.goal)[None, :, None].expand(1, -1, 4).contiguous()

    @cached_property
    def theta_space(self) -> gym.spaces.Box:
        """A penalty for each cell."""
        return gym.spaces.Box(-0.2, 0.0, (self.size,), np.float64)

    @cached_property
    def default_theta(self) -> np.ndarray:
        """Small ones."""
        return np.full(self.size, -0.01)

    preferences = Preferences(0.99, 0.99, 5e-3)

    def model(self, theta: Tensor) -> TabularModel:
        """The table at θ [R, S]."""
        r_follower = (self.goal + (1 - self.goal) * theta)[..., None].expand(-1, -1, 4)
        r_leader = self.goal[None, :, None].expand(1, -1, 4).contiguous()
        return TabularModel(self.transition, self.start, r_leader, r_follower, self.continues)

    def parameterization(self, runs: int, noise: Noise) -> Box:
        """Penalties near −0.1."""
        return Box(0.01 * noise.normal(self.size), -0.2, 0.0)


def made(world: str, states: int) -> BilevelWrapper:
    """The environment with about so many states."""
    if world == "rooms":
        return BilevelWrapper(TabularEnv(Rooms(states)))
    side = int((states / 2 / 0.67) ** 0.5)
    return BilevelWrapper(
        gym.make("BiLevel/Warehouse-v0", rows=side, columns=side, gamma_leader=0.99, gamma_follower=0.99)
    )


def least(work: Callable[[], object]) -> float:
    """CPU seconds, the least of three."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def measured(world: str, states: int) -> dict[str, float]:
    """One row; loops are compiled on a small world first."""
    torch.set_num_threads(1)
    small = made(world, 2_000)
    for kind in (ExactGradient, BCHG):
        kind(small, seed=0, **({"batch_size": 1000} if kind is BCHG else {})).learn(2)
    clock = time.process_time
    began = clock()
    env = made(world, states)
    theta = torch.as_tensor(np.array(env.problem.default_theta))[None]
    model = env.model(theta).detach()
    found = {"build": clock() - began}
    preferences = env.preferences
    follower = SoftValueIteration(tol=1e-8 / preferences.beta)
    follower.best_response(model, preferences)  # makes the order of states, once for every θ
    found["cold"] = least(lambda: follower.best_response(model, preferences))
    found["hypergradient"] = least(lambda: exact.hypergradient(env, theta[0]))
    for name, leader in (("exact", ExactGradient(env, seed=0)), ("sampled", BCHG(env, seed=0, batch_size=1000))):
        leader.learn(2)
        found[name] = least(partial(leader.learn, 4)) / 4
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"states": model.states, **{name: round(value, 4) for name, value in found.items()}}


@dataclass
class Scaling:
    """Measures and writes data and table."""

    states: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    worlds: tuple[str, ...] = ("warehouse", "rooms")
    row: bool = False
    """print one row as JSON and write nothing"""
    out: Path = DATA / "scaling.json"

    def run(self) -> None:
        """Row by row."""
        if self.row:
            print(json.dumps(measured(self.worlds[0], self.states[0])))
            return
        rows = json.loads(self.out.read_text()) if self.out.exists() else {}
        for world in self.worlds:
            for states in self.states:
                command = [sys.executable, __file__, "--row", "--worlds", world, "--states", str(states)]
                rows[f"{world} {states}"] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
                print(world, rows[f"{world} {states}"], flush=True)
                self.out.write_text(json.dumps(rows, indent=1) + "\n")
        self.out.with_suffix(".md").write_text(table(rows))


def table(rows: dict[str, dict[str, float]]) -> str:
    """CPU seconds by world and size, and the exponent of each column."""
    lines = [f"| world | states | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 2) + "|"]
    for world in dict.fromkeys(key.split()[0] for key in rows):
        mine = [row for key, row in rows.items() if key.split()[0] == world]
        lines += [
            f"| {world} | {row['states']:,} | " + " | ".join(f"{row[name]:.3g}" for name in COLUMNS) + " |"
            for row in mine
        ]
        if len(mine) > 1:
            log = np.log([row["states"] for row in mine])
            slopes = [np.polyfit(log, np.log([row[name] for row in mine]), 1)[0] for name in COLUMNS[:-1]]
            lines.append(f"| {world} | exponent | " + " | ".join(f"{slope:.2f}" for slope in slopes) + " | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(Scaling).run()
