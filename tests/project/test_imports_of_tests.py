"""Test modules share `tests.helpers`, import no other test module and leave `sys.path` alone."""

import ast

import pytest

from tests.project.measures import ROOT

MODULES = sorted((ROOT / "tests").rglob("*.py"))
TESTS = {path.stem for path in MODULES if path.name.startswith("test_")} | {"conftest"}


def imported_tests(text: str) -> set[str]:
    """The test modules that a module imports, wherever in its text."""
    parts = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            parts |= {part for name in names for part in name.split(".")}
    return parts & TESTS


def edits_of_the_path(text: str) -> list[int]:
    """Lines that change `sys.path` itself: an assignment, `del`, or a method that does more than look."""
    found = []
    for node in ast.walk(ast.parse(text)):
        changed: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            changed = node.targets
        elif isinstance(node, ast.AugAssign):
            changed = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed = [node.func.value] if node.func.attr not in ("index", "count", "copy") else []
        if "sys.path" in {ast.unparse(one.value if isinstance(one, ast.Subscript) else one) for one in changed}:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_of_the_tests_imports_no_test_module(path):
    assert not imported_tests(path.read_text())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_of_the_tests_leaves_the_path_of_imports_alone(path):
    assert not edits_of_the_path(path.read_text())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import tests.leaders.test_task", {"test_task"}),
        ("from test_task import ring", {"test_task"}),
        ("def f():\n    from tests.leaders import test_task", {"test_task"}),
        ("from . import test_task", {"test_task"}),
        ("from tests.helpers import rollout\nimport numpy.testing", set()),
    ],
)
def test_imports_of_test_modules_are_found_wherever_they_stand(text, expected):
    assert imported_tests(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import sys\nsys.path.insert(0, 'tests')", [2]),
        ("sys.path[:0] = ['tests']\ndel sys.path[0]", [1, 2]),
        ("sys.path += ['tests']\nsys.path = []", [1, 2]),
        ("':'.join(sys.path)\nmonkeypatch.syspath_prepend(folder)", []),
    ],
)
def test_edits_of_the_path_of_imports_are_found(text, expected):
    assert edits_of_the_path(text) == expected
