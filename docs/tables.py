"""The table of environments in README, with thumbnails, made from the environments themselves: python docs/tables.py"""

from __future__ import annotations

import inspect
import os
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import gymnasium as gym
from PIL import Image

from bilevel_envs.registration import PROBLEMS

README = Path(__file__).parents[1] / "README.md"
THUMBNAILS = Path(__file__).parent / "images" / "thumbnails"
SIZE = (192, 128)  # pixels at most, shown at half of that
BEGIN, END = "<!-- environments, made by docs/tables.py -->", "<!-- end -->"


def environments() -> str:
    """A row for each registered environment."""
    lines = [
        "| | environment | version | what it is | θ | states | actions | best known J_L and its proof |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in PROBLEMS:
        env = gym.make(name)
        face = env.unwrapped
        first = (inspect.getdoc(type(face.problem)) or "").splitlines()[0]
        best = face.best_known
        known = "none recorded" if best is None else f"{float(best):.6g}, {best.proof}"
        shape = "×".join(map(str, face.theta_space.shape))
        grid = ", solved on a grid" if face.problem.on_grid else ""
        spaces = f"{_space(env.observation_space)}{grid} | {_space(env.action_space)}"
        picture = _thumbnail(name).relative_to(README.parent).as_posix()
        shown = f'<img src="{picture}" height="{SIZE[1] // 2}" alt="{type(face.problem).__name__}">'
        lines.append(f"| {shown} | `{name}` | v{env.spec.version} | {first} | {shape} | {spaces} | {known} |")
    return "\n".join(lines)


def _space(space: gym.Space) -> str:
    """A space in few words."""
    if isinstance(space, gym.spaces.Discrete):
        return f"{space.n}"
    if isinstance(space, gym.spaces.Box):
        return "vectors of " + "×".join(map(str, space.shape))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return f"MultiDiscrete({space.nvec.tolist()})"
    return type(space).__name__


def _thumbnail(name: str) -> Path:
    """Where an environment's thumbnail lies."""
    return THUMBNAILS / f"{name.split('/')[1].removesuffix('-v0')}.png"


def draw_thumbnails() -> None:
    """Draws every environment's first state at the default θ, small and in few colours."""
    THUMBNAILS.mkdir(parents=True, exist_ok=True)
    for name in PROBLEMS:
        env = gym.make(name, render_mode="rgb_array")
        env.reset(seed=0)
        picture = Image.fromarray(env.render())
        picture.thumbnail(SIZE, Image.Resampling.LANCZOS)
        picture.quantize(64, dither=Image.Dither.NONE).save(_thumbnail(name), optimize=True)


def filled(text: str) -> str:
    """A page with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{environments()}\n{END}{after}"


if __name__ == "__main__":
    draw_thumbnails()
    README.write_text(filled(README.read_text()))
