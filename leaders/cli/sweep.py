"""`bilevel sweep`: a study of many runs, in many processes, into one folder."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bilevel_envs.core.checks import check_count, check_number
from leaders.cli.arguments import (
    NOT_OF_RESULTS,
    KeyValues,
    Text,
    Trusted,
    check_trusted,
    config_of,
    env_arguments,
    env_of,
    find_modules_here,
    follower_of,
    key_values,
)
from leaders.cli.track import trackers_of
from leaders.cli.train import Train
from leaders.experiments.lock import Stopped, released_afterwards
from leaders.experiments.results import BUDGETS

if TYPE_CHECKING:
    from leaders.experiments.results import Table
    from leaders.experiments.sweep.engines import Engine, Outcome
    from leaders.experiments.sweep.study import Job, Study

SETTINGS = tuple(one.name for one in fields(Train) if one.name not in NOT_OF_RESULTS)
DEFAULTS = {one.name: None if one.default is MISSING else one.default for one in fields(Train)}
BUSY = 60.0  # seconds to wait for another process that still holds a job's folder
POLL = 0.5  # seconds between two looks whether to stop


@dataclass(frozen=True)
class Sweep:
    """Run a study, leaders x environments x settings x seeds, in many processes; the same command goes on with it.

    Example: bilevel sweep study.yaml --out study --processes 2
    """

    out: Path
    """the study's folder; must not exist, be empty, or hold this study, of which what is missing is run"""
    study: Annotated[Path | None, tyro.conf.Positional] = None
    """a YAML file: settings of `bilevel train`, a list where there are several; see the page "Studies" """
    settings: KeyValues = ()
    """instead of a file, or over it: KEY=VALUE or KEY=VALUE,VALUE,..., such as leader=bchg,mbhg env_args.seed=0"""
    processes: int | None = None
    """jobs side by side; as many as this machine has cores if not given. 1 runs them in the command's own process"""
    ray: Text = None
    """run on a Ray cluster instead: its address, auto, or local for one that is started here"""
    slurm: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="KEY=VALUE ...")] = None
    """run on a Slurm cluster instead, with options of submitit: timeout_min=60 slurm_partition=cpu; see "Studies" """
    fail_fast: bool = False
    """stop everything at the first job that fails; all of it can be gone on with"""
    extend: bool = False
    """accept that the folder holds another study: its jobs stay, those that it lacks are run"""
    checkpoint_every: float = 15.0
    """least seconds between two checkpoints of a job"""
    progress: bool = True
    """show a bar on a terminal"""
    trust: Trusted = ()
    """environments, leaders and followers from outside the library that the study names and that may be run"""

    def run(self) -> None:
        """Runs what is not done, writes results.csv and summary.csv, and prints the latter."""
        from leaders.experiments.sweep.progress import Told
        from leaders.experiments.sweep.runner import LOGS, Means, StudyDirectory, run_study

        check_number(self.checkpoint_every, "checkpoint_every", at_least=0)
        processes = check_count(os.cpu_count() or 1 if self.processes is None else self.processes, "processes")
        out = self.out.resolve()
        engine = self._engine(processes, out / LOGS)
        study = self._study()
        directory = StudyDirectory(self.out, study)
        directory.check(self.extend)
        trackers_of(study.track, self.out, {})
        _rehearse(study, self.trust)
        elsewhere = self.ray is not None or self.slurm is not None
        starter = os.getpid() if not elsewhere and processes > 1 else None
        call = partial(
            run_job, out=out, here=Path.cwd(), every=self.checkpoint_every, track=study.track, starter=starter
        )
        means = Means(call, learns, resolved, defaults())
        run_study(directory, means, engine, Told(processes, self.progress), self._show, self.fail_fast)

    def _show(self, table: Table) -> None:
        """The summaries, and where the rest is."""
        from leaders.experiments.sweep.runner import SUMMARY

        _print(table.summaries())
        print(f"\nwrote {self.out}/results.csv, {SUMMARY}, and a run directory for each job")

    def _engine(self, processes: int, logs: Path) -> Engine:
        """Where jobs run."""
        from leaders.experiments.sweep.engines import Processes, Ray
        from leaders.experiments.sweep.slurm import Slurm

        if self.ray is not None and self.slurm is not None:
            raise ValueError("`ray` and `slurm` must not be given together: a study runs on one of them")
        if self.ray is not None:
            return Ray(None if self.ray == "local" else self.ray)
        if self.slurm is not None:
            return Slurm(logs, key_values(self.slurm, "slurm"))
        return Processes(processes)

    def _study(self) -> Study:
        """The file's settings and those of the command line."""
        from leaders.experiments.sweep.study import read_source, study_of

        found = {} if self.study is None else read_source(self.study)
        if self.study is None and not self.settings:
            raise ValueError(
                "`study` must be a YAML file, or `--settings` must say what to run, such as env=... leader=..."
            )
        for pair in self.settings:
            name, equals, text = pair.partition("=")
            if not equals:
                raise ValueError(f"`settings` must be KEY=VALUE or KEY=VALUE,VALUE,..., got {pair!r}")
            values = [key_values((f"{name}={one}",), "settings")[name] for one in text.split(",")]
            group, dot, key = name.partition(".")
            value = values if len(values) > 1 else values[0]
            if dot:
                inner = found.setdefault(group, {})
                if not isinstance(inner, dict):
                    raise ValueError(f"`{group}` must be a table in the study for `--settings {pair}`, got {inner!r}")
                inner[key] = value
            else:
                found[name] = value
        return study_of(found, SETTINGS)


