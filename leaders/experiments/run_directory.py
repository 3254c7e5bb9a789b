"""A training run as a folder: its configuration, its checkpoint, its history."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from stable_baselines3.common.callbacks import BaseCallback

from leaders.experiments.json_file import UNREADABLE, read_json
from leaders.experiments.lock import check_held, hold, is_ours, make_folder
from leaders.leader import Leader
from leaders.training.checkpoint import Rows, rows_beside
from leaders.training.history import replace_file
from leaders.training.task import differences
from leaders.training.theta import write_csv
from leaders.training.tracker_notes import OF_TRACKERS

CONFIG, LEADER, HISTORY, THETA = "config.json", "leader.zip", "history.csv", "theta.csv"
AGAIN = 0.5  # seconds within which signals are one: of a terminal, and of a program that passes it on
CHEAP = 100  # how many times its cost an iteration takes after which there is a checkpoint at once
SIGNALS = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP")]
PACKAGES = ("bilevel-envs", "gymnasium", "numpy", "scipy", "stable-baselines3", "torch")


class RunDirectory:
    """A folder that holds one run, whole at any moment.

    `leader.zip` is the truth: it holds all that is needed to go on bit for bit, and is replaced at once. While the run
    is under way its history is in `leader.history`, to which each checkpoint adds the rows that are new; afterwards in
    `leader.zip`. `theta.csv` is made from it at every checkpoint, `history.csv` and the pictures when the run ends,
    however it ends.

    Args:
      path: the folder; it need not exist.
      config: the configuration, JSON-able; `iterations` alone may differ when a run is resumed. Under "task" it may
        hold a `leaders.training.task.Task`.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = Path(path), config
        self._rows = Rows(rows_beside(self.path / LEADER))
        self._checked: dict[str, tuple[int, int]] | None = None  # files when `check` saw them
        self._claimed = False

    def check(self, resume: bool) -> None:
        """Refuses, before anything is written, a folder that holds something else.

        Raises:
          FileExistsError: if the folder holds a run and `resume` is not asked for, or holds files of another kind.
          ValueError: if it holds a run with another configuration.
        """
        if self.path.is_file():
            raise FileExistsError(f"`out` must be a folder; {self.path} is a file")
        self._checked = self._files()
        names = {found.name for found in self.path.iterdir() if not is_ours(found)} if self.path.exists() else set()
        if not names:
            return
        config = self.path / CONFIG
        if config.is_file() and names <= {CONFIG, "tensorboard", *OF_TRACKERS}:
            return  # a run that came to nothing
        if not config.is_file():
            raise FileExistsError(f"`out` must be empty or hold a run; {self.path} has files but no {CONFIG}")
        different = self._differences()
        if different:
            raise ValueError(
                f"{self.path} holds a run with another configuration ({'; '.join(different)}); choose another --out"
            )
        if not resume:
            raise FileExistsError(
                f"{self.path} already holds this run; add --resume to go on with it, or choose another --out"
            )

    def _differences(self) -> list[str]:
        """In which settings the run that is there differs from this one."""
        try:
            found = read_config(self.path)
        except ValueError as error:
            raise ValueError(f"{error}; choose another --out, or delete {self.path} to begin anew") from error
        return [
            f"{key}: {found.get(key)!r} there, {self.config.get(key)!r} here"
            for key in sorted(found.keys() | self.config.keys())
            if key not in ("iterations", "task") and found.get(key) != self.config.get(key)
        ] or differences(found.get("task", {}), self.config.get("task", {}))

    def claim(self) -> None:
        """Creates the folder and keeps other processes out of it; a checkpoint is read after that alone.

        It is this process's until `release_all` of `leaders.experiments.lock`, or until the process ends.

        Raises:
          BlockingIOError: if another process writes to it, or has written to it since `check`.
        """
        if self._claimed:
            return
        make_folder(self.path)
        hold(self.path)
        if self._checked is not None and self._files() != self._checked:
            raise BlockingIOError(f"`out` was written to by another command a moment ago: {self.path}; start again")
        self._claimed = True

    def begin(self) -> None:
        """Claims the folder and writes the run's configuration.

        Raises:
          BlockingIOError: if another process writes to it, or has written to it since `check`.
        """
        self.claim()
        for leftover in self.path.glob(".*.part"):  # of a write that a kill cut short
            leftover.unlink()
        described = {"arguments": self.config, "versions": {name: version(name) for name in PACKAGES}}
        replace_file(self.path / CONFIG, (json.dumps(described, indent=2) + "\n").encode())

    def _files(self) -> dict[str, tuple[int, int]]:
        """When files of the run were written, and their sizes."""
        told = {}
        for one in self.path.iterdir() if self.path.is_dir() else ():
            with suppress(FileNotFoundError):  # another command may be about to end
                if one.is_file() and not is_ours(one):
                    told[one.name] = (one.stat().st_mtime_ns, one.stat().st_size)
        return told

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint; None before the first."""
        path = self.path / LEADER
        return path if path.is_file() else None

    def save_checkpoint(self, leader: Leader) -> None:
        """Writes a checkpoint and θ, at a cost that does not depend on how far the run is."""
        check_held(self.path)
        leader.save(self.path / LEADER, self._rows)
        write_csv(leader.theta, leader.runs, self.path / THETA)

    def save(self, leader: Leader) -> None:
        """Writes the checkpoint with its whole history, and history and θ as CSV."""
        check_held(self.path)
        leader.save(self.path / LEADER)
        self._rows.path.unlink(missing_ok=True)
        self._rows = Rows(self._rows.path)
        leader.history.write_csv(self.path / HISTORY)
        write_csv(leader.theta, leader.runs, self.path / THETA)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in a folder.

    Raises:
      ValueError: if the folder holds no configuration of a run.
    """
    config = Path(path) / CONFIG
    try:
        found = read_json(config)["arguments"]
    except UNREADABLE as error:
        raise ValueError(f"{config} is not a run's configuration ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{config} is not a run's configuration (its arguments are no table)")
    return found


