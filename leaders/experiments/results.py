"""What came of runs: a small file in every run directory, and one table of all of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from leaders.experiments.json_file import UNREADABLE, read_json
from leaders.experiments.statistics import summary
from leaders.leader import Leader
from leaders.training.history import replace_file

if TYPE_CHECKING:
    import pandas

RESULT = "result.json"
FORMAT = 1
TAIL = 0.1  # share of the iterations, at the end, over which the score is the mean
BUDGETS = ("env_steps", "follower_solves", "follower_steps")
FIRST = ("env", "leader", "follower")
LAST = ("phase", "run", "seed", "iterations", "measured", "start", "score", "best_known", "gap", *BUDGETS, "folder")
OF_A_RUN = ("phase", "seed", "iterations")  # which tell runs of one setting apart
STATISTICS = ("seeds", *(f"{name}{end}" for name in ("mean", "median", "iqm") for end in ("", "_low", "_high")))
Cell: TypeAlias = str | float | None
Row: TypeAlias = dict[str, Cell]


def scores(leader: Leader) -> tuple[str, np.ndarray, np.ndarray]:
    """What a leader is judged by: the name of the column, the first value of each run [R], and its score [R].

    The score is the mean over the last tenth of the iterations of J_L, or of the sampled return where J_L is not known.
    """
    name = "leader_value"
    values = leader.history.filled(name)
    if np.isnan(values).all():
        name = "leader_return"
        values = leader.history[name]
    return name, values[0], values[-max(1, int(TAIL * len(values))) :].mean(0)


def write_result(leader: Leader, config: Mapping[str, object], path: Path) -> None:
    """Writes what came of each run of a leader that has learnt, replacing the file at once.

    Args:
      leader: after at least one iteration.
      config: the arguments of `bilevel train`, as JSON; of a list with an entry for each run, each takes its own.
      path: where.
    """
    measured, start, score = scores(leader)
    best = leader.env.best_known
    runs = []
    for run in range(leader.runs):
        own = {key: each[run] for key, value in config.items() if (each := _by_run(value, leader.runs))}
        ended = {
            "run": run,
            "seed": int(leader.seeds[run]),
            "iterations": leader.progress.iterations,
            "measured": measured,
            "start": float(start[run]),
            "score": float(score[run]),
            "best_known": None if best is None else float(best),
            "gap": None if best is None or measured != "leader_value" else float(best) - float(score[run]),
            **{name: int(leader.history[name][-1, run]) for name in BUDGETS},
        }
        runs.append({key: _finite(value) for key, value in (own | ended).items()})
    text = json.dumps({"format": FORMAT, "config": dict(config), "runs": runs}, indent=1, allow_nan=False)
    replace_file(path, (text + "\n").encode())


def _by_run(value: object, runs: int) -> list[float]:
    """A setting's entry for each of several runs; empty where it has none."""
    numbers = [one for one in value if isinstance(one, (int, float))] if isinstance(value, list) else []
    return numbers if len(numbers) == runs > 1 else []


