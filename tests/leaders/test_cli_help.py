"""Every command tells in its help what it is for, with an example that it takes."""

import ast
import inspect
import re
import shlex
import textwrap
from dataclasses import fields
from functools import reduce
from itertools import pairwise
from operator import or_
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from leaders import LEADERS
from leaders.cli.main import COMMANDS, main
from leaders.cli.reproduce import PaperFigure, Reproduce
from leaders.cli.train import Train
from leaders.config import EstimatorConfig, LeaderConfig
from leaders.keywords import options

KINDS = [kind for kind, *_ in COMMANDS]


def figures():
    """The classes of the figures, whose annotation is text."""
    return PaperFigure.__subclasses__()


def example_of(kind):
    """The line after "Example:" in a command's help."""
    lines = [line.strip() for line in inspect.getdoc(kind).splitlines()]
    (found,) = [line.removeprefix("Example: ") for line in lines if line.startswith("Example: ")]
    program, *arguments = shlex.split(found)
    assert program == "bilevel"
    return arguments


def parsed(arguments):
    return tyro.cli(reduce(or_, (Annotated[kind, *hows] for kind, *hows in COMMANDS)), prog="bilevel", args=arguments)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_example_in_a_commands_help_is_taken_by_that_command(kind):
    command = parsed(example_of(kind))
    assert type(command) is kind


@pytest.mark.parametrize("kind", figures(), ids=lambda kind: kind.__name__)
def test_the_example_in_a_figures_help_draws_that_figure(kind):
    command = parsed(example_of(kind))
    assert type(command.figure) is kind
    assert command.figure.checked_iterations() == kind.first_part


def test_every_figure_takes_the_same_flags():
    shared = {one.name for one in fields(PaperFigure)}
    assert shared == {"out", "leaders", "iterations", "full", "runs", "seed", "resume", "progress"}
    assert len(figures()) == 4
    for kind in figures():
        given = [f"--{flag}" for flag in ("full", "resume", "no-progress")]
        name = example_of(kind)[1]
        command = parsed(["reproduce", name, "--out", "o", "--leaders", "bchg", "--runs", "3", "--seed", "4", *given])
        assert command.figure.checked_iterations() == kind.complete >= kind.first_part
        assert (command.figure.runs, command.figure.seed, command.figure.out) == (3, 4, Path("o"))
        assert command.figure.resume
        assert not command.figure.progress


def test_a_number_of_iterations_does_not_go_with_all_of_them(tmp_path, capsys):
    for kind in figures():
        with pytest.raises(SystemExit) as error:
            main([*example_of(kind)[:2], "--full", "--iterations", "3", "--out", str(tmp_path / "out")])
        assert error.value.code == 2
        assert "`iterations` must be left out with --full, got 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def field_texts(kind):
    """The texts under a command's fields, its own over those of its bases."""
    found = options(EstimatorConfig) | options(LeaderConfig) if kind is Train else {}  # flags that are generated
    for one in reversed([base for base in kind.__mro__ if base.__module__.startswith("leaders.")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(below.value.value.split())
    return found


@pytest.mark.parametrize("kind", [*KINDS, *figures()], ids=lambda kind: kind.__name__)
def test_the_help_of_a_command_explains_every_flag(kind, capsys):
    name = example_of(kind)[: 2 if issubclass(kind, PaperFigure) else 1]
    with pytest.raises(SystemExit):
        main([*name, "--help"])
    told = " ".join(re.sub(r"[│\n]", " ", capsys.readouterr().out).split())
    assert f"Example: bilevel {name[0]}" in told
    texts = field_texts(kind)
    for field in () if kind is Reproduce else fields(kind):
        assert texts[field.name], field.name
        assert " ".join(texts[field.name].split()[:3]) in told, field.name


def test_the_rooms_dynamics_have_the_flag_and_the_leaders_own_go_with_its_arguments(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "train",
                "--env",
                "BiLevel/TollBridge-v0",
                "--leader-args",
                "dynamics=learnt",
                "--out",
                str(tmp_path / "a"),
            ]
        )
    assert '`dynamics` must be "known" for TollBridge, which hides no dynamics' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--env", "BiLevel/FourRooms-v0", "--dynamics", "learnt", "--out", str(tmp_path / "b")])
    assert "`dynamics` must be one of 'published', 'classic', 'mismatched', got 'learnt'" in capsys.readouterr().err


def commands_on_pages():
    """The command lines that README and the docs show, with the page that each is on."""
    root = Path(__file__).parents[2]
    for page in [
        root / "README.md",
        *sorted((root / "docs").glob("*.md")),
        *sorted((root / "docs/leader").glob("*.md")),
    ]:
        for line in page.read_text().replace("\\\n", " ").splitlines():
            for part in line.strip().split(" && "):
                command = part.partition(" #")[0]
                shown = line.startswith("    ") or page.name == "README.md"
                if shown and re.match(r"bilevel [a-z][a-z-]*( |$)", command):
                    yield page.stem, " ".join(command.split())


@pytest.mark.parametrize(("page", "command"), list(commands_on_pages()))
def test_a_command_on_a_page_is_taken(page, command):
    arguments = shlex.split(command)[1:]
    taken = parsed(arguments)
    assert type(taken) in KINDS
    assert page not in LEADERS or taken.leader == page  # the page of a leader
