"""The command `bilevel`."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from leaders.cli.doctor import Doctor
from leaders.cli.envs import Envs
from leaders.cli.misspelt import hints
from leaders.cli.report import Report
from leaders.cli.reproduce import Reproduce
from leaders.cli.sweep import Sweep
from leaders.cli.train import Train
from leaders.cli.video import Video
from leaders.experiments.lock import Stopped, release_all

# Each command with its name; one of its own file and one line here make another.
COMMANDS: list[tuple[object, ...]] = [
    (Envs, tyro.conf.subcommand("envs")),
    (Train, tyro.conf.subcommand("train")),
    (Compare, tyro.conf.subcommand("compare")),
    (Sweep, tyro.conf.subcommand("sweep")),
    (Report, tyro.conf.subcommand("report")),
    (Reproduce, tyro.conf.subcommand("reproduce"), tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    (BestKnownValue, tyro.conf.subcommand("best-known")),
    (CheckContract, tyro.conf.subcommand("check")),
    (Doctor, tyro.conf.subcommand("doctor")),
    (Curves, tyro.conf.subcommand("curves")),
    (Video, tyro.conf.subcommand("video")),
]


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # a full disk, a read-only folder
RESUMED = ("train", "compare", "reproduce")  # commands that go on with --resume; a study does without
MISTAKE, STOPPED, FAULT = (
    2,
    3,
    1,
)  # statuses: the user's mistake, stopped, or nobody reads the output any more, a fault of ours


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; whatever goes wrong ends with one line, and with a traceback by `--traceback` alone."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    traceback = "--traceback" in given
    given = [one for one in given if one != "--traceback"]
    try:
        command = _command(given)
        find_modules_here()
        command.run()
    except (Exception, KeyboardInterrupt) as error:
        if _nobody_reads(error):  # as in `bilevel envs | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the interpreter flushes at its end
            raise SystemExit(STOPPED) from None
        status, line = _told(error, "--resume" if given[:1] and given[0] in RESUMED else "")
        if traceback:
            raise
        with _undisturbed():
            print(line, file=sys.stderr)
        raise SystemExit(status) from error
    finally:
        with _undisturbed():
            release_all()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without Ctrl-C, which may come twice at once: from a terminal, and from a program that passes it on."""
    before = None
    with suppress(ValueError):  # outside of Python's main thread, which alone hears signals
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _command(given: list[str]) -> Any:
    """The command that is asked for; what is misspelt is told below the usual message."""
    commands: Any = reduce(or_, (Annotated[kind, *hows] for kind, *hows in COMMANDS))
    try:
        return tyro.cli(commands, prog="bilevel", description=bilevel_envs.__doc__.splitlines()[0], args=given)
    except SystemExit as ended:
        if ended.code == MISTAKE:
            for line in hints(given, commands):
                print(line, file=sys.stderr)
        raise


def _nobody_reads(error: BaseException) -> bool:
    """Whether a command ended because what reads its output has ended."""
    if not isinstance(error, BrokenPipeError):
        return False
    output = select.poll()
    output.register(sys.stdout, 0)
    return bool(output.poll(0))


def _told(error: BaseException, resume: str) -> tuple[int, str]:
    """The status that an error ends with, and what is said of it; `resume` is the flag with which a run goes on."""
    if isinstance(error, KeyboardInterrupt):
        how = "; what has been saved is kept, and the same command with --resume goes on" if resume else ""
        return STOPPED, f"\nbilevel: {str(error) or 'stopped' + how}"
    if isinstance(error, Stopped):
        return STOPPED, f"bilevel: {error}"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        flag = f" with {resume}" if resume else ""
        again = f"files there are whole; make it writable, and start the same command again{flag}"
        return STOPPED, f"bilevel: {error}: {again}"
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError)):
        return MISTAKE, f"bilevel: {error}"
    return FAULT, f"bilevel: {type(error).__name__}: {error} (--traceback shows where)"
