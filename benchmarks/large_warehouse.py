"""A warehouse of 10^5 states, led for 100 iterations by BC-HG and by the exact gradient: J_L, pictures and a film.

Writes J_L of every iteration, exact under the follower's response, as JSON; a figure of it with the floor before and
after; and a film of robots in a part of the floor.

Run: python benchmarks/large_warehouse.py [--rows 249] [--columns 301] [--iterations 100]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper
from bilevel_envs.rendering.drawing import INK, PAPER
from bilevel_envs.rendering.floor_plan import floor_image
from leaders import BCHG, ExactGradient, exact, plots

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = (4, 6)  # rows and columns from one zone to the next
WINDOW = (13, 19)  # rows and columns of the part that is shown from near; the floor repeats every 4 rows, 12 columns
INK_HEX = "#3a3a3a"
COLOURS = {"exact gradient": "#1f4e8c", "BC-HG": "#2e8b57"}
WIDTH, HEADER, GAP = 400, 48, 16  # pixels of each half of the film
FRAMES, FPS, ROBOTS = 64, 8, 3  # of the film; robots that begin at each pick


@dataclass
class LargeWarehouse:
    """Leads the floor and writes data, figure and film."""

    rows: int = 249
    columns: int = 301
    iterations: int = 100
    batch_size: int = 200_000
    """of BC-HG, in environment steps"""
    learning_rate: float = 0.05
    """of BC-HG"""
    exact_rate: float = 0.1
    """of the exact gradient, which has no noise"""
    out: Path = DOCS / "data" / "large_warehouse.json"
    images: Path = DOCS / "images"

    def run(self) -> None:
        """One leader after the other, then the pictures."""
        torch.set_num_threads(1)
        env = BilevelWrapper(gym.make("BiLevel/Warehouse-v0", rows=self.rows, columns=self.columns))
        start = np.zeros(env.theta_space.shape)
        shared: dict[str, Any] = {"seed": 0, "evaluate_every": 1}
        leaders = {
            "exact gradient": ExactGradient(env, learning_rate=self.exact_rate, max_grad_norm=np.inf, **shared),
            "BC-HG": BCHG(env, learning_rate=self.learning_rate, batch_size=self.batch_size, **shared),
        }
        found: dict[str, Any] = {
            "states": env.unwrapped.states,
            "theta": len(start),
            "at_zero": exact.objective(env, start),
            "by_hand": exact.objective(env, np.where(env.problem.plan.zone, -3.0, 3.0)),
            "batch_size": self.batch_size,
            "learning_rate": {"BC-HG": self.learning_rate, "exact gradient": self.exact_rate},
        }
        for name, leader in leaders.items():
            began = time.process_time()
            leader.learn(self.iterations)
            seconds = time.process_time() - began
            values = [*leader.history["leader_value"][:, 0].tolist(), exact.objective(env, leader.theta)]
            found[name] = {
                "leader_value": [round(value, 6) for value in values],  # before each iteration, and after the last
                "env_steps": int(leader.history["env_steps"][-1, 0]),
                "cpu_seconds": round(seconds, 1),
            }
            print(f"{name}: J_L from {values[0]:.4f} to {values[-1]:.4f}, {seconds:.0f} CPU s", flush=True)
        self.out.write_text(json.dumps(found, indent=1) + "\n")
        floors = {"no limits": Floor(env, start)}
        floors |= {name: Floor(env, leaders[name].theta) for name in ("BC-HG", "exact gradient")}
        plots.save(figure(found, floors), self.images / "large_warehouse.png")
        film(floors["no limits"], floors["BC-HG"], self.images / "large_warehouse.gif")


class Floor:
    """The warehouse at a θ, under the follower's response.

    Args:
      env: the wrapped warehouse.
      theta: x of each cell, [N].
    """

    def __init__(self, env: BilevelWrapper, theta: np.ndarray) -> None:
        self.plan = env.problem.plan
        model = env.model(theta).detach()
        probs = exact.best_response(model, env.preferences).policy.probs
        visits = model.resolvent(probs, env.preferences.gamma_leader, model.initial, transpose=True)
        self.value = exact.objective(env, theta)
        self.policy, self.successor = probs[0].numpy(), model.moves.successor
        self.leaving = 0.2 + 0.8 / (1 + np.exp(-theta))
        self.visits = visits[0].numpy().reshape(2, -1).sum(0)
        going = visits[0, :, None].numpy() * self.policy * model.moves.probability[0, ..., 1].numpy()
        self.speed = np.full(self.plan.letters.shape, np.nan)
        self.speed[tuple(self.plan.cells.T)] = self.leaving
        self.flow = np.zeros((2, *self.plan.letters.shape, 4))
        self.flow[:, *self.plan.cells.T] = going.reshape(2, -1, 4)

    def picture(self, part: tuple[slice, slice], robots: np.ndarray | None = None) -> np.ndarray:
        """A part of the floor with the flow of robots, or with those that are in the given states."""
        letters, speed, flow = self.plan.letters[part], self.speed[part], self.flow[:, *part]
        if robots is None:
            return floor_image(letters, speed, flow=flow)
        carrying, cell = np.divmod(robots, len(self.plan.cells))
        at = self.plan.cells[cell] - [part[0].start, part[1].start]
        inside = ((at >= 0) & (at < letters.shape)).all(-1)
        seen = zip(at[inside].tolist(), carrying[inside].tolist(), strict=True)
        return floor_image(letters, speed, robots=[(row, column, bool(item)) for (row, column), item in seen])

    @property
    def among_people(self) -> np.ndarray:
        """The share of discounted steps in a block that begin in the zone, [rows // 4, columns // 6]."""
        zone = np.zeros(self.plan.letters.shape)
        zone[tuple(self.plan.cells.T)] = self.visits * self.plan.zone
        every = np.zeros(self.plan.letters.shape)
        every[tuple(self.plan.cells.T)] = self.visits
        return blocks(zone) / blocks(every)

    @property
    def middle(self) -> tuple[slice, slice]:
        """A part in the middle that begins where the pattern does."""
        (rows, columns), (high, wide) = self.plan.letters.shape, WINDOW
        top, left = (rows - high) // 8 * 4, (columns - wide) // 24 * 12
        return slice(top, top + high), slice(left, left + wide)


def blocks(values: np.ndarray) -> np.ndarray:
    """Sums over the floor's blocks, a zone in the middle of each; the last row and column are left out."""
    high, wide = BLOCK
    rows, columns = values.shape[0] // high, values.shape[1] // wide
    return values[: rows * high, : columns * wide].reshape(rows, high, columns, wide).sum((1, 3))


def figure(found: dict[str, Any], floors: dict[str, Floor]) -> Figure:
    """J_L over iterations; how long robots are among people, block by block; and a part of the floor from near."""
    sheet = Figure(figsize=(17.0, 7.2), layout="constrained")
    FigureCanvasAgg(sheet)
    axes = sheet.subplot_mosaic("ABCD;AEFG", width_ratios=(1.0, 1.0, 1.0, 1.0))
    curves(axes["A"], found)
    most = max(float(floor.among_people.max()) for floor in floors.values())
    for place, (name, floor) in zip("BCD", floors.items(), strict=True):
        image = axes[place].imshow(floor.among_people, cmap="Reds", vmin=0.0, vmax=most, aspect=BLOCK[0] / BLOCK[1])
        axes[place].set_title(f"{name}: $J_L$ = {floor.value:.3f}", fontsize=12)
        axes[place].set_xticks([])
        axes[place].set_yticks([])
    axes["B"].set_ylabel("whole floor, a pixel for each block of shelves", fontsize=9)
    sheet.colorbar(image, ax=axes["D"], label="share of robots' time among people", shrink=0.9)
    for place, floor in zip("EFG", floors.values(), strict=True):
        axes[place].imshow(floor.picture(floor.middle), interpolation="lanczos")
        axes[place].set_title("a part of it, and where robots go", fontsize=11)
        axes[place].set_axis_off()
    return sheet


def curves(axes: Axes, found: dict[str, Any]) -> None:
    """J_L of both leaders."""
    for name, colour in COLOURS.items():
        values = found[name]["leader_value"]
        each = found[name]["env_steps"] // (len(values) - 1)
        label = f"{name}, {each:,} steps each" if each else name
        axes.plot(np.arange(len(values)), values, color=colour, label=label)
    axes.axhline(found["by_hand"], color=INK_HEX, linewidth=1, linestyle=":", label="by hand: x = −3 in zones, else 3")
    axes.set_xlabel("outer iterations")
    axes.set_ylabel(r"leader's value $J_L(\theta)$")
    axes.set_title(f"{found['states']:,} states, {found['theta']:,} speed limits", fontsize=12)
    axes.legend(fontsize=9, loc="lower right")
    axes.grid(alpha=0.25)


def film(before: Floor, after: Floor, path: Path) -> None:
    """Robots from each pick of the whole floor, drawn alike at both θ; a part of the floor is seen."""
    halves = [
        [titled(title, floor.picture(floor.middle, states), *counts) for states, counts in walk(floor)]
        for title, floor in (("no limits", before), ("BC-HG", after))
    ]
    gap = np.full((halves[0][0].shape[0], GAP, 3), PAPER, np.uint8)
    frames = [Image.fromarray(np.concatenate([left, gap, right], 1)) for left, right in zip(*halves, strict=True)]
    palette = frames[-1].quantize(256, dither=Image.Dither.NONE)
    coloured = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    lasts = [1000 // FPS] * (len(frames) - 1) + [2000]
    coloured[0].save(path, save_all=True, append_images=coloured[1:], duration=lasts, loop=0, optimize=True)


def walk(floor: Floor) -> list[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """States of all robots at each step; and how many there are, the step, items dropped, steps begun in a zone."""
    plan, rng = floor.plan, np.random.default_rng(0)
    cells = len(plan.cells)
    state = np.repeat(cells + np.flatnonzero(plan.pick), ROBOTS)
    robots, among, dropped, seen = len(state), 0, 0, []
    chances = floor.policy.cumsum(-1)
    for step in range(FRAMES):
        seen.append((state, (robots, step, dropped, among)))
        among += int(plan.zone[state % cells].sum())
        chosen = np.minimum((rng.random((robots, 1)) > chances[state]).sum(-1), 3)
        leaves = rng.random(robots) < floor.leaving[state % cells]
        following = np.where(leaves, floor.successor[state, chosen, 1], state)
        dropped += int(((state >= cells) & (following < cells)).sum())
        state = following
    return seen


def titled(title: str, picture: np.ndarray, robots: int, step: int, dropped: int, among: int) -> np.ndarray:
    """A picture with what has happened on the whole floor so far."""
    height = WIDTH * picture.shape[0] // picture.shape[1]
    image = Image.new("RGB", (WIDTH, height + HEADER), PAPER)
    image.paste(Image.fromarray(picture).resize((WIDTH, height), Image.Resampling.LANCZOS), (0, HEADER))
    draw, large, small = ImageDraw.Draw(image), ImageFont.load_default(16), ImageFont.load_default(12)
    draw.text((6, 4), title, fill=INK, font=large)
    counts = f"{robots:,} robots, step {step}: {dropped:,} items, {among:,} steps among people"
    draw.text((6, 27), counts, fill=INK, font=small)
    return np.asarray(image)


if __name__ == "__main__":
    tyro.cli(LargeWarehouse).run()
