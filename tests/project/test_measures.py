"""The structure of the packages keeps its measures: what meets its limit stays below it, the rest does not grow."""

import pytest

from tests.project import measures

# What does not meet its limit yet; these numbers may only fall.
REACHED = {
    "private_accesses": 1,  # of TimeLimit, which tells its limit nowhere else unless the environment is registered
}


@pytest.mark.parametrize("measure", measures.MEASURES, ids=lambda measure: measure.__name__)
def test_a_measure_keeps_its_limit(measure):
    found = measure()
    assert found.value <= max(found.limit, REACHED.get(measure.__name__, found.limit)), "\n".join(found.where)


def test_tests_on_kind_are_counted():
    import ast

    text = """
if isinstance(model, TabularModel): pass
if hasattr(follower, "respond"): pass
x = getattr(problem, "bump", None)
y = 1 if flat.ndim == 2 else 0
if isinstance(value, str): pass
name = getattr(module, "__file__", None)
if array.ndim != 1:
    raise ValueError
"""
    counted = [node.lineno for node in ast.walk(ast.parse(text)) if measures._tests_kind(node)]
    assert sorted(counted) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from typing import Any", 0),
        ("def f(x: Any) -> dict[str, Any]: ...", 2),
        ("import typing as t\ndef f(x: t.Any): ...", 1),
        ("from typing import Any as Thing\ndef f(x: Thing): ...", 1),
        ("Thing = typing.Any\ndef f(x: Thing) -> Thing: ...", 4),  # the assignment says it twice
        ('Thing: TypeAlias = "Any"\ndef f(x: "list[Any]"): ...', 3),
        ('"""Any number goes."""', 0),
    ],
)
def test_any_is_counted_under_every_name(text, expected):
    import ast

    assert measures.uses_of_any(ast.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("def f(): return 1", 1), ("def f(x):\n  if x and x > 1:\n    return [y for y in x if y]", 5)],
)
def test_complexity_counts_decisions(text, expected):
    import ast

    assert measures.complexity(ast.parse(text).body[0]) == expected
