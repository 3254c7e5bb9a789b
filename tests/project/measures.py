"""Measures of the packages' structure, with the limits that hold for them: `python -m tests.project.measures`."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("bilevel_envs", "leaders") for path in (ROOT / package).rglob("*.py"))

# Classes that tell one kind of world, policy, value function, follower or critic from another.
KINDS = re.compile(
    r"(Model|Policy|Follower|Critic|Wrapper|Env|Gaussian|Table|Quadratic|Polynomial|Missing)$|^PLANNERS$"
)
NOT_OURS = ("gym.", "BaseCallback")
WINDOW = 6  # lines of a duplicated stretch


@dataclass(frozen=True)
class Measure:
    """A number with its limit.

    Attributes:
      name: what is counted.
      value: the number.
      limit: the largest that is accepted.
      where: the places that make it up, "file:line".
    """

    name: str
    value: float
    limit: float
    where: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.value <= self.limit


@functools.cache
def trees() -> tuple[tuple[str, ast.Module], ...]:
    """Every file of both packages with its syntax tree."""
    return tuple((str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in FILES)


@functools.cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """All nodes of a file's syntax tree."""
    return tuple(ast.walk(tree))


def kind_tests() -> Measure:
    """isinstance of models, policies, values, followers and critics; hasattr; getattr with a default; rank as type."""
    found = []
    for name, tree in trees():
        found += [f"{name}:{node.lineno}" for node in nodes(tree) if _tests_kind(node)]
    return Measure("tests on kind", len(found), 25, tuple(found))


def _tests_kind(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "isinstance":
            asked = ast.unparse(node.args[1])
            names = re.findall(r"[\w.]+", asked)
            return any(KINDS.search(one) and not one.startswith(NOT_OURS) for one in names)
        hook = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
        return hook and "'__" not in ast.unparse(node)  # Python's own attributes of modules and functions are no hooks
    refuses = isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)  # a wrong shape, not another type
    if isinstance(node, (ast.If, ast.IfExp)) and not refuses:
        return any(
            isinstance(part, ast.Compare)
            and isinstance(part.left, ast.Attribute)
            and part.left.attr == "ndim"
            and isinstance(part.comparators[0], ast.Constant)
            for part in ast.walk(node.test)
        )
    return False


def any_annotations() -> Measure:
    """Uses of `Any`, for every thousand lines."""
    lines = sum(len(path.read_text().splitlines()) for path in FILES)
    aliases = {alias for _, tree in trees() for alias in _aliases_of_any(tree)}
    uses = Counter({name: uses_of_any(tree, aliases) for name, tree in trees()})
    where = tuple(f"{name} ({count})" for name, count in uses.most_common(10) if count)
    return Measure("uses of Any per 1,000 lines", round(1_000 * sum(uses.values()) / lines, 1), 6, where)


def uses_of_any(tree: ast.Module, aliases: Collection[str] = ()) -> int:
    """How often a module says `Any`, `typing.Any` or an alias, also in annotations that are strings."""
    names = {"Any", *aliases, *_aliases_of_any(tree)}
    found = 0
    for node in nodes(tree):
        if isinstance(node, ast.Name):
            found += node.id in names
        elif isinstance(node, ast.Attribute):
            found += node.attr == "Any"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\bAny\b", node.value):
            found += _is_annotation(node.value)
    return found


def _is_annotation(text: str) -> bool:
    """Whether a string that says Any is code, not prose."""
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    return True


