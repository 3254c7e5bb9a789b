"""What a run records, one row per run and outer iteration."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from torch import Tensor

from bilevel_envs.core.checks import check_writable

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")

COLUMNS = (
    "env_steps",
    "follower_solves",
    "leader_value",
    "leader_return",
    "grad_norm",
    "residual",
    "episodes",
    "leader_value_actual",
    "follower_steps",
    "coverage",
    "visits_per_pair",
    "optimality_gap",
    "follower_improvement",
    "follower_drift",
    "explored_value",
    "promised_value",
    "dynamics_r2",
    "dynamics_inside",
)
COUNTS = ("env_steps", "follower_solves", "episodes", "follower_steps")


class History:
    """Columns [iterations, R] by name, read like a mapping; grows by one row per outer iteration, which `len` counts.

    Values and diagnostics belong to θ before the update; `env_steps`, `follower_solves` and `follower_steps` are what
    was spent up to and with the iteration.

    Columns:
      env_steps: environment steps that the leader has taken in each run.
      follower_solves: follower responses that the leader has asked for.
      leader_value: exact J_L(θ) under the follower's soft optimum, without a time limit; NaN without a model, and on
        iterations where it was not evaluated (`evaluate_every`).
      leader_return: mean discounted return of the leader in what the iteration sampled; what a batch cuts off an
        episode is estimated from its other episodes, as far as rows go.
      grad_norm: ℓ2 norm of the raw gradient before it is clipped.
      residual: largest violation of the follower's optimality equation; NaN for one that solves none.
      episodes: how many episodes ended in the batch.
      leader_value_actual: exact J_L(θ) under the policy that the follower used, which differs from `leader_value` where
        it is not optimal.
      follower_steps: environment steps that followers which learn or are observed have taken, beside the leader's own.
      coverage: share of a table's pairs (s, b) that the leader has visited so far; NaN where nothing is counted.
      visits_per_pair: how often each of the visited pairs was visited, on average.
      optimality_gap: what the follower's soft return lacks of the optimum; NaN where that is not known.
      follower_improvement: how much the follower's mean reward per step rose at the end of its last training.
      follower_drift: KL divergence of the follower's policy from that of its response before.
      explored_value: exact J_L of a second θ that the iteration deployed to learn of the world; `MBHG` alone.
      promised_value: J_L that a learnt world gave for the θ in force when it was proposed; `MBHG` alone. Where unknown
        pairs can be reached it may lie far below `leader_value`.
      dynamics_r2: how well learnt dynamics tell s' − s on episodes that they were not fitted to: R² of the entry of the
        state that is told worst; NaN where the dynamics are known.
      dynamics_inside: share of entries there inside 90 % intervals.

    Args:
      runs: R.
    """

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self._data = np.empty((0, len(COLUMNS), runs))
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, column: str) -> np.ndarray:
        """One column, [iterations, R]; `COLUMNS` names them."""
        if column not in COLUMNS:
            raise KeyError(f"a history has the columns {', '.join(COLUMNS)}; got {column!r}")
        return self._data[: self._length, COLUMNS.index(column)]

    def __contains__(self, column: object) -> bool:
        return column in COLUMNS

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMNS)

    def keys(self) -> KeysView[str]:
        """The names of the columns, so that `dict(history)` holds them all."""
        return dict.fromkeys(COLUMNS).keys()

    def values(self) -> ValuesView[np.ndarray]:
        """The columns, [iterations, R] each."""
        return self._columns().values()

    def items(self) -> ItemsView[str, np.ndarray]:
        """The columns, [iterations, R] each, with their names."""
        return self._columns().items()

    def get(self, column: str, default: T | None = None) -> np.ndarray | T | None:
        """One column, [iterations, R]; `default` for a name that is none of `COLUMNS`."""
        return self[column] if column in COLUMNS else default

    def _columns(self) -> dict[str, np.ndarray]:
        return {column: self[column] for column in COLUMNS}

    def __repr__(self) -> str:
        return f"History({len(self)} iterations of {self.runs} runs: {', '.join(COLUMNS)})"

    def append(self, **row: Tensor | np.ndarray | float) -> None:
        """Adds one iteration; every column is a number or [R]."""
        if self._length == len(self._data):
            grown = np.empty((max(256, 2 * self._length), len(COLUMNS), self.runs))
            grown[: self._length] = self._data[: self._length]
            self._data = grown
        for index, column in enumerate(COLUMNS):
            self._data[self._length, index] = row[column]
        self._length += 1

    def last(self, column: str, default: float = 0.0) -> np.ndarray:
        """The newest entries of a column, [R]; `default` before the first."""
        return self[column][-1] if self._length else np.full(self.runs, default)

    def filled(self, column: str) -> np.ndarray:
        """A column [iterations, R] in which the newest known entry stands for those that are NaN."""
        values = self[column]
        known = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
        return np.take_along_axis(values, np.maximum.accumulate(known, axis=0), axis=0)

    def latest(self, column: str) -> np.ndarray:
        """The newest entries of a column that are known, [R]; NaN where none is."""
        return self.filled(column)[-1] if self._length else np.full(self.runs, np.nan)

    def write_csv(self, path: str | Path) -> None:
        """Writes every row, replacing the file at once."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", "iteration", *COLUMNS])
        table = self._data[: self._length]
        for run in range(self.runs):
            for iteration, row in enumerate(table[:, :, run].tolist()):
                cells = [int(x) if c in COUNTS else repr(x) for c, x in zip(COLUMNS, row, strict=True)]
                writer.writerow([run, iteration, *cells])
        replace_file(path, text.getvalue().encode())

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame with a line for each run and iteration: `run`, `iteration` and the columns.

        Raises:
          ImportError: without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("`to_pandas` needs pandas: pip install pandas") from error
        count = len(self)
        lines = {
            "run": np.repeat(np.arange(self.runs), count),
            "iteration": np.tile(np.arange(count), self.runs),
            **{name: values.T.ravel() for name, values in self.items()},
        }
        frame = pandas.DataFrame(lines)
        return frame.astype(dict.fromkeys(COUNTS, "int64"))

    def state(self) -> np.ndarray:
        """All rows, [iterations, columns, R]; a view that must not be written to."""
        return self._data[: self._length]

    def load_state(self, state: np.ndarray) -> None:
        """Puts back what `state` gave."""
        if state.shape[1:] != (len(COLUMNS), self.runs):
            raise ValueError(
                f"a history of {self.runs} runs must have shape [n, {len(COLUMNS)}, {self.runs}], got {state.shape}"
            )
        self._data, self._length = np.array(state), len(state)


def replace_file(path: str | Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
      TypeError, ValueError, OSError: as `check_writable`, and what the file system says.
    """
    path = check_writable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
