"""One self-contained HTML page of everything that a folder of runs holds; made from files, no code of theirs is run."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment

from bilevel_envs.envs.four_rooms import FourRooms
from leaders.experiments.json_file import UNREADABLE, read_json
from leaders.experiments.report.figures import (
    BUDGETS,
    Curve,
    Picture,
    curves_picture,
    file_picture,
    improvement_picture,
    profile_picture,
)
from leaders.experiments.results import RESULT, Cell, Result, Row, Table, read_result, table_of
from leaders.experiments.run_directory import CONFIG, HISTORY
from leaders.experiments.sweep.runner import RESULTS, STUDY
from leaders.published import four_rooms
from leaders.training.history import replace_file

LARGEST_HISTORY = 500_000_000  # bytes of a history that is drawn
ABOUT = (
    "A line for each setting. Scores are means over the last tenth of a run's iterations; mean, median and "
    "interquartile mean are over seeds, with 95 % bootstrap intervals (low, high), which are too short for few seeds."
)
SECTIONS = (
    ("summary", "Summary"),
    ("curves", "Curves"),
    ("comparisons", "Comparisons"),
    ("maps", "What was learnt"),
    ("runs", "Runs"),
    ("commands", "Commands and versions"),
)
MOST_ROWS = 3_000  # of the table of runs that are shown
MOST_NAMES = 20  # of runs without a result, on the page
MOST_CURVES = 16  # in one picture
MOST_MAPS = 12
POINTS = 400  # of a curve that is drawn
SPLIT = 4  # seeds of a setting from which one half may choose it and the other judge it


@dataclass(frozen=True)
class Runs:
    """The results in a folder.

    Attributes:
      root: the folder: of a study, of several runs, or of one.
      results: one for each run directory in it.
      damaged: what is said of files that cannot be read.
      unfinished: run directories, from the root, that hold no result.
      outside: run directories of studies, from the root, that are in no line of their tables; no results of ours.
      defaults: settings of `bilevel train` that are not shown where they are as here.
    """

    root: Path
    results: list[Result]
    damaged: list[str]
    unfinished: list[str]
    outside: list[str]
    defaults: Mapping[str, object]

    @cached_property
    def table(self) -> Table:
        """One line a run."""
        return table_of(self.results, self.root, self.defaults)


def find_runs(root: Path, defaults: Mapping[str, object]) -> Runs:
    """All results in a folder and below; of a study those that its table has.

    Other jobs lie in a study's folder where it was another study before, or where settings were chosen anew after a
    failure was mended.

    Raises:
      ValueError: if there are none.
    """
    results, damaged, outside = [], [], []
    tables = {path.parent: _folders(path.with_name(RESULTS)) for path in root.rglob(STUDY)}
    for path in sorted(root.rglob(RESULT)):
        try:
            result = read_result(path.parent)
        except ValueError as error:
            damaged.append(str(error))
            continue
        if _is_outside(path.parent, tables):
            outside.append(path.parent.relative_to(root).as_posix())
        elif result is not None:
            results.append(result)
    if not results:
        why = f" ({damaged[0]})" if damaged else ""
        raise ValueError(
            f"`directory` must be the folder of a study or of runs that have ended, with {RESULT} in each; there is "
            f"none in {root}{why}"
        )
    begun = [path.parent for path in sorted(root.rglob(CONFIG)) if not (path.parent / RESULT).exists()]
    return Runs(root, results, damaged, [path.relative_to(root).as_posix() for path in begun], outside, defaults)


def _is_outside(folder: Path, tables: Mapping[Path, set[str] | None]) -> bool:
    """Whether a run directory lies in a study that has a table without it."""
    study = next((parent for parent in folder.parents if parent in tables), folder)
    told = tables.get(study)
    return told is not None and folder.relative_to(study).as_posix() not in told


def _folders(path: Path) -> set[str] | None:
    """The run directories in a study's table; None where it has none yet, or one that cannot be read."""
    try:
        if path.stat().st_size > LARGEST_HISTORY:
            return None
        with open(path, newline="") as file:
            return {line["folder"] for line in csv.DictReader(file)} or None
    except (OSError, ValueError, LookupError, csv.Error):
        return None


