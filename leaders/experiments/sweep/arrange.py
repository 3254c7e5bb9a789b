"""Which runs share a process: those that can be stacked do, those with followers of their own do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from bilevel_envs.core.checks import check_count, check_number, check_seed
from leaders.experiments.sweep.study import STACKABLE, Job


@dataclass(frozen=True)
class Place:
    """Where runs of a job are found.

    Attributes:
      job: the job that is run.
      first: its first run that is meant.
      count: how many.
    """

    job: Job
    first: int
    count: int


def arranged(
    jobs: Iterable[Job], apart: Callable[[Job], bool], stack: bool
) -> tuple[dict[str, Job], dict[str, list[Place]]]:
    """The jobs that are run for the jobs that are wanted, and where the runs of each of those are found.

    Jobs that differ in their step sizes alone become one, its runs stacked: (job 1, seed 0), (job 1, seed 1), ...
    Of jobs that are to be run apart every seed becomes a job of its own.

    Args:
      jobs: that are wanted.
      apart: whether a job's seeds are to be run in processes of their own.
      stack: False to run all seeds in processes of their own.

    Returns:
      The jobs by folder, and by the wanted job's folder its places.
    """
    run: dict[str, Job] = {}
    places: dict[str, list[Place]] = {}
    together: dict[str, list[Job]] = {}
    for job in {job.folder: job for job in jobs}.values():
        if not stack or apart(job):
            seed, runs = _counts(job)
            each = [Job({**job.config, "seed": seed + index, "runs": 1}, job.phase) for index in range(runs)]
            run |= {one.folder: one for one in each}
            places[job.folder] = [Place(one, 0, 1) for one in each]
        else:
            rest = {name: value for name, value in job.config.items() if name not in STACKABLE}
            sizes = [name for name in STACKABLE if name in job.config]
            together.setdefault(json.dumps([rest, sizes, job.phase], sort_keys=True), []).append(job)
    for group in together.values():
        one = group[0] if len(group) == 1 else _stacked(group)
        run[one.folder] = one
        _, runs = _counts(group[0])
        places |= {job.folder: [Place(one, index * runs, runs)] for index, job in enumerate(group)}
    return run, places


def _counts(job: Job) -> tuple[int, int]:
    """First seed and number of runs, with the defaults of `bilevel train`."""
    return check_seed(job.config.get("seed", 0)), check_count(job.config.get("runs", 10), "runs")


def _stacked(group: list[Job]) -> Job:
    """One job with the runs of several."""
    seed, runs = _counts(group[0])
    sizes = {
        name: np.repeat([check_number(job.config[name], name) for job in group], runs).tolist()
        for name in STACKABLE
        if name in group[0].config
    }
    seeds = [seed + index for index in range(runs)] * len(group)
    return Job({**group[0].config, **sizes, "seed": seeds, "runs": len(seeds)}, group[0].phase)