def _aliases_of_any(tree: ast.Module) -> set[str]:
    """Other names that a module gives to `Any`: by import, or by an assignment of `Any` alone."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {one.asname for one in node.names if one.name == "Any" and one.asname}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if ast.unparse(node.value).strip("'\"").rpartition(".")[2] == "Any":
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its place."""
    for name, tree in trees():
        for node in nodes(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{name}:{node.lineno} {node.name}", node


def complexity(function: ast.AST) -> int:
    """McCabe's cyclomatic complexity: one more than the number of decisions."""
    decisions = 0
    for node in ast.walk(function):
        if isinstance(node, (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.Assert)):
            decisions += 1
        elif isinstance(node, ast.BoolOp):
            decisions += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            decisions += 1 + len(node.ifs)
    return 1 + decisions


def _compiled(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Numba compiles it, which takes arrays one by one and calls nothing."""
    return any(ast.unparse(one) == "compiled" for one in function.decorator_list)


def complex_functions(most: int = 15) -> Measure:
    """Functions with more decisions than that; kernels, which Numba compiles as one, are left out."""
    found = [
        f"{place} ({complexity(node)})"
        for place, node in functions()
        if complexity(node) > most and not _compiled(node)
    ]
    return Measure(f"functions of complexity above {most}", len(found), 0, tuple(found))


def long_signatures(most: int = 8) -> Measure:
    """Functions with more parameters than that."""
    found = []
    for place, node in functions():
        arguments = node.args
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > most and not _compiled(node):
            found.append(f"{place} ({count})")
    return Measure(f"functions with more than {most} parameters", len(found), 0, tuple(found))


def private_accesses() -> Measure:
    """Private attributes of objects of other modules."""
    found = []
    for name, tree in trees():
        own = {node.name for node in nodes(tree) if isinstance(node, ast.FunctionDef)}
        own |= {
            node.attr
            for node in nodes(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        for node in nodes(tree):
            if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr) or node.attr in own:
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")) and not _of_super(node):
                found.append(f"{name}:{node.lineno} {ast.unparse(node)[:60]}")
    return Measure("private attributes of others", len(found), 0, tuple(found))


def _of_super(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"


def type_ignores() -> Measure:
    """Comments that silence the type checker."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "# type: ignore" in line
    ]
    return Measure("type-ignores", len(found), 14, tuple(found))


def duplicates() -> Measure:
    """Pairs of places that share six lines of code or more, docstrings, imports and comments left out."""
    seen = defaultdict(list)
    for name, tree in trees():
        lines = _code_lines(name, tree)
        for first in range(len(lines) - WINDOW + 1):
            block = tuple(text for _, text in lines[first : first + WINDOW])
            if sum(len(text) for text in block) >= 100:
                seen[block].append((name, lines[first][0], first))
    pairs: dict[tuple[str, str, int], tuple[int, int]] = {}
    for places in seen.values():
        for a in range(len(places)):
            for b in range(a + 1, len(places)):
                (one, line, i), (other, second, j) = places[a], places[b]
                key = (one, other, i - j)  # windows of one longer stretch share it
                if one != other or abs(i - j) >= WINDOW:
                    pairs.setdefault(key, (line, second))
    where = tuple(f"{one}:{at} = {other}:{there}" for (one, other, _), (at, there) in sorted(pairs.items()))
    return Measure(f"duplicated stretches of {WINDOW} lines", len(pairs), 10, where)


def _code_lines(name: str, tree: ast.Module) -> list[tuple[int, str]]:
    skipped = set()
    for node in nodes(tree):
        documented = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if documented or isinstance(node, (ast.Import, ast.ImportFrom)):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate((ROOT / name).read_text().splitlines(), 1)
    kept = [(number, " ".join(text.split())) for number, text in lines if number not in skipped]
    return [(number, text) for number, text in kept if text and not text.startswith("#")]


MEASURES = (
    kind_tests,
    any_annotations,
    complex_functions,
    long_signatures,
    private_accesses,
    type_ignores,
    duplicates,
)


def main() -> None:
    """Prints every measure, its limit, and where a limit is passed the places."""
    for measure in (made() for made in MEASURES):
        print(f"{measure.name}: {measure.value:g} (at most {measure.limit:g})")
        if not measure.holds:
            print("".join(f"    {place}\n" for place in measure.where), end="")


if __name__ == "__main__":
    main()