class Checkpoint(BaseCallback):
    """Saves a run now and then, and ends it on a signal after the iteration under way; changes nothing in the run.

    The first iteration is saved at once, and so is each that takes much longer than to save it: of learning that ends
    within an iteration little else is lost.

    Args:
      directory: where.
      seconds: least time between two saves of shorter iterations.
      stop: whether the run is to end, asked after each iteration; None for never.

    Attributes:
      interrupted: whether the run was told to end.
      saved: outer iterations that the last checkpoint holds.
      learnt: whether learning is over, all of it saved: what follows then ends at the first signal.
    """

    def __init__(self, directory: RunDirectory, seconds: float = 15.0, stop: Callable[[], bool] | None = None) -> None:
        super().__init__()
        self._directory, self._seconds, self._stop = directory, seconds, stop
        self._last = self._begun = time.monotonic()  # of the last save, of the iteration
        self._cost = 0.0  # seconds that the last save took
        self.interrupted = self.learnt = False
        self.saved = 0

    def interrupt(self, *_: object) -> None:
        """A signal handler: stop after this iteration; the second time, or after all of them, at once.

        Raises:
          KeyboardInterrupt: to stop at once.
        """
        if self.learnt:
            raise KeyboardInterrupt(
                f"stopped at once, after all {self.saved} outer iterations, which are in {self._directory.checkpoint}; "
                "--resume draws the pictures and writes the result"
            )
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def _on_training_start(self) -> None:
        self.saved = self._leader.progress.iterations
        self._begun = time.monotonic()

    def _on_step(self) -> bool:
        self.interrupted |= self._stop is not None and self._stop()
        if self.interrupted:
            return False
        now = time.monotonic()
        if now - self._last >= self._seconds or now - self._begun >= CHEAP * self._cost:
            self._directory.save_checkpoint(self._leader)
            self.saved, self._last = self._leader.progress.iterations, time.monotonic()
            self._cost = self._last - now
        self._begun = time.monotonic()
        return True

    @property
    def _leader(self) -> Leader:
        return cast(Leader, self.model)


@contextmanager
def on_signals(handler: Callable[..., None]) -> Iterator[None]:
    """Calls a handler on the signals that ask a command to end; those that are ignored, as under nohup, stay so."""
    last, before = -math.inf, {}

    def hear(*given: object) -> None:
        nonlocal last
        if time.monotonic() - last >= AGAIN:
            last = time.monotonic()
            handler(*given)

    with suppress(ValueError):  # Python hears signals in its main thread alone
        for one in SIGNALS:
            if signal.getsignal(one) != signal.SIG_IGN:
                before[one] = signal.signal(one, hear)
    try:
        yield
    finally:
        for one, was in before.items():
            signal.signal(one, was)
