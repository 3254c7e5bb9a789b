"""Imports point one way: a folder may import only from the rows above its own."""

import ast
from pathlib import Path

import pytest

from tests.project.measures import FILES, ROOT

ROWS = [
    ["bilevel_envs.core", "bilevel_envs.rendering"],
    ["bilevel_envs.worlds"],
    ["bilevel_envs.envs", "bilevel_envs.networks"],
    ["bilevel_envs.followers"],
    ["bilevel_envs.games"],
    ["bilevel_envs.wrapper", "bilevel_envs.markov_games", "bilevel_envs.gym_env"],
    ["bilevel_envs.leader_env"],
    ["bilevel_envs.parameterizations", "bilevel_envs.registration", "bilevel_envs.testing"],
    ["bilevel_envs"],
    ["leaders.config"],
    ["leaders.functional", "leaders.keywords", "leaders.exact", "leaders.training", "leaders.published"],
    ["leaders.estimate", "leaders.evaluation", "leaders.policy"],
    ["leaders.critics", "leaders.paper", "leaders.leader"],
    ["leaders.worlds", "leaders.learnt"],
    ["leaders.estimators"],
    ["leaders.algorithms"],
    ["leaders"],
    ["leaders.experiments"],
    ["leaders.cli"],
]
ROW = {folder: row for row, folders in enumerate(ROWS) for folder in folders}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """The entry of `ROWS` that a module belongs to."""
    parts = module.split(".")
    folder = next((name for name in (".".join(parts[:2]), parts[0]) if name in ROW), None)
    assert folder is not None, f"{module} has no row: give its folder one in {Path(__file__).name}"
    return folder


def imported(path: Path) -> set[str]:
    """The folders of ours that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in ROW else node.module for name in inner}
    return {folder_of(name) for name in found if name.split(".")[0] in ("bilevel_envs", "leaders")}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down_the_rows(path):
    here = folder_of(module_of(path))
    wrong = {other for other in imported(path) if other != here and ROW[other] >= ROW[here]}
    assert not wrong, f"{module_of(path)} imports from {', '.join(sorted(wrong))}"


def test_every_folder_that_has_a_row_exists():
    for folder in ROW:
        path = ROOT.joinpath(*folder.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), folder