def write_report(root: Path, path: Path, defaults: Mapping[str, object]) -> None:
    """Writes the page, replacing the file at once.

    Args:
      root: folder of a study, of run directories, or one run directory.
      path: the page.
      defaults: settings of `bilevel train` that are not shown where they are as here.

    Raises:
      ValueError: if the folder holds no result of a run.
    """
    runs = find_runs(root, defaults)
    page = Environment(autoescape=True, trim_blocks=True).from_string(
        resources.files("leaders.experiments.report").joinpath("page.html").read_text()
    )
    replace_file(path, page.render(_content(runs)).encode())


def _content(runs: Runs) -> dict[str, object]:
    table, summaries = runs.table, runs.table.summaries()
    curves, comparisons = list(_curves(runs)), list(_comparisons(table))
    maps, films = _media(runs, "incentives.png"), _media(runs, "follower.mp4")
    there = {"curves": curves, "comparisons": comparisons, "maps": maps or films}
    return {
        "title": runs.root.resolve().name,
        "subtitle": ", ".join(sorted({str(row.get("env")) for row in table.rows})),
        "sections": [(name, title) for name, title in SECTIONS if there.get(name, True)],
        "cards": _cards(runs),
        "about": ABOUT,
        "summary_head": _head(summaries),
        "summary_rows": _cells(summaries.rows, summaries),
        "curves": curves,
        "comparisons": comparisons,
        "maps": maps,
        "films": films,
        "runs_note": "A line for each seed."
        + (
            f" The first {MOST_ROWS:,} of {len(table.rows):,}; results.csv has all."
            if len(table.rows) > MOST_ROWS
            else ""
        )
        + (f" Failed, or not ended yet: {', '.join(runs.unfinished[:MOST_NAMES])}" if runs.unfinished else "")
        + (f" and {len(runs.unfinished) - MOST_NAMES} more." if len(runs.unfinished) > MOST_NAMES else "")
        + (f" In no line of results.csv, and not shown: {', '.join(runs.outside[:MOST_NAMES])}" if runs.outside else "")
        + (f" and {len(runs.outside) - MOST_NAMES} more." if len(runs.outside) > MOST_NAMES else ""),
        "runs_head": _head(table),
        "runs_rows": _cells(table.rows[:MOST_ROWS], table),
        "commands": list(_commands(runs)),
        "versions": _versions(runs),
        "study": json.dumps(_json(runs.root / "study.json").get("study", ""), indent=1).strip('"'),
    }


def _cards(runs: Runs) -> list[tuple[str, str]]:
    """Names and numbers at the top of the page."""
    rows = runs.table.rows
    evaluated = [row for row in rows if row.get("phase") != "selection"]
    cards = [
        ("run{s}", len(evaluated)),
        ("environment{s}", len({row.get("env") for row in evaluated})),
        ("leader{s}", len({row.get("leader") for row in evaluated})),
        ("environment step{s}", int(sum(_number(row.get("env_steps")) for row in rows))),
        ("run{s} to choose settings", len(rows) - len(evaluated)),
        ("run{s} without a result", len(runs.unfinished)),
        ("damaged file{s}", len(runs.damaged)),
    ]
    return [(name.format(s="s" * (count != 1)), f"{count:,}") for name, count in cards if count]


# Tables -------------------------------------------------------------------------------------------------------


def _head(table: Table) -> list[tuple[str, bool]]:
    """Columns, and whether they hold words."""
    return [(name, any(isinstance(row.get(name), str) for row in table.rows)) for name in table.columns]


