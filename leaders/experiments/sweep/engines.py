"""Where jobs run: in this process, in a pool of processes (joblib), or on a cluster (Ray; `slurm` has another)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Protocol

import joblib

from leaders.experiments.sweep.study import Job

DONE, FAILED, STOPPED = "done", "failed", "stopped"
MOST_DEATHS = 5  # of the process that runs a job; killed from outside, it is tried again
LOOK = 1.0  # seconds between two looks whether the process that started this one is alive
ALONE_AFTER = 2  # deaths from which a job is run in a pool of its own, where it takes no other with it


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
      status: "done", "failed", or "stopped", which is resumed.
      message: why it failed.
      seconds: how long it ran.
    """

    status: str
    message: str = ""
    seconds: float = 0.0


Call = Callable[[Job], Outcome]


class Engine(Protocol):
    """Runs jobs; the order in which they end is free, and results do not depend on it."""

    def __call__(
        self, jobs: Sequence[Job], call: Call, under_way: Callable[[Job], bool]
    ) -> Iterator[tuple[Job, Outcome]]:
        """Each job with its outcome, as soon as it is known.

        Args:
          jobs: to be run.
          call: runs one, wherever it is; raises nothing.
          under_way: whether a job was begun and did not end, asked after a process died.
        """
        ...


@dataclass
class Deaths:
    """How often the process of each job has died."""

    counts: dict[str, int] = field(default_factory=dict)

    def another(self, job: Job) -> Outcome | None:
        """Counts one; the outcome when there were too many."""
        count = self.counts[job.folder] = self.counts.get(job.folder, 0) + 1
        if count < MOST_DEATHS:
            return None
        why = "killed, out of memory, or by an exit in its code"
        return Outcome(FAILED, f"the process that ran it ended {count} times before the job did: {why}")

    def told(self, jobs: Iterable[Job]) -> list[tuple[Job, Outcome]]:
        """Counts one for each job; those for which there were too many."""
        return [(job, outcome) for job in jobs if (outcome := self.another(job))]

    def dangerous(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that are run in a pool of their own, where they take no other with them."""
        return [job for job in jobs if self.counts.get(job.folder, 0) >= ALONE_AFTER]


@dataclass(frozen=True)
class Processes:
    """A pool of processes on this machine; of one, this process itself.

    Attributes:
      count: how many.
    """

    count: int = 1

    def __call__(
        self, jobs: Sequence[Job], call: Call, under_way: Callable[[Job], bool]
    ) -> Iterator[tuple[Job, Outcome]]:
        """See `Engine`."""
        if self.count == 1:
            for job in jobs:
                yield job, call(job)
            return
        deaths, left = Deaths(), {job.folder: job for job in jobs}
        while left:
            now = deaths.dangerous(left.values())[:1] or list(left.values())
            try:
                for folder, outcome in _pooled(now, call, self.count):
                    yield left.pop(folder), outcome
            except BrokenProcessPool:
                broken = [one for one in now if one.folder in left]
                for job, died in deaths.told([one for one in broken if under_way(one)] or broken[:1]):
                    yield left.pop(job.folder), died


def _pooled(jobs: Sequence[Job], call: Call, processes: int) -> Iterator[tuple[str, Outcome]]:
    """Jobs' folders with their outcomes, as they end."""
    pool = joblib.Parallel(
        n_jobs=processes,
        backend="loky",
        batch_size=1,
        pre_dispatch="n_jobs",
        return_as="generator_unordered",
        initializer=_end_with,  # also of processes that are still without a job when the one that starts them dies
        initargs=(os.getpid(),),
    )
    yield from pool(joblib.delayed(_as_child)(call, job) for job in jobs)


_at_work = threading.Lock()  # held by a process of a pool while it runs a job


def _as_child(call: Call, job: Job) -> tuple[str, Outcome]:
    """Runs a job in a process of a pool."""
    with _at_work:
        return _named(call, job)


def _end_with(starter: int) -> None:
    """Ends this process when the one that started it is gone, after the job under way; a pool's would wait for ever."""

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(LOOK)
        with _at_work:
            os.kill(os.getpid(), signal.SIGKILL)  # from a thread, whatever the main one waits for

    threading.Thread(target=watch, daemon=True).start()


def _named(call: Call, job: Job) -> tuple[str, Outcome]:
    return job.folder, call(job)


@dataclass(frozen=True)
class Ray:
    """A Ray cluster whose nodes share the study's folder.

    Attributes:
      address: of the cluster, "auto" for the one that this machine belongs to; None starts one on this machine.
    """

    address: str | None = None

    def __call__(
        self, jobs: Sequence[Job], call: Call, under_way: Callable[[Job], bool]
    ) -> Iterator[tuple[Job, Outcome]]:
        """See `Engine`; a job whose worker or node died is begun again on another, from its checkpoint."""
        try:
            import ray
        except ImportError as error:
            raise ImportError("`ray` needs the package ray: pip install 'bilevel-envs[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConnectionError(
                    f"`ray` must be the address of a cluster, got {self.address!r}: {error}"
                ) from error
        remote = ray.remote(num_cpus=1, max_retries=0)(_named)
        deaths = Deaths()
        pending = {remote.remote(call, job): job for job in jobs}
        while pending:
            ended, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
            for reference in ended:
                job = pending.pop(reference)
                try:
                    _, outcome = ray.get(reference)
                except ray.exceptions.RayError:
                    died = deaths.another(job)
                    if died is None:
                        time.sleep(0.5)  # until the cluster knows which node is gone
                        pending[remote.remote(call, job)] = job
                        continue
                    outcome = died
                yield job, outcome
