"""Work on several runs in processes of their own, which are forked, so that nothing needs to be sent to them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

from bilevel_envs.core.follower import FollowerError

T = TypeVar("T")


def can_fork() -> bool:
    """Whether this system forks processes."""
    return "fork" in multiprocessing.get_all_start_methods()


def side_by_side(work: Callable[[int], T], runs: Sequence[int], processes: int) -> list[T]:
    """What `work` returns for each run, in their order.

    Args:
      work: of a run's number, to what can be pickled; what it changes is changed in its process alone.
      runs: their numbers.
      processes: at most so many at a time.

    Raises:
      FollowerError: if a process ends without a word.
      Exception: what `work` has raised.
    """
    forks = multiprocessing.get_context("fork")
    shares = [runs[first::processes] for first in range(min(processes, len(runs)))]
    ends, workers = [], []
    try:
        for share in shares:
            here, there = forks.Pipe(duplex=False)
            worker = forks.Process(target=_done, args=(work, share, there))
            worker.start()
            there.close()
            ends.append(here)
            workers.append(worker)
        found: dict[int, T] = {}
        for share, end in zip(shares, ends, strict=True):
            try:
                error, results = pickle.loads(end.recv_bytes())  # of a process of our own
            except EOFError:
                raise FollowerError(
                    f"the process that trains the agents of runs {list(share)} has ended without a word: was it "
                    "killed, for want of memory? Take fewer `processes`"
                ) from None
            if error is not None:
                raise error
            found.update(zip(share, results, strict=True))
        return [found[run] for run in runs]
    finally:
        for worker in workers:
            worker.kill()  # with what it has sent, or to no purpose any more
            worker.join()
        for end in ends:
            end.close()


def _done(work: Callable[[int], T], share: Sequence[int], end: Connection) -> None:
    """Sends what has become of a share: an exception or None, and results."""
    try:
        told: tuple[BaseException | None, list[T]] = (None, [work(run) for run in share])
    except BaseException as error:
        told = (error, [])
    end.send_bytes(pickle.dumps(told))  # not `send`, which shares the memory of tensors with a process that ends here
    end.close()
