"""Runs a study into a folder: what is done is not run again, what was begun goes on from its checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from leaders.experiments.json_file import UNREADABLE, read_json
from leaders.experiments.lock import Stopped, hold, is_ours, make_folder
from leaders.experiments.results import Result, Table, read_result, table_of
from leaders.experiments.run_directory import PACKAGES, on_signals
from leaders.experiments.sweep.arrange import Place, arranged
from leaders.experiments.sweep.engines import DONE, FAILED, STOPPED, Call, Engine, Outcome
from leaders.experiments.sweep.progress import Told, jobs_are
from leaders.experiments.sweep.search import Point, Search, best_of, search_of
from leaders.experiments.sweep.study import Cell, Job, Study
from leaders.training.history import replace_file

STUDY, STOP, LOGS = "study.json", ".stop", "logs"
RESULTS, PARQUET, SUMMARY = "results.csv", "results.parquet", "summary.csv"
FOLDERS = ("jobs", "selection", LOGS)
FILES = (STUDY, RESULTS, PARQUET, SUMMARY, "report.html")
TABLE_EVERY = 10.0  # seconds between two writes of the table while jobs run


@dataclass(frozen=True)
class Means:
    """What running a study needs to know of jobs.

    Attributes:
      call: runs a job.
      apart: whether its seeds go to processes of their own.
      resolved: a job's whole configuration, defaults included, as its result names it.
      defaults: of settings, which the table leaves out.
    """

    call: Call
    apart: Callable[[Job], bool]
    resolved: Callable[[Job], dict[str, object]]
    defaults: Mapping[str, object]


class StudyDirectory:
    """A study's folder: `study.json`, a run directory for each job under `jobs` and `selection`, and its logs.

    Args:
      path: the folder; it need not exist.
      study: what is to be run in it.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = Path(path), study

    def check(self, extend: bool = False) -> None:
        """Refuses, before anything is written, a folder that holds something else.

        Args:
          extend: accept another study of the same folder: its jobs stay, those that it lacks are added.

        Raises:
          FileExistsError: if the folder holds files of another kind.
          ValueError: if it holds another study.
        """
        if self.path.is_file():
            raise FileExistsError(f"`out` must be a folder; {self.path} is a file")
        names = {one.name for one in self.path.iterdir() if not is_ours(one)} if self.path.exists() else set()
        strange = sorted(names - {*FOLDERS, *FILES, STOP})
        if strange or (names and STUDY not in names):
            raise FileExistsError(
                f"`out` must be empty or hold a study; {self.path} has "
                + (f"{strange[0]}, which is no part of one" if strange else f"files but no {STUDY}")
            )
        if STUDY in names and not extend and (kept := read_source(self.path)) != self.study.source:
            raise ValueError(
                f"`out` must hold this study; {self.path} holds another one, see {self.path / STUDY}"
                f"{_difference(kept, self.study.source)}: choose another --out, or add --extend to keep its jobs and "
                "to run those that it lacks"
            )

    def begin(self) -> None:
        """Creates the folder, keeps other processes out of it, and writes what the study is."""
        make_folder(self.path)
        hold(self.path)
        for leftover in [self.path / STOP, *self.path.glob(".*.part"), *self.path.glob(f"{LOGS}/*.running")]:
            leftover.unlink(missing_ok=True)
        described = {"study": self.study.source, "versions": {name: version(name) for name in PACKAGES}}
        replace_file(self.path / STUDY, (json.dumps(described, indent=2) + "\n").encode())
        (self.path / LOGS).mkdir(exist_ok=True)  # after the file by which the folder is known for a study's

    def log(self, job: Job) -> Path:
        """Where a job's output goes."""
        return self.path / LOGS / f"{job.name}.log"

    def result(self, job: Job) -> Result | None:
        """What came of a job; None until it is done, also where its file is damaged, which the job writes anew."""
        try:
            return read_result(self.path / job.folder)
        except ValueError:
            return None


def read_source(path: Path) -> object:
    """The study that a folder holds.

    Raises:
      ValueError: if its file is damaged.
    """
    try:
        return read_json(path / STUDY)["study"]
    except UNREADABLE as error:
        remedy = "the same command with --extend keeps the jobs there and writes it anew"
        raise ValueError(f"{path / STUDY} is damaged ({error}); {remedy}") from error


def _difference(kept: object, wanted: Mapping[str, object]) -> str:
    """The first setting of which two studies say different things."""
    old = kept if isinstance(kept, Mapping) else {}
    for name in [*wanted, *old]:
        if old.get(name) != wanted.get(name):
            return f", where `{name}` is {json.dumps(old.get(name))} in place of {json.dumps(wanted.get(name))}"
    return ""


@dataclass
class Branch:
    """A cell of the study with how far its search is."""

    cell: Cell
    search: Search | None
    points: list[Point] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    now: list[Point] = field(default_factory=list)
    ended: bool = False

    def next(self) -> list[Job]:
        """The jobs that can be run now; none when all have been named."""
        if self.ended:
            return []
        self.now = [] if self.search is None else self.search.next()
        if self.now:
            return [self.cell.job(point, "selection") for point in self.now]
        self.ended = True
        best = {} if self.search is None else best_of(self.points, self.scores)
        return [] if best is None else [self.cell.job(best)]

    def tell(self, scores: Sequence[float]) -> None:
        """Scores of the jobs named last."""
        if self.search is not None and self.now:
            self.search.tell(self.now, scores)
            self.points, self.scores = [*self.points, *self.now], [*self.scores, *scores]
        self.now = []