def _finite(value: object) -> object:
    """None for numbers that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Result:
    """What a run directory's small file says.

    Attributes:
      folder: the run directory.
      config: the arguments of `bilevel train`.
      runs: a line for each stacked run.
    """

    folder: Path
    config: dict[str, object]
    runs: list[Row]


def read_result(folder: Path) -> Result | None:
    """The result in a run directory; None where there is none yet.

    Raises:
      ValueError: if the file is damaged or no such result.
    """
    path = Path(folder) / RESULT
    try:
        found = read_json(path)
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}, this version reads {FORMAT}")
        config, runs = found["config"], found["runs"]
        plain = (str, int, float, type(None))
        if not runs or not all(isinstance(value, plain) for run in runs for value in dict(run).values()):
            raise ValueError("its runs are no lines of numbers and words")
        if any(name not in run for run in runs for name in ("run", "seed", "score", "start", *BUDGETS)):
            raise ValueError("its runs lack a column")
        return Result(Path(folder), dict(config), [dict(run) for run in runs])
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is damaged or no run's result ({error}); run the same command again with --resume, which writes "
            "it anew"
        ) from error


@dataclass(frozen=True)
class Table:
    """One line for each run of a study, seeds and settings in columns of their own.

    Attributes:
      rows: the lines; a column that a line lacks is empty there.
    """

    rows: list[Row]

    @property
    def columns(self) -> list[str]:
        """Names of the columns: who and where, the settings that were given, what came of it."""
        given = {name for row in self.rows for name, value in row.items() if value is not None}
        last = (*STATISTICS, *LAST)
        settings = sorted(given - {*FIRST, *last})
        return [*(name for name in FIRST if name in given), *settings, *(name for name in last if name in given)]

    def groups(self) -> dict[tuple[Cell, ...], list[Row]]:
        """The lines of each setting, which differ in their seeds alone; those of a selection are left out."""
        names = self.settings
        found: dict[tuple[Cell, ...], list[Row]] = {}
        for row in self.rows:
            if row.get("phase") != "selection":
                found.setdefault(tuple(row.get(name) for name in names), []).append(row)
        return found

    def summaries(self) -> Table:
        """One line for each setting: mean, median and interquartile mean of the score with their intervals."""
        names, lines = self.settings, []
        for values, rows in self.groups().items():
            line: Row = dict(zip(names, values, strict=True)) | {"seeds": len(rows)}
            known = [row["score"] for row in rows if isinstance(row["score"], (int, float))]
            if len(known) == len(rows) > 1:
                told = summary(np.array(known, dtype=float))
                for name in ("mean", "median", "iqm"):
                    low, high = getattr(told, f"{name}_interval")
                    line |= {name: getattr(told, name), f"{name}_low": low, f"{name}_high": high}
            elif len(known) == len(rows):
                line["mean"] = known[0]
            line["start"] = _mean(rows, "start")
            line |= {name: _mean(rows, name) for name in ("best_known", *BUDGETS)}
            lines.append(line)
        return Table(lines)

    @property
    def settings(self) -> list[str]:
        """The columns that say who was run and how; with the iterations where runs differ in these alone."""
        names = [name for name in self.columns if name not in (*STATISTICS, *LAST)]
        lengths: dict[tuple[Cell, ...], set[Cell]] = {}
        for row in self.rows:
            if row.get("phase") != "selection":
                lengths.setdefault(tuple(row.get(name) for name in names), set()).add(row.get("iterations"))
        return [*names, "iterations"] if any(len(found) > 1 for found in lengths.values()) else names

    def write_csv(self, path: Path) -> None:
        """Writes the table, replacing the file at once."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[_cell(row.get(name)) for name in self.columns] for row in self.rows])
        replace_file(path, text.getvalue().encode())

    def write_parquet(self, path: Path) -> bool:
        """Writes the table as Parquet; False, and nothing written, without the package pyarrow."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            return False
        columns = {name: _uniform([row.get(name) for row in self.rows]) for name in self.columns}
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
        replace_file(path, buffer.getvalue())
        return True

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a data frame.

        Raises:
          ImportError: without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("`to_pandas` needs pandas: pip install pandas") from error
        return pandas.DataFrame({name: [row.get(name) for row in self.rows] for name in self.columns})


def table_of(results: Iterable[Result], root: Path, defaults: Mapping[str, object]) -> Table:
    """One table of results; a seed of a setting has one line, however many run directories hold it.

    Args:
      results: of run directories.
      root: what their folders are named from.
      defaults: settings of `bilevel train` that are not shown where they are as here.
    """
    rows: list[Row] = []
    for one in results:
        shown = {name: value for name, value in one.config.items() if name in FIRST or value != defaults.get(name)}
        told = {name: _word(value) for name, value in shown.items() if name not in ("seed", "iterations", "runs")}
        folder = one.folder.resolve().relative_to(Path(root).resolve()).as_posix()
        phase = "selection" if folder.startswith("selection/") else "evaluation"
        rows += [{**told, **run, "phase": phase, "folder": folder} for run in one.runs]
    first: dict[tuple[tuple[str, Cell], ...], Row] = {}
    for row in rows:
        first.setdefault(_identity(row), row)
    return Table(list(first.values()))


def _identity(row: Row) -> tuple[tuple[str, Cell], ...]:
    """What a run is: its settings, its seed and how long it is; all else follows."""
    return tuple(sorted((name, value) for name, value in row.items() if name not in LAST or name in OF_A_RUN))


def _word(value: object) -> Cell:
    """A setting in a cell."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else json.dumps(value, sort_keys=True)


def _cell(value: Cell) -> object:
    return "" if value is None else repr(value) if isinstance(value, float) else value


def _mean(rows: Sequence[Row], name: str) -> Cell:
    """Mean of a column over lines; None where one lacks it."""
    numbers = [row.get(name) for row in rows]
    known = [float(number) for number in numbers if isinstance(number, (int, float))]
    return sum(known) / len(known) if len(known) == len(numbers) else None


def _uniform(values: Sequence[Cell]) -> Sequence[Cell]:
    """A column of one kind: as words where words and numbers meet."""
    kinds = {isinstance(value, str) for value in values if value is not None}
    if len(kinds) < 2:
        return values
    return [None if value is None else str(value) for value in values]
