"""The films of README and landing page: the follower at the default θ and at a better one, side by side.

Each is an animated WebP file in docs/images/films. Run: python docs/films.py [--only FourRooms ...]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from PIL import Image

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper
from leaders import ExactGradient
from leaders.experiments.video import follower_frames

OUT = Path(__file__).parent / "images" / "films"
WIDTH = 420  # pixels
STEPS = {
    "TollBridge": 10,
    "FourRooms": 90,
    "Warehouse": 60,
    "BuildingThermalControl": 48,
    "BilevelLQR": 40,
    "RandomMDP": 40,
    "ToyMarkovGame": 25,
}  # of the film, by environment
LED = {"RandomMDP": 300}  # without a best known θ: so many steps of the exact gradient
SEEDS = {"FourRooms": 3}  # of the world and the follower's draws; 1 elsewhere
ARGUMENTS = {"ToyMarkovGame": {"variant": "R2"}}


@dataclass
class Films:
    """Makes the films."""

    only: tuple[str, ...] = tuple(STEPS)

    def run(self) -> None:
        """Writes a film for each environment."""
        torch.set_num_threads(1)
        OUT.mkdir(parents=True, exist_ok=True)
        for name in self.only:
            env = BilevelWrapper(gym.make(f"BiLevel/{name}-v0", **ARGUMENTS.get(name, {})))
            after = best_theta(env, LED.get(name))
            how = {"steps": STEPS[name], "seed": SEEDS.get(name, 1)}
            frames = follower_frames(env, env.problem.default_theta, after, **how)
            path = OUT / f"{name}.webp"
            write_webp(frames, path)
            print(f"{path.name}: {len(frames)} frames, {path.stat().st_size / 1000:.0f} kB")


def best_theta(env: BilevelWrapper, steps: int | None) -> np.ndarray:
    """The best known θ, or where none is recorded what steps of the exact gradient reach."""
    known = env.best_known
    if steps is None and known is not None and known.theta is not None:
        return np.asarray(known.theta)
    return ExactGradient(env, seed=0).learn(steps or 300).theta


def write_webp(frames: list[np.ndarray], path: Path) -> None:
    """Frames as a small file that plays for ever and rests at its end."""
    pictures = []
    for frame in frames:
        height = round(frame.shape[0] * WIDTH / frame.shape[1])
        pictures.append(Image.fromarray(frame).resize((WIDTH, height), Image.Resampling.LANCZOS))
    durations = [120] * (len(pictures) - 1) + [2000]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=70, method=6)


if __name__ == "__main__":
    tyro.cli(Films).run()
