"""`bilevel report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """Write one HTML page of a study, or of runs: tables, curves, comparisons, maps, films, commands; needs no network.

    Example: bilevel report study
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """folder of a study, of run directories, or one run directory"""
    out: Path | None = None
    """the page; report.html in the folder if not given"""

    def run(self) -> None:
        """Writes the page, from files alone: no code that they name is run."""
        from leaders.cli.sweep import defaults
        from leaders.experiments.report import write_report

        if not self.directory.is_dir():
            raise ValueError(f"`directory` must be a folder, got {self.directory}")
        path = self.directory / "report.html" if self.out is None else self.out
        if path.suffix != ".html" or not path.parent.is_dir():
            raise ValueError(f"`out` must be a .html file in a folder that exists, got {path}")
        write_report(self.directory, path, defaults())
        print(f"wrote {path}")