def _cells(rows: Sequence[Row], table: Table) -> list[list[tuple[Cell, str]]]:
    """What is sorted by and what is shown."""
    return [[("" if row.get(n) is None else row[n], _shown(row.get(n))) for n in table.columns] for row in rows]


def _shown(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) > 999 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 99_999 else str(value)


def _number(value: Cell) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


# Pictures -----------------------------------------------------------------------------------------------------


def _label(names: Sequence[str], values: Sequence[Cell], varied: set[str]) -> str:
    """A setting in a legend: the leader and what differs between settings."""
    shown = [(name, value) for name, value in zip(names, values, strict=True) if name in varied and value is not None]
    return ", ".join(str(v) if n == "leader" else f"{n} {_shown(v)}" for n, v in shown) or "all runs"


def _worlds(table: Table) -> dict[str, list[tuple[tuple[Cell, ...], list[Row]]]]:
    """The settings of each environment."""
    names = table.settings
    worlds: dict[str, list[tuple[tuple[Cell, ...], list[Row]]]] = {}
    for values, rows in table.groups().items():
        world = ", ".join(
            str(value) if name == "env" else f"{name} {value}"
            for name, value in zip(names, values, strict=True)
            if name in ("env", "env_args", "beta", "dynamics") and value is not None
        )
        worlds.setdefault(world, []).append((values, rows))
    return worlds


def _curves(runs: Runs) -> Iterator[Picture]:
    """One picture for each environment."""
    names = runs.table.settings
    results = {_below(runs, one): one for one in runs.results}
    for world, members in _worlds(runs.table).items():
        columns = zip(names, zip(*(values for values, _ in members), strict=True), strict=True)
        varied = {"leader"} | {name for name, values in columns if len(set(values)) > 1}
        made = [_curve(_label(names, values, varied), rows, results) for values, rows in members[:MOST_CURVES]]
        curves = [curve for curve in made if curve is not None]
        if not curves:
            continue
        left = f"; the first {MOST_CURVES} of {len(members)} settings" if len(members) > MOST_CURVES else ""
        first = members[0][1][0]
        best = first.get("best_known")
        yield curves_picture(
            curves,
            str(first.get("measured", "leader_value")),
            float(best) if isinstance(best, (int, float)) else None,
            f"{world}: mean over seeds and 95 % t interval, cut off beyond all runs{left}.",
        )


def _curve(label: str, rows: Sequence[Row], results: Mapping[str, Result]) -> Curve | None:
    """The histories of a setting's seeds; None where they are missing or do not go together."""
    found: list[tuple[dict[str, np.ndarray], str]] = []
    for row in rows:
        result = results[str(row["folder"])]
        history = _history(result.folder / HISTORY).get(int(_number(row["run"])))
        if history is not None:
            found.append((history, str(row.get("measured", "leader_value"))))
    length = min((len(history["env_steps"]) for history, _ in found), default=0)
    if not length:
        return None
    shown = np.unique(np.linspace(0, length - 1, min(POINTS, length)).astype(int))
    value = np.stack([_filled(history[name])[shown] for history, name in found], 1)
    budgets = {name: np.mean([history[name][shown] for history, _ in found], 0) for name in BUDGETS}
    published = _published(results[str(rows[0]["folder"])].config, float(budgets["env_steps"][-1]))
    return Curve(label, value, budgets, published) if np.isfinite(value).all() else None


