"""The curves on the leaders' pages: every leader in the worlds that it can lead, ten runs with its defaults.

Writes docs/data/leader_curves.json and a picture for each leader in docs/images/leaders. Run: python
docs/leader_curves.py [--only "FourRooms bchg" ...]; with --draw alone, the pictures are drawn anew from the file.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper
from leaders import LEADERS
from leaders.training.history import COLUMNS

HERE = Path(__file__).parent
DATA, PICTURES = HERE / "data" / "leader_curves.json", HERE / "images" / "leaders"
RUNS, POINTS = 10, 60
COLOURS = ("#1f4e8c", "#c8642c", "#2e8b57", "#8a4f9e")  # of a leader's variants
OTHERS, BEST = "#b9bec6", "#3a3a3a"


@dataclass(frozen=True)
class World:
    """An environment with the leaders that are run in it.

    Attributes:
      title: over the panel.
      arguments: of the environment.
      lowest: where the vertical axis begins.
      leaders: outer iterations by name, a leader's or "leader variant".
    """

    title: str
    lowest: float
    leaders: Mapping[str, int]
    arguments: Mapping[str, Any] = field(default_factory=dict)


WORLDS = {
    "FourRooms": World(
        "Four rooms, θ in the rewards",
        -0.8,
        {
            "naive-pgd": 731,
            "bchg": 731,
            "hpgd mc": 731,
            "hpgd sa": 731,
            "sobirl": 731,
            "exact": 300,
            "zeroth-order": 80,
            "random-search": 400,
            "cmaes": 40,
            "mbhg": 8,
            "hpgd oracle": 60,
        },
    ),
    "Warehouse": World(
        "Warehouse, θ in the moves",
        -1.0,
        {
            "naive-pgd": 600,
            "bchg": 600,
            "hpgd mc": 600,
            "hpgd sa": 600,
            "exact": 300,
            "zeroth-order": 40,
            "random-search": 300,
            "cmaes": 24,
            "hpgd oracle": 60,
        },
    ),
    "BuildingThermalControl": World(
        "Building, linear-quadratic",
        -330,
        {
            "naive-pgd": 200,
            "bchg": 200,
            "hpgd td": 200,
            "hpgd mc": 200,
            "exact": 200,
            "zeroth-order": 60,
            "random-search": 500,
            "cmaes": 50,
        },
    ),
    "ToyMarkovGame": World(
        "Toy Markov game R2",
        0,
        {"bi-ac": 150, "naive-pgd": 150, "bchg": 150, "hpgd mc": 150, "exact": 150, "zeroth-order": 15, "cmaes": 12},
        {"variant": "R2"},
    ),
}


def leader_in(world: str, name: str) -> Any:
    """A leader of ten runs in a world, nothing learnt yet."""
    env = BilevelWrapper(gym.make(f"BiLevel/{world}-v0", **WORLDS[world].arguments))
    leader, *variant = name.split()
    return LEADERS[leader](env, *variant, runs=RUNS, seed=0)


def measured(world: str, name: str) -> dict[str, Any]:
    """What a leader's runs came to: its curve at some iterations, and the columns of the last one."""
    leader_in(world, name).learn(2)  # which compiles what is compiled on first use
    leader, iterations = leader_in(world, name), WORLDS[world].leaders[name]
    started = time.process_time()
    leader.learn(iterations)
    seconds = time.process_time() - started
    history, value = leader.history, leader.history.filled("leader_value")
    kept = np.unique(np.linspace(0, iterations - 1, POINTS).round().astype(int))
    last = {column: float(history.latest(column).mean()) for column in COLUMNS}
    return {
        "iterations": iterations,
        "runs": RUNS,
        "seconds": round(seconds, 1),
        "best_known": None if leader.env.best_known is None else float(leader.env.best_known),
        "iteration": (kept + 1).tolist(),
        "env_steps": history["env_steps"][kept].mean(1).round().astype(int).tolist(),
        **{key: [float(f"{x:.5g}") for x in curve] for key, curve in _range(value[kept]).items()},
        "last": {column: float(f"{x:.4g}") for column, x in last.items() if np.isfinite(x)},
    }


def _range(value: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, worst and best of the runs."""
    return {"mean": value.mean(1), "worst": value.min(1), "best": value.max(1)}


def load() -> dict[str, dict[str, Any]]:
    """What the file holds, by "world leader"."""
    return json.loads(DATA.read_text()) if DATA.is_file() else {}


def keys() -> Iterator[str]:
    """Every world with every leader that is run in it."""
    for world, what in WORLDS.items():
        yield from (f"{world} {name}" for name in what.leaders)


def picture(leader: str, found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A panel for each world that the leader was run in, two in a row; other leaders are grey."""
    worlds = [world for world, what in WORLDS.items() if any(name.split()[0] == leader for name in what.leaders)]
    columns = min(2, len(worlds))
    rows = -(-len(worlds) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, world in zip(panels, worlds, strict=False):
        _draw_panel(axes, leader, world, found)
        axes.set_xlabel("outer iterations" if leader == "exact" else "environment steps", fontsize=9)
    for axes in panels[len(worlds) :]:
        axes.set_axis_off()
    return figure


def _draw_panel(axes: Axes, leader: str, world: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """The curves of a world, those of one leader in colour."""
    along, colours, best = "iteration" if leader == "exact" else "env_steps", iter(COLOURS), None
    for name in WORLDS[world].leaders:
        run = found[f"{world} {name}"]
        best = run["best_known"]
        if name.split()[0] == leader:
            colour = next(colours)
            axes.plot(run[along], run["mean"], color=colour, linewidth=1.8, label=name, zorder=3)
            axes.fill_between(run[along], run["worst"], run["best"], color=colour, alpha=0.18, linewidth=0, zorder=2)
        elif leader != "exact" and name != "exact":
            axes.plot(run[along], run["mean"], color=OTHERS, linewidth=1, zorder=1)
    if best is not None:
        axes.axhline(best, color=BEST, linewidth=1, linestyle=":", label="best known")
    axes.set_title(WORLDS[world].title, fontsize=10)
    axes.set_ylim(bottom=WORLDS[world].lowest)
    axes.tick_params(labelsize=8)
    if along == "env_steps":
        axes.set_xscale("log")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="best", framealpha=0.8)
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel(r"leader's value $J_L(\theta)$", fontsize=9)


@dataclass
class Curves:
    """Runs the leaders that the file lacks, and draws the pictures."""

    only: tuple[str, ...] = ()
    """"world leader" to run anew; all that the file lacks by default"""
    draw: bool = False
    """run nothing"""

    def run(self) -> None:
        """Writes the file after each leader, and at last the pictures."""
        torch.set_num_threads(1)
        found = load()
        for key in () if self.draw else self.only or [key for key in keys() if key not in found]:
            found[key] = measured(*key.split(maxsplit=1))
            print(f"{key}: {found[key]['mean'][-1]:.4g} in {found[key]['seconds']:g} s", flush=True)
            lines = [f"  {json.dumps(one)}: {json.dumps(found[one])}" for one in keys() if one in found]
            DATA.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        PICTURES.mkdir(parents=True, exist_ok=True)
        for leader in LEADERS:
            picture(leader, found).savefig(PICTURES / f"{leader}.png", dpi=110)


if __name__ == "__main__":
    tyro.cli(Curves).run()
