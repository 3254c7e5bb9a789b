"""What is shown of a study while it runs."""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from leaders.experiments.sweep.engines import DONE, FAILED, STOPPED, Outcome
from leaders.experiments.sweep.study import Job


def jobs_are(jobs: int, what: str) -> str:
    """Of so many jobs what they are."""
    return f"1 job is {what}" if jobs == 1 else f"{jobs} jobs are {what}"


class Told:
    """Prints every job that ends, failures at once, with the time that is left; on a terminal, a bar as well.

    Args:
      processes: how many jobs run side by side.
      bar: whether to show the bar.
    """

    def __init__(self, processes: int = 1, bar: bool = True) -> None:
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        shown = bar and self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=self._console, disable=not shown, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("jobs", total=0, left="")
        self._processes = processes
        self.done = self.failed = self._ran = self._total = 0
        self._more = False
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._console.print(line, markup=False)

    def begin(self, known: int, jobs: int, more: int) -> None:
        """A round of jobs begins.

        Args:
          known: jobs that are done already.
          jobs: to be run.
          more: cells of the study whose next jobs follow from this round.
        """
        self.done += known
        self._total += known + jobs
        self._more = more > 0
        if known:
            self.say(f"{jobs_are(known, 'done')} already")
        self._show()

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job ended."""
        self.done += outcome.status == DONE
        self.failed += outcome.status == FAILED
        self._ran += 1
        if outcome.status == STOPPED:
            return
        why = f": {outcome.message}" if outcome.message else ""
        count = f"{self.done + self.failed}/{self._total}{'+' if self._more else ''}"
        self.say(f"[{count}] {outcome.status:7} {job.folder}, {outcome.seconds:.0f} s{why}{self._left()}")
        self._show()

    def _left(self) -> str:
        """How long the jobs of this round will take, by those that have run; they run side by side."""
        left = self._total - self.done - self.failed
        if not left or not self._ran:
            return ""
        seconds = left * (time.monotonic() - self._started) / self._ran
        return f"; about {seconds / 60:.0f} min left" if seconds > 90 else f"; about {seconds:.0f} s left"

    def _show(self) -> None:
        ended = self.done + self.failed
        text = f"jobs, {self.failed} failed" if self.failed else "jobs"
        self._progress.update(self._task, total=self._total, completed=ended, left=self._left(), description=text)