def _published(config: Mapping[str, object], last: float) -> np.ndarray | None:
    """The paper's curve of a leader in the four rooms up to so many environment steps, [2, points]; None elsewhere."""
    beta, batch = config.get("beta") or FourRooms().preferences.beta, config.get("batch") or 100
    elsewhere = config.get("env") != "BiLevel/FourRooms-v0" or config.get("env_args")
    if elsewhere or config.get("dynamics") not in (None, "published", "mismatched"):
        return None
    if not isinstance(beta, (int, float)) or not isinstance(batch, int):
        return None
    variants = [str(pair).partition("=")[2] for pair in _list(config.get("leader_args")) if "variant=" in str(pair)]
    curve = four_rooms("-".join([str(config.get("leader")), *variants]), float(beta), batch)
    if curve is None:
        return None
    steps = curve.iteration * batch
    return np.stack([steps, curve.mean])[:, steps <= last]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _history(path: Path) -> dict[int, dict[str, np.ndarray]]:
    """The columns of a history by run; empty where it cannot be read."""
    try:
        if path.stat().st_size > LARGEST_HISTORY:
            return {}
        with open(path, newline="") as file:
            reader = csv.reader(file)
            head = next(reader)
            places = {name: head.index(name) for name in ("run", "leader_value", "leader_return", *BUDGETS)}
            rows = np.array([[float(line[place]) for place in places.values()] for line in reader])
    except (OSError, ValueError, IndexError, StopIteration):
        return {}
    if not len(rows):
        return {}
    named = dict(zip(places, rows.T, strict=True))
    return {
        int(run): {name: column[named["run"] == run] for name, column in named.items()}
        for run in np.unique(named["run"])
    }


def _filled(values: np.ndarray) -> np.ndarray:
    """The newest known entry for those that are NaN."""
    known = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[known]


@dataclass(frozen=True)
class _Judged:
    """Leaders by task, each at one setting, on seeds that had no part in its choice.

    Attributes:
      rows: the lines of each leader's setting, by leader and task; of the tasks that all leaders have in common.
      chosen: whether any setting was chosen here.
      left_out: leaders with several settings and too few seeds to choose by some and to judge by others.
    """

    rows: dict[str, dict[str, list[Row]]]
    chosen: bool
    left_out: list[str]

    def scores(self, share: bool) -> dict[str, dict[str, np.ndarray]]:
        """Scores of leaders by task; the tasks on which all of them have finite ones."""
        found = {
            leader: {task: np.array([_scored(row, share) for row in rows]) for task, rows in tasks.items()}
            for leader, tasks in self.rows.items()
        }
        known = [
            task for task in next(iter(found.values()), {}) if all(np.isfinite(f[task]).all() for f in found.values())
        ]
        return {leader: {task: tasks[task] for task in known} for leader, tasks in found.items()} if known else {}

    def over(self, scores: Mapping[str, Mapping[str, np.ndarray]], what: str) -> str:
        """A caption: of what, over how many tasks, and how settings were chosen."""
        tasks = len(next(iter(scores.values())))
        told = f"{what}, over {tasks} task{'s' if tasks > 1 else ''}."
        if self.chosen:
            told += (
                " Of a leader's several settings the one with the highest mean on every other seed is taken there, "
                "and shown on the seeds that remain."
            )
        if self.left_out:
            told += f" Left out, with several settings and fewer than {SPLIT} seeds: {', '.join(self.left_out)}."
        return told


def _comparisons(table: Table) -> Iterator[Picture]:
    """Leaders over all tasks that all of them were run in; settings are chosen and judged on different seeds."""
    judged = _judged(table)
    shares = judged.scores(share=True)
    if len(shares) > 1:
        yield profile_picture(shares, judged.over(shares, "Performance profiles with 95 % bootstrap intervals"))
    scores = judged.scores(share=False)
    if 1 < len(scores) <= 10:
        caption = "Probability of improvement (Mann and Whitney's U), with 95 % bootstrap intervals"
        yield improvement_picture(scores, judged.over(scores, caption))


