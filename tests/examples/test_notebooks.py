"""Notebooks are their scripts, executed; tutorials are numbered and end with a picture and what to look at."""

import re
from importlib import util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").rglob("*.ipynb"))
TUTORIALS = [path for path in NOTEBOOKS if path.parent.name == "tutorials"]


def loaded(name):
    """A script of docs/ as a module."""
    spec = util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def test_every_paired_script_has_its_notebook_and_the_other_way_round():
    assert [path.with_suffix(".ipynb") for path in loaded("notebooks").paired()] == NOTEBOOKS


@named(NOTEBOOKS)
def test_a_notebook_is_its_script_executed(path):
    notebook = nbformat.read(path, as_version=4)
    script = loaded("notebooks").notebook_of(path.with_suffix(".py"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ], "run: python docs/notebooks.py"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


@named(TUTORIALS)
def test_a_tutorial_ends_with_a_picture_and_says_what_to_look_at(path):
    *_, picture, last = nbformat.read(path, as_version=4).cells
    assert any("image/png" in output.get("data", {}) for output in picture.outputs)
    assert "**Look at**" in last.source


def test_tutorials_are_numbered_in_the_order_of_the_site():
    assert [path.stem.partition("_")[0] for path in TUTORIALS] == [str(number) for number in range(1, 9)]
    index = (ROOT / "docs" / "index.md").read_text()
    shown = re.findall(r"^generated/(\d_\w+)$", index, re.MULTILINE)
    assert shown == [path.stem for path in TUTORIALS]
    for path in TUTORIALS:
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
        assert title.startswith(f"# {path.stem[0]}. ")


@named(NOTEBOOKS)
def test_links_of_a_notebook_lead_to_files(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (path.parent / target).is_file(), target