def _train(job: Job, out: Path) -> Train:
    """The command that a job is."""
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in job.config.items()}
    return Train(**settings, out=out / job.folder, resume=True, progress=False)


def resolved(job: Job) -> dict[str, object]:
    """A job's settings, defaults included, as its result names them."""
    return json.loads(json.dumps(config_of(_train(job, Path()))))


def defaults() -> dict[str, object]:
    """Defaults of the settings, as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in DEFAULTS.items()}


def learns(job: Job) -> bool:
    """Whether a job's follower learns: its seeds then go to processes of their own."""
    command = _train(job, Path())
    named = (command.env, command.beta, command.dynamics, command.follower)
    return _learns(*named, command.env_args, command.follower_args)


@cache
def _learns(
    env: str,
    beta: float | None,
    dynamics: str | None,
    follower: str | None,
    env_args: tuple[str, ...],
    follower_args: tuple[str, ...],
) -> bool:
    from bilevel_envs.core.follower import capabilities_of
    from bilevel_envs.wrapper import BilevelWrapper

    command = Train(env=env, out=Path(), beta=beta, dynamics=dynamics, env_args=env_args)
    wrapped = BilevelWrapper(env_of(env, env_arguments(command)), follower_of(follower, follower_args))
    return capabilities_of(wrapped.follower).learns


def _rehearse(study: Study, trust: tuple[str, ...]) -> None:
    """Refuses, before anything is written, what a job would refuse: each is made once, up to its first iteration."""
    from bilevel_envs.wrapper import BilevelWrapper
    from leaders.experiments.sweep.search import search_of

    for cell in study.cells:
        points = [{}] if cell.tune is None else search_of(cell.tune).next()
        for point in points:
            job = cell.job(point, "evaluation" if cell.tune is None else "selection")
            check_trusted(job.config, trust, "the study")
            try:
                command = _train(job, Path())
                check_count(command.iterations, "iterations")
                check_count(command.runs, "runs")
                env, kind, arguments = command.resolved()
                kind(BilevelWrapper(env, follower_of(command.follower, command.follower_args)), **arguments)
            except (ValueError, TypeError, RuntimeError) as error:
                given = ", ".join(f"{name}={value}" for name, value in job.config.items())
                raise ValueError(
                    f"the job {given} cannot be run: {error}. What some jobs alone take goes into the study's `blocks`"
                ) from error


def run_job(
    job: Job, *, out: Path, here: Path, every: float, track: str | None = None, starter: int | None = None
) -> Outcome:
    """Runs a job in this process, its output into its log; raises nothing.

    Args:
      job: what to run.
      out: the study's folder.
      here: the working directory of the command, where modules of one's own lie.
      every: least seconds between two checkpoints.
      track: trackers that it is written to, by name.
      starter: the process with which the job ends, where this one is its child.
    """
    from leaders.experiments.sweep.engines import DONE, FAILED, STOPPED, Outcome
    from leaders.experiments.sweep.runner import LOGS, STOP

    find_modules_here(here)
    looked = 0.0

    def stop() -> bool:
        nonlocal looked
        if time.monotonic() - looked < POLL:
            return False
        looked = time.monotonic()
        return (out / STOP).exists() or starter not in (None, os.getppid())  # or gone, whoever started it

    if stop():
        return Outcome(STOPPED)
    started = time.monotonic()
    log = out / LOGS / f"{job.name}.log"
    running = log.with_suffix(".running")
    status, message = DONE, ""
    try:
        running.touch()
        with open(log, "a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            try:
                _run_when_free(replace(_train(job, out), checkpoint_every=every, track=track), stop)
            except (Exception, KeyboardInterrupt) as error:
                asked = isinstance(error, (Stopped, KeyboardInterrupt)) and error.__cause__ is None
                status, message = (STOPPED, "") if asked else (FAILED, f"{type(error).__name__}: {error}")
                if not asked:
                    traceback.print_exc(file=file)
    except OSError as error:
        status, message = FAILED, f"{error}"
    finally:
        with suppress(OSError):
            running.unlink(missing_ok=True)
    return Outcome(status, " ".join(message.split()), time.monotonic() - started)


def _run_when_free(command: Train, stop: Callable[[], bool]) -> None:
    """Runs a job, after another process that still holds its folder has ended: one whose sweep was killed, say."""
    begun = time.monotonic()
    while True:
        try:
            with released_afterwards():
                command.run(stop)
            return
        except BlockingIOError:
            if stop():
                raise Stopped("stopped while another process wrote to the folder") from None
            if time.monotonic() - begun > BUSY:
                raise
            time.sleep(POLL)


def _print(table: Table) -> None:
    """The summaries on the screen: settings, scores with their intervals, what was spent."""
    columns = [*table.settings, "seeds", "mean", "95 % interval", "median", "iqm", "start", "best_known", *BUDGETS]
    lines = [columns]
    for row in table.rows:
        known = row | {
            "95 % interval": "" if "mean_low" not in row else f"{row['mean_low']:.4g} to {row['mean_high']:.4g}"
        }
        lines.append([_short(known.get(name)) for name in columns])
    kept = [index for index in range(len(columns)) if any(line[index] not in ("", "0") for line in lines[1:])]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        print("  ".join(line[index].ljust(widths[index]) for index in kept).rstrip())


def _short(value: object) -> str:
    if value is None:
        return ""
    return (
        (f"{value:,.0f}" if value.is_integer() and value > 999 else f"{value:.4g}")
        if isinstance(value, float)
        else str(value)
    )