def _judged(table: Table) -> _Judged:
    """Leaders by task at the setting that is shown: the only one, such as one that a study has chosen, or the best."""
    settings: dict[str, dict[str, list[list[Row]]]] = {}
    for rows in table.groups().values():
        rows = sorted(rows, key=lambda row: _number(row.get("seed")))
        task = str((rows[0].get("env"), rows[0].get("env_args"), rows[0].get("beta")))
        if len(rows) > 1 and np.isfinite([_scored(row, share=False) for row in rows]).all():
            settings.setdefault(str(rows[0].get("leader")), {}).setdefault(task, []).append(rows)
    found: dict[str, dict[str, list[Row]]] = {}
    chosen, left_out = False, set()
    for leader, tasks in settings.items():
        for task, several in tasks.items():
            if len(several) == 1:
                found.setdefault(leader, {})[task] = several[0]
            elif min(map(len, several)) < SPLIT:
                left_out.add(leader)
            else:
                best = max(several, key=lambda rows: np.mean([_scored(row, share=False) for row in rows[::2]]))
                found.setdefault(leader, {})[task] = best[1::2]
                chosen = True
    common = set.intersection(*map(set, found.values())) if found else set()
    rows_of = {leader: {task: tasks[task] for task in sorted(common)} for leader, tasks in found.items()}
    return _Judged(rows_of if common else {}, chosen, sorted(left_out))


def _scored(row: Row, share: bool) -> float:
    """A run's score, or the share of the way from the start to the best known value."""
    score, start, best = (row.get(name) for name in ("score", "start", "best_known"))
    if not isinstance(score, (int, float)):
        return math.nan
    if not share:
        return float(score)
    if not isinstance(start, (int, float)) or not isinstance(best, (int, float)) or not best > start:
        return math.nan
    return (score - start) / (best - start)


def _media(runs: Runs, name: str) -> list[Picture]:
    """Maps or films of run directories, as far as there are."""
    found: list[Picture] = []
    for one in runs.results:
        picture = file_picture(one.folder / name, f"{_below(runs, one)}: {one.config.get('leader')}")
        if picture is not None and len(found) < MOST_MAPS:
            found.append(picture)
    return found


# Commands -----------------------------------------------------------------------------------------------------


def _below(runs: Runs, result: Result) -> str:
    return result.folder.resolve().relative_to(runs.root.resolve()).as_posix()


def _commands(runs: Runs) -> Iterator[tuple[str, str]]:
    """What to type to repeat the runs of a setting, in a folder for each that they had."""
    outs = (f"repeated/{number}" for number in itertools.count())
    results = {_below(runs, one): one for one in runs.results}
    names = runs.table.settings
    for values, rows in runs.table.groups().items():
        told = [f"{name} {_shown(value)}" for name, value in zip(names, values, strict=True) if value is not None]
        folders: dict[str, list[Row]] = {}
        for row in rows:
            folders.setdefault(str(row["folder"]), []).append(row)
        lines = [_command(results[name].config, rows, next(outs)) for name, rows in folders.items()]
        yield ", ".join(told), "\n".join(lines)


def _command(config: Mapping[str, object], rows: Sequence[Row], out: str) -> str:
    """`bilevel train` with the settings of a folder, of those that differ between its runs these runs' own."""
    own = {"runs": len(rows), "seed": min(int(_number(row["seed"])) for row in rows)}
    words = ["bilevel", "train"]
    for name, value in config.items():
        value = own.get(name, _own(rows[0], name, value))
        if value is None or value == [] or isinstance(value, dict):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([*words, "--out", out])


def _own(row: Row, name: str, value: object) -> object:
    """A run's own number where a folder's setting is one per run; a list that all runs share is a word in the table."""
    mine = row.get(name)
    return mine if isinstance(value, list) and isinstance(mine, (int, float)) else value


def _versions(runs: Runs) -> list[tuple[str, str]]:
    """Versions that the runs were made with; several where they differ."""
    found: dict[str, set[str]] = {}
    for one in runs.results:
        versions = _json(one.folder / CONFIG).get("versions")
        for name, version in versions.items() if isinstance(versions, dict) else ():
            found.setdefault(str(name), set()).add(str(version))
    return [(name, ", ".join(sorted(several))) for name, several in sorted(found.items())]


def _json(path: Path) -> dict[str, object]:
    try:
        found = read_json(path)
    except UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}
