"""Flags that are generated from the settings of leaders."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, TypeVar

import tyro

from leaders.config import EstimatorConfig, LeaderConfig
from leaders.keywords import options

C = TypeVar("C", bound=type)

# Fields that have flags of their own, or none; --dynamics is the four rooms'.
OTHERWISE = ("batch_size", "dynamics", "runs", "seed", "verbose", "tensorboard_log")
LIST = "Sequence[int] | None"
NUMBERS = {
    "PerRun": float,
    "float": float,
    "int": int,
    "int | None": int,
    "bool": bool,
    LIST: tuple[int, ...],
}  # every other is a word


def flags() -> dict[str, object]:
    """The type of each generated flag, with its help text, by name; None stands for a flag that was not given."""
    found: dict[str, object] = {}
    for config in (EstimatorConfig, LeaderConfig):
        docs = options(config, OTHERWISE)
        for one in fields(config):
            if one.name in docs:
                kind = NUMBERS.get(str(one.type), str)
                metavar = "NAME" if kind is str else None
                found[one.name] = Annotated[kind | None, tyro.conf.arg(help=docs[one.name], metavar=metavar)]
    return found


def with_flags_of_leaders(command: C) -> C:
    """Gives a command a field, None by default, for each setting of leaders that a word or a number can express."""
    for name, kind in flags().items():
        command.__annotations__[name] = kind
        setattr(command, name, None)
    return command
