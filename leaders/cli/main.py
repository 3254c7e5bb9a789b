"""The command `bilevel`."""

from __future__ import annotations

import sys
from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

import bilevel_envs  # registers BiLevel/*
from leaders.cli.arguments import find_modules_here
from leaders.cli.best_known import BestKnownValue
from leaders.cli.check import CheckContract
from leaders.cli.compare import Compare
from leaders.cli.curves import Curves
from leaders.cli.envs import Envs
from leaders.cli.reproduce import Reproduce
from leaders.cli.train import Train
from leaders.cli.video import Video

# Each command with its name; one of its own file and one line here make another.
COMMANDS: list[tuple[object, ...]] = [
    (Envs, tyro.conf.subcommand("envs")),
    (Train, tyro.conf.subcommand("train")),
    (Compare, tyro.conf.subcommand("compare")),
    (Reproduce, tyro.conf.subcommand("reproduce"), tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    (BestKnownValue, tyro.conf.subcommand("best-known")),
    (CheckContract, tyro.conf.subcommand("check")),
    (Curves, tyro.conf.subcommand("curves")),
    (Video, tyro.conf.subcommand("video")),
]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a bad argument ends with one line and status 2."""
    commands: Any = reduce(or_, (Annotated[kind, *hows] for kind, *hows in COMMANDS))
    command = tyro.cli(commands, prog="bilevel", description=bilevel_envs.__doc__.splitlines()[0], args=arguments)
    find_modules_here()
    try:
        command.run()
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"bilevel: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as stop:
        print(f"\nbilevel: {stop or 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None
