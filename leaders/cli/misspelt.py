"""What misspelt commands and flags may have meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import tyro

from bilevel_envs.core.checks import meant
from leaders.cli.reproduce import Reproduce


def hints(given: Sequence[str], commands: Any, what: str = "command") -> Iterator[str]:
    """A line for each command, figure and flag that does not exist, where one that does is spelt alike.

    Args:
      given: the words of the command line.
      commands: the union of the commands, each annotated with its name.
      what: what the first word is.
    """
    kinds = {how.name: kind for kind, how, *_ in map(get_args, get_args(commands))}
    name, *further = given or [""]
    if name not in kinds:
        yield from _told(what, [name], kinds)
    elif kinds[name] is Reproduce:
        yield from hints(further, get_type_hints(Reproduce, include_extras=True)["figure"], "figure")
    else:
        words = [word.partition("=")[0].replace("_", "-") for word in further if word.startswith("--")]
        yield from _told("flag", words, _flags(kinds[name]))


def _flags(kind: type) -> list[str]:
    """The flags of a command."""
    types = get_type_hints(kind, include_extras=True)
    named = [one.name for one in fields(kind) if tyro.conf.Positional not in get_args(types[one.name])]
    negated = [f"no-{name}" for name in named if types[name] is bool]
    return [f"--{name.replace('_', '-')}" for name in [*named, *negated, "help", "traceback"]]


def _told(what: str, words: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """A line for each word that is not known and is spelt like one that is."""
    known = list(known)
    for word in words:
        near = "" if word in known else meant(word, known)
        if near:
            yield f"bilevel: there is no {what} {word}{near}"