def run_study(
    directory: StudyDirectory,
    means: Means,
    engine: Engine,
    told: Told,
    show: Callable[[Table], None],
    fail_fast: bool = False,
) -> None:
    """Runs what is not done yet and writes the tables.

    Args:
      directory: checked; it is begun here.
      means: how jobs are run.
      engine: where.
      told: shows how far it is.
      show: shows the table of all runs that are done, also where others failed.
      fail_fast: stop all jobs at the first that fails; they can be gone on with.

    Raises:
      Stopped: if it was stopped, or if jobs failed; the same command goes on.
    """
    directory.begin()
    running = _Running(directory, means, engine, told, fail_fast)
    branches = [Branch(cell, None if cell.tune is None else search_of(cell.tune)) for cell in directory.study.cells]
    with told, on_signals(running.stop):
        while wanted := [(branch, jobs) for branch in branches if (jobs := branch.next())]:
            running.round([job for _, jobs in wanted for job in jobs], more=sum(not one.ended for one in branches))
            if running.stopped:
                break
            for branch, jobs in wanted:
                running.tell(branch, jobs)
    (directory.path / STOP).unlink(missing_ok=True)
    table = running.write_tables()
    if table.rows:
        show(table)
    running.check_whole()


class _Running:
    """The jobs of a study while they run."""

    def __init__(self, directory: StudyDirectory, means: Means, engine: Engine, told: Told, fail_fast: bool) -> None:
        self._directory, self._means, self._engine, self._told = directory, means, engine, told
        self._fail_fast = fail_fast
        self._places: dict[str, list[Place]] = {}
        self._order: dict[str, Job] = {}  # in which the study names them
        self._results: dict[str, Result] = {}
        self._written = time.monotonic()
        self.failures: list[tuple[Job, str]] = []
        self.stopped = False
        self.waiting = 0  # searches that cannot go on

    def stop(self, *_: object) -> None:
        """Lets every job end after its iteration, on whichever machine it runs; the second time at once.

        Raises:
          KeyboardInterrupt: the second time.
        """
        if self.stopped:
            raise KeyboardInterrupt("stopped at once; the same command goes on from the last checkpoints")
        self.stopped = True
        with suppress(OSError):  # a full disk, where jobs fail by themselves
            (self._directory.path / STOP).touch()
        self._told.say("stopping: each job saves what it has learnt after the iteration under way")

    def round(self, jobs: Sequence[Job], more: int) -> None:
        """Runs jobs that do not wait for each other."""
        run, places = arranged(jobs, self._means.apart, self._directory.study.stack)
        self._places |= places
        self._order |= run
        left = [job for job in run.values() if not self._known(job)]
        self._told.begin(len(run) - len(left), len(left), more)
        for job, outcome in self._engine(left, self._means.call, self._under_way):
            if outcome.status == DONE and not self._known(job):
                outcome = Outcome(FAILED, "it ended without a result", outcome.seconds)
            self._told.ended(job, outcome)
            if outcome.status == FAILED:
                self.failures.append((job, outcome.message))
                if self._fail_fast and not self.stopped:
                    self.stop()
            if outcome.status == STOPPED and not self.stopped:  # the job heard the signal
                self.stop()
            if time.monotonic() - self._written > TABLE_EVERY:
                with suppress(OSError):  # written again at the end
                    self.write_tables()

    def check_whole(self) -> None:
        """Raises Stopped where jobs are left, saying which failed."""
        if self.stopped and not (self._fail_fast and self.failures):
            raise Stopped(f"{jobs_are(self._told.done, 'done')}; the same command goes on with the others")
        if self.failures:
            lines = "".join(f"\n  {job.folder}: {why}, see {self._directory.log(job)}" for job, why in self.failures)
            count = "1 job" if len(self.failures) == 1 else f"{len(self.failures)} jobs"
            wait = f", for which {self.waiting} of the study's searches wait (`tune: skip_failed` goes on without)"
            raise Stopped(f"{count} failed; the same command tries again{wait * (self.waiting > 0)}:{lines}")

    def _known(self, job: Job) -> bool:
        """Whether a job is done; keeps its result."""
        if job.folder not in self._results:
            result = self._directory.result(job)
            if result is None or result.config != self._means.resolved(job):
                return False
            self._results[job.folder] = result
        return True

    def _under_way(self, job: Job) -> bool:
        return self._directory.log(job).with_suffix(".running").exists()

    def tell(self, branch: Branch, jobs: Sequence[Job]) -> None:
        """Tells a search the scores of its jobs; where some failed it waits until they are done.

        What followed from the scores of the others alone would be another search, and left behind by the mended jobs.
        """
        waits = branch.cell.tune is not None and not branch.cell.tune.skip_failed and not branch.ended
        if waits and not all(place.job.folder in self._results for job in jobs for place in self._places[job.folder]):
            branch.ended = True
            self.waiting += 1
        else:
            branch.tell([self.score(job) for job in jobs])

    def score(self, job: Job) -> float:
        """Mean score over the seeds of a job; NaN if any of its runs failed."""
        found: list[float] = []
        for place in self._places[job.folder]:
            if place.job.folder not in self._results:
                return float("nan")
            runs = self._results[place.job.folder].runs[place.first : place.first + place.count]
            scores = [run["score"] for run in runs]
            found += [float("nan") if score is None else float(score) for score in scores]
        return float(np.mean(found))

    def write_tables(self) -> Table:
        """One line a run, and one line for each setting with its intervals."""
        path = self._directory.path
        table = table_of(
            [self._results[one] for one in self._order if one in self._results], path, self._means.defaults
        )
        if table.rows:
            table.write_csv(path / RESULTS)
            table.write_parquet(path / PARQUET)
            table.summaries().write_csv(path / SUMMARY)
        self._written = time.monotonic()
        return table
