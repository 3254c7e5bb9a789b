"""Experiment trackers as callbacks: settings, the history's columns and files of a run, in somebody's database."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, TypedDict, cast

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from bilevel_envs.core.checks import check_choice
from leaders.training.history import COLUMNS, History, replace_file

if TYPE_CHECKING:
    from bilevel_envs.wrapper import BilevelWrapper

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
AXES = ("iterations", "env_steps")
EACH = ("leader_value", "leader_return")  # columns of which every stacked run is logged
MOST_RUNS, MOST_ENTRIES = 100, 10  # stacked runs, and entries of θ, that are logged
LONGEST = 500  # characters of a setting
RETRY = 60.0  # seconds before a tracker that failed is tried again


class TrackerWarning(UserWarning):
    """A tracker cannot be reached; learning goes on without it."""


class TrackerKeywords(TypedDict, total=False):
    """The keywords that every tracker takes; see `Tracker`."""

    folder: str | Path | None
    name: str | None
    parameters: Mapping[str, object] | None
    axis: str


class Tracked(Protocol):
    """What a tracker reads of a leader; see `leaders.leader.Leader`."""

    env: BilevelWrapper
    runs: int
    history: History

    @property
    def arguments(self) -> dict[str, object]: ...

    @property
    def theta(self) -> np.ndarray: ...


class Tracker(BaseCallback):
    """A callback that writes a run to a tracker; `MLflowCallback` and `WandbCallback` say which.

    The leader's settings become parameters. Every `log_interval` iterations of `learn`, and at its end, the columns of
    the history that are known become metrics under their own names: means over stacked runs, `leader_value` and
    `leader_return` also of each run (`leader_value/run_0`, ...), and of run 0 at most ten entries of θ (`theta/0`,
    ...). They are logged against iterations or environment steps, both of which are metrics themselves.

    The tracker's run ends with `learn`: FINISHED, FAILED after an exception, KILLED after Ctrl-C or an exit. Within
    `with`, it ends with the block instead, which may hold several `learn` and `log_files`. A tracker that cannot be
    reached warns once, is tried again a minute later, and never ends the learning.

    Args:
      folder: where the tracker's run is noted, so that a later process goes on in the same one; None for a run anew.
      name: of the run in the tracker; the tracker's own choice if None.
      parameters: settings to log beside the leader's own.
      axis: what metrics are logged against, "iterations" or "env_steps".
    """

    kind: ClassVar[str] = "tracker"

    def __init__(
        self,
        folder: str | Path | None = None,
        name: str | None = None,
        parameters: Mapping[str, object] | None = None,
        axis: str = "iterations",
    ) -> None:
        super().__init__()
        check_choice(axis, AXES, "axis")
        self._folder = None if folder is None else Path(folder)
        self._name, self._axis = name, axis
        self._parameters = {key: value for key, value in (parameters or {}).items() if value is not None}
        self._within = self._warned = self._open = False
        self._again = 0.0  # when it may be tried, in time.monotonic()
        self._logged = -1  # iterations of the last metrics

    # What a tracker provides ----------------------------------------------------------------------------------

    def _begin(self, run: str, parameters: Mapping[str, str]) -> int:
        """Begins a run with this key of ours, or goes on in the one that has it; the iterations that it knows of."""
        raise NotImplementedError

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics."""
        raise NotImplementedError

    def _upload(self, paths: Iterable[Path]) -> None:
        """Keeps copies of files."""
        raise NotImplementedError

    def _finish(self, status: str) -> None:
        """Ends the run."""
        raise NotImplementedError

    def _abandon(self, run: str) -> None:
        """Ends the run with this key, if there is one, which other settings left behind."""

    # What a user calls ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._within = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.end(status_of(error))
        self._within = False

    def log_files(self, paths: Iterable[str | Path]) -> None:
        """Copies files of a run that has begun to learn into the tracker.

        Args:
          paths: of files; those that do not exist are left out.
        """
        found = [path for path in map(Path, paths) if path.is_file()]
        if self._open:
            self._guarded(lambda: self._upload(found))

    def end(self, status: str = FINISHED) -> None:
        """Ends the tracker's run; one that has ended stays as it is.

        Args:
          status: "FINISHED", "FAILED" or "KILLED".
        """
        check_choice(status, (FINISHED, FAILED, KILLED), "status")
        if self._open:
            self._open, self._again = False, 0.0  # a tracker that was away may be back
            self._guarded(lambda: self._finish(status))

    # What `learn` calls ---------------------------------------------------------------------------------------

    def on_training_error(self, error: BaseException) -> None:
        """Ends the run, unless a `with` does, because of an exception that ends `learn`."""
        if not self._within:
            self.end(status_of(error))

    def _on_training_start(self) -> None:
        self._guarded(self._connect)

    def _on_step(self) -> bool:
        if len(self._leader.history) % self.locals["log_interval"] == 0:
            self._guarded(self._log_now)
        return True

    def _on_training_end(self) -> None:
        self._guarded(self._log_now)
        if not self._within:
            self.end()

    @property
    def _leader(self) -> Tracked:
        return cast("Tracked", self.model)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Calls; what goes wrong becomes a warning, once, and learning goes on."""
        if time.monotonic() < self._again:
            return
        try:
            call()
        except Exception as error:
            self._again = time.monotonic() + RETRY
            if not self._warned:
                self._warned = True
                told = " ".join(str(error).split())[:LONGEST]
                warnings.warn(
                    f"{self.kind} cannot be reached ({type(error).__name__}: {told}); learning goes on without it",
                    TrackerWarning,
                    stacklevel=2,
                )

    def _connect(self) -> None:
        """Begins the run, or goes on in the one that the folder notes."""
        if self._open:
            return
        parameters = settings_of(self._leader) | {key: _text(value) for key, value in self._parameters.items()}
        digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
        self._logged = self._begin(self._key(digest), parameters)
        self._open = True

    def _key(self, digest: str) -> str:
        """The key of the run that the folder notes; a new one, noted before the tracker hears of it, if it notes none.

        A run of other settings, which came to nothing, is ended.
        """
        if self._folder is None:
            return uuid.uuid4().hex
        note = self._folder / f"{self.kind}.json"
        try:
            found = json.loads(note.read_bytes())
            run, settings = str(found["run"]), found["settings"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError):
            run, settings = "", None
        if run and settings == digest:
            return run
        if run:
            self._abandon(run)
        run = uuid.uuid4().hex
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(note, json.dumps({"run": run, "settings": digest}).encode())
        return run

    def _log_now(self) -> None:
        """Logs the newest row of the history, once."""
        self._connect()
        leader = self._leader
        count = len(leader.history)
        if count > self._logged and count:
            steps = {"iterations": count, "env_steps": int(leader.history.last("env_steps").mean())}
            self._log(metrics_of(leader), steps[self._axis])
            self._logged = count


def status_of(error: BaseException | None) -> str:
    """How a run ended, by what ended it."""
    if error is None:
        return FINISHED
    return FAILED if isinstance(error, Exception) else KILLED


def settings_of(leader: Tracked) -> dict[str, str]:
    """A leader's settings, as text."""
    spec = leader.env.unwrapped.spec
    found = {
        "leader": type(leader).__name__,
        "env": leader.env.problem.title if spec is None else spec.id,
        "runs": leader.runs,
        **{name: value for name, value in leader.arguments.items() if value is not None},
    }
    return {name: _text(value) for name, value in found.items()}


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def metrics_of(leader: Tracked) -> dict[str, float]:
    """The newest known entries of a history's columns, and θ; what is not known is left out."""
    found: dict[str, float] = {"iterations": len(leader.history)}
    for column in COLUMNS:
        values = leader.history.latest(column)
        found[column] = float(values.mean())
        if column in EACH and len(values) > 1:
            found |= {f"{column}/run_{run}": float(value) for run, value in enumerate(values[:MOST_RUNS])}
    first = leader.theta.reshape(leader.runs, -1)[0, :MOST_ENTRIES]
    found |= {f"theta/{index}": float(entry) for index, entry in enumerate(first)}
    return {name: value for name, value in found.items() if np.isfinite(value)}
