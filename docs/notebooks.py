"""Makes the notebooks of examples/ from their scripts, and stores them with their outputs.

The script (`# %%` cells, jupytext's percent format) is what one edits; the notebook beside it is what one reads. Where
the code is what the notebook has executed already, its text alone is made anew and the outputs stay.

Run: python docs/notebooks.py                                                      (those whose code has changed)
     python docs/notebooks.py examples/tutorials/1_first_hypergradient.py ...      (these, in any case)
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def paired() -> list[Path]:
    """The scripts that are cut into cells."""
    return sorted(path for path in EXAMPLES.rglob("*.py") if path.read_text().startswith("# %%"))


def notebook_of(script: Path) -> nbformat.NotebookNode:
    """A script as a notebook without outputs; cells are numbered, so that it is the same whenever it is made."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = nbformat.NotebookNode()
        cell["source"] = cell.source.strip("\n")  # a script has blank lines above a function, a cell has none
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    return notebook


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Its cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_stored_outputs(script: Path) -> nbformat.NotebookNode | None:
    """The notebook with the outputs that are stored; None where these belong to other code, or there are none."""
    if not script.with_suffix(".ipynb").is_file():
        return None
    notebook, stored = notebook_of(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    if [cell.source for cell in code_of(notebook)] != [cell.source for cell in code_of(stored)]:
        return None
    for cell, old in zip(code_of(notebook), code_of(stored), strict=True):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return notebook


def executed(script: Path) -> nbformat.NotebookNode:
    """The notebook, run in a kernel of its own in the script's folder."""
    notebook = notebook_of(script)
    os.environ.pop("MPLBACKEND", None)  # of the Makefile: with Agg no picture would be shown
    folder = {"metadata": {"path": str(script.parent)}}
    NotebookClient(notebook, timeout=600, coalesce_streams=True, record_timing=False, resources=folder).execute()
    return notebook


def main() -> None:
    """Makes what is named, or what has changed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", type=Path)
    named = parser.parse_args().scripts
    for script in named or paired():
        began = time.perf_counter()
        notebook = None if named else with_stored_outputs(script)
        if notebook is None:
            notebook = executed(script)
            print(f"{script.name}: executed in {time.perf_counter() - began:.0f} s", flush=True)
        nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
