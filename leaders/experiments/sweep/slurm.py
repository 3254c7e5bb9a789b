"""Where jobs run: on a Slurm cluster (submitit)."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from leaders.experiments.sweep.engines import FAILED, Call, Deaths, Outcome
from leaders.experiments.sweep.study import Job

if TYPE_CHECKING:
    import submitit

DEFAULTS = {"timeout_min": 24 * 60, "cpus_per_task": 1}
MOST_TIMEOUTS = 1000  # of one job; each goes on from its checkpoint
LOOK = 1.0  # seconds between two looks at the jobs


@dataclass(frozen=True)
class Requeued:
    """Runs a job; after a time limit or a preemption Slurm's queue gets it again, and it goes on from its checkpoint.

    Attributes:
      call: runs the job.
    """

    call: Call

    def __call__(self, job: Job) -> Outcome:
        """Runs it; SIGTERM, which Slurm sends beside the signal for a preemption, does not count as the user's wish."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return self.call(job)

    def checkpoint(self, job: Job) -> submitit.helpers.DelayedSubmission:
        """What submitit puts into the queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


@dataclass(frozen=True)
class Slurm:
    """A Slurm cluster whose nodes share the study's folder; each job of the study is one of the cluster's.

    Attributes:
      logs: a folder on the shared disk, where a folder for submitit's files is made.
      options: of submitit's `AutoExecutor`, such as timeout_min or slurm_partition; cluster="local" starts processes
        on this machine instead.
    """

    logs: Path
    options: Mapping[str, object] = field(default_factory=dict)

    def __call__(
        self, jobs: Sequence[Job], call: Call, under_way: Callable[[Job], bool]
    ) -> Iterator[tuple[Job, Outcome]]:
        """See `Engine`; a job that died is submitted again. What is left is cancelled when this ends."""
        if not jobs:
            return
        executor = self.executor()
        deaths, run = Deaths(), Requeued(call)
        with executor.batch():  # an array
            first = [executor.submit(run, job) for job in jobs]
        pending = list(zip(first, jobs, strict=True))
        try:
            while pending:
                ended = [one for one in pending if one[0].done()]
                pending = [one for one in pending if one not in ended]
                for submitted, job in ended:
                    outcome = _outcome(submitted) or deaths.another(job)
                    if outcome is None:
                        pending.append((executor.submit(run, job), job))
                    else:
                        yield job, outcome
                if not ended:
                    time.sleep(LOOK)
        finally:
            for submitted, _ in pending:
                submitted.cancel()

    def executor(self) -> submitit.AutoExecutor:
        """What submits jobs.

        Raises:
          ImportError: without submitit.
          ValueError: if it does not take the options.
        """
        try:
            import submitit
        except ImportError as error:
            raise ImportError("`slurm` needs submitit: pip install 'bilevel-envs[slurm]'") from error
        options = DEFAULTS | dict(self.options)
        cluster = str(options.pop("cluster", "slurm"))
        self.logs.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="slurm-", dir=self.logs)  # no file of another submission is ever read
        try:
            executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=MOST_TIMEOUTS)
            executor.update_parameters(**options)
        except (AssertionError, ValueError, TypeError, NameError, RuntimeError) as error:
            Path(folder).rmdir()
            raise ValueError(f"`slurm` must be options of submitit.AutoExecutor, got {options!r}: {error}") from error
        return executor


def _outcome(submitted: submitit.Job[Outcome]) -> Outcome | None:
    """How a job ended; None if its process died."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return submitted.result()
    except FailedJobError as error:  # an exception that was told; the call itself raises none
        return Outcome(FAILED, " ".join(str(error).split())[-500:])
    except UncompletedJobError:
        return None
