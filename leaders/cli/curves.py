"""`bilevel curves`: the curves of several runs in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from leaders.cli.arguments import Trusted


@dataclass(frozen=True)
class Curves:
    """Draw the leader's values of runs of one environment over environment steps, beside the paper's curve.

    Example: bilevel curves runs/bchg runs/mbhg --out curves.png
    """

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run directories; title and published curve are those of the first"""
    out: Path = Path("curves.png")
    """the picture, replaced if it is there"""
    trust: Trusted = ()
    """environments, leaders and followers from outside the library that directories name and that may be run"""

    def run(self) -> None:
        """Writes the picture."""
        from leaders.cli.runs import loaded, published_curve
        from leaders.experiments import plots

        if not self.directories:
            raise ValueError("`directories` must name at least one run directory")
        if len(self.directories) > len(plots.COLOURS):
            raise ValueError(
                f"`directories` must be at most {len(plots.COLOURS)}, one for each colour, got {len(self.directories)}"
            )
        if self.out.suffix != ".png" or not self.out.parent.is_dir():
            raise ValueError(f"`out` must be a .png file in a folder that exists, got {self.out}")
        runs = [loaded(directory, self.trust) for directory in self.directories]
        first = runs[0]
        for run in runs[1:]:
            if run.leader.env.problem != first.leader.env.problem:
                raise ValueError(
                    "`directories` must hold runs of one environment with the same arguments; "
                    f"{run.command.out} has another than {first.command.out}"
                )
        published, batch = published_curve(first.command, first.leader)
        title = f"{first.command.env}, β = {first.leader.env.preferences.beta:g}"
        plots.save(plots.curves_figure([run.leader for run in runs], title, published, batch), self.out)
        print(f"wrote {self.out}")
