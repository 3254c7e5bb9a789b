"""The picture of which folder imports from which, drawn from the code: python docs/imports.py

Writes docs/data/imports.json, what the code imports, and docs/images/imports.png. The rows are those of
tests/project/test_layers.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # where the tests are

from tests.project.measures import FILES  # noqa: E402
from tests.project.test_layers import ROWS, folder_of, imported, module_of  # noqa: E402

DATA, PICTURE = ROOT / "docs" / "data" / "imports.json", ROOT / "docs" / "images" / "imports.png"
COLOURS = {"bilevel_envs": "#1f4e8c", "leaders": "#2e8b57"}


def imports() -> dict[str, list[str]]:
    """The folders that each folder imports from, as the code has it."""
    found: dict[str, set[str]] = {folder: set() for row in ROWS for folder in row}
    for path in FILES:
        here = folder_of(module_of(path))
        found[here] |= imported(path) - {here}
    return {folder: sorted(others) for folder, others in found.items()}


def essential(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """The imports that do not follow from others: what a folder imports through another one is left out."""

    def reached(folder: str) -> set[str]:
        return set(found[folder]).union(*map(reached, found[folder]))

    return {
        folder: [one for one in others if not any(one in reached(other) for other in others if other != one)]
        for folder, others in found.items()
    }


def picture(found: dict[str, list[str]]) -> Figure:
    """A row of boxes for each row of folders, the first at the bottom; an arrow leads from who imports to what."""
    figure = Figure(figsize=(8.4, 9.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = {
        folder: (9.0 * (index + 1) / (len(row) + 1) + 0.55 * (-1) ** height * (len(row) == 1), float(height))
        for height, row in enumerate(ROWS)
        for index, folder in enumerate(row)
    }
    axes.set_xlim(0, 9)
    axes.set_ylim(-0.6, len(ROWS) - 0.4)
    axes.set_axis_off()
    boxes = {}
    for folder, (x, y) in places.items():
        package, _, name = folder.partition(".")
        box = {"boxstyle": "round,pad=0.35", "facecolor": COLOURS[package], "edgecolor": "none"}
        text = axes.text(x, y, name or package, ha="center", va="center", color="white", fontsize=9.5, bbox=box)
        boxes[folder] = text.get_bbox_patch()
    figure.canvas.draw()  # which gives the boxes their sizes
    for folder, others in essential(found).items():
        for other in others:
            ends = {"patchA": boxes[folder], "patchB": boxes[other], "shrinkA": 1, "shrinkB": 1}
            style = {"arrowstyle": "-|>", "color": "#8a929c", "linewidth": 0.9} | ends
            axes.annotate("", places[other], places[folder], arrowprops=style, zorder=0)
    for package, colour in COLOURS.items():
        axes.plot([], [], "s", color=colour, label=package, markersize=9)
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    return figure


if __name__ == "__main__":
    now = imports()
    DATA.write_text(json.dumps(now, indent=1) + "\n")
    picture(now).savefig(PICTURE, dpi=110)
