"""The table of environments in README, made from the environments themselves: python docs/tables.py"""

from __future__ import annotations

import inspect
from pathlib import Path

import gymnasium as gym

from bilevel_envs.registration import PROBLEMS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- environments, made by docs/tables.py -->", "<!-- end -->"


def environments() -> str:
    """A row for each registered environment."""
    lines = [
        "| environment | what it is | θ | states | actions | best known J_L and its proof |",
        "|---|---|---|---|---|---|",
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
        lines.append(f"| `{name}` | {first} | {shape} | {spaces} | {known} |")
    return "\n".join(lines)


def _space(space: gym.Space) -> str:
    """A space in few words."""
    if isinstance(space, gym.spaces.Discrete):
        return f"{space.n}"
    if isinstance(space, gym.spaces.Box):
        return "vectors of " + "×".join(map(str, space.shape))
    return type(space).__name__


def filled(text: str) -> str:
    """A page with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{environments()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
