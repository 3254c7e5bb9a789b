"""The paper's figures and their tables, as the pages of results show them.

Each is a call of `bilevel reproduce`, in a folder of its own under `runs/reproduced`; leaders that are done are not run
again. Its tables are copied to `docs/data`, its pictures to `docs/images`.

Run: python benchmarks/reproduced.py [--figures figure2 figure3 figure4 figure5]
On one core half an hour (Figure 2), three hours (3), some minutes (4) and an hour (5).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bilevel_envs.core.checks import check_choice  # noqa: E402


@dataclass(frozen=True)
class Figure:
    """A call of `bilevel reproduce`.

    Attributes:
      arguments: its name and flags.
      tables: which of its files are copied to `docs/data`.
      pictures: which are copied to `docs/images`, with their names there.
    """

    arguments: tuple[str, ...]
    tables: tuple[str, ...]
    pictures: dict[str, str]


FIGURES = {
    "figure2": Figure(
        (
            *("four-rooms", "--full", "--beta", "5e-3", "1e-3", "3e-3"),
            *("--leaders", "bchg,hpgd-mc,hpgd-sa,naive-pgd,hpgd-oracle"),
        ),
        ("four-rooms-beta0.005.md", "four-rooms-beta0.001.md", "four-rooms-beta0.003.md"),
        {"four-rooms-beta0.005.png": "figure2_beta5e-3.png"},
    ),
    "figure3": Figure(
        (
            *("building-thermal-control", "--full", "--leaders"),
            "bchg,bchg-pathwise,bchg-score,naive-pgd,bchg-paper,naive-pgd-paper,hpgd-mc-paper,hpgd-td-paper",
        ),
        ("building-thermal-control.md", "random-search.md"),
        {
            "objective.png": "figure3.png",
            "parts.png": "figure3_parts.png",
            "theta.png": "figure3_theta.png",
            "random-search.png": "random_search.png",
        },
    ),
    "figure4": Figure(
        ("toy-markov-game",),
        ("toy-R1.md", "toy-R2.md"),
        {"toy-R1.png": "figure4_R1.png", "toy-R2.png": "figure4_R2.png", "landscape-R2.png": "toy_landscape.png"},
    ),
    "figure5": Figure(
        ("bilevel-lqr", "--leaders", "bchg,bchg-pathwise,bchg-paper,naive-pgd-paper,naive-pgd-off-paper"),
        ("bilevel-lqr.md",),
        {"bilevel-lqr.png": "figure5.png"},
    ),
}


@dataclass
class Reproduced:
    """Which figures."""

    figures: tuple[str, ...] = tuple(FIGURES)

    def run(self) -> None:
        """Figure by figure."""
        for name in self.figures:
            check_choice(name, FIGURES, "figures")
        for name in self.figures:
            figure, out = FIGURES[name], ROOT / "runs" / "reproduced" / name
            bilevel = [sys.executable, "-c", "from leaders.cli.main import main; main()"]
            command = [*bilevel, "reproduce", *figure.arguments, "--no-progress", "--out", str(out)]
            subprocess.run([*command, *["--resume"] * out.exists()], check=True, cwd=ROOT)
            for table in figure.tables:
                shutil.copyfile(out / table, ROOT / "docs" / "data" / table)
            for picture, shown in figure.pictures.items():
                shutil.copyfile(out / picture, ROOT / "docs" / "images" / shown)


if __name__ == "__main__":
    tyro.cli(Reproduced).run()
