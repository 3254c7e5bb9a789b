"""A study as its file describes it: settings of `bilevel train`, some of them lists; and the jobs that follow."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from bilevel_envs.core.checks import check_choice, check_count, check_number, check_seed, meant

LARGEST = 1_000_000  # bytes of a study's file
MOST_JOBS = 100_000
PAIRS = ("env_args", "leader_args", "follower_args")
HOW = ("search", "count", "batch", "runs", "seed", "skip_failed")  # of a choice, beside the settings that are chosen
SEARCHES = ("grid", "random", "optuna")
STACKABLE = ("learning_rate", "critic_learning_rate")  # which stacked runs may have each its own


@dataclass(frozen=True)
class Job:
    """One run directory.

    Attributes:
      config: settings of `bilevel train` that differ from its defaults.
      phase: "evaluation", or "selection" where settings are chosen.
    """

    config: dict[str, object]
    phase: str = "evaluation"

    @property
    def name(self) -> str:
        """The folder's name: what it runs and a digest of all its settings, the same in every study that has it."""
        text = json.dumps(self.config, sort_keys=True)
        env = re.split("[/:]", str(self.config["env"]))[-1]
        told = "-".join(re.sub(r"[^\w.-]+", "_", str(part)) for part in (env, self.config.get("leader", "bchg")))
        return f"{told[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @property
    def folder(self) -> str:
        """Where in the study's folder it runs."""
        return f"{'jobs' if self.phase == 'evaluation' else self.phase}/{self.name}"


@dataclass(frozen=True)
class Range:
    """An interval that a search draws from.

    Attributes:
      low: its lower end.
      high: its upper end.
      log: whether the logarithm is what is drawn.
      integer: whether whole numbers are.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Tune:
    """How settings are chosen, on seeds that the evaluation does not use.

    Attributes:
      axes: the values that each setting may take, or a range; by name, those of pairs as "env_args.size".
      search: "grid", "random" or "optuna" (tree-structured Parzen estimators).
      count: points that are tried, of a grid all.
      batch: points that Optuna names at a time; they run side by side.
      runs: seeds of each point.
      seed: the first of them; of the search as well.
      skip_failed: whether the search goes on without points whose jobs fail; otherwise it waits until they are done.
    """

    axes: dict[str, list[object] | Range]
    search: str = "grid"
    count: int = 20
    batch: int = 4
    runs: int = 3
    seed: int = 1_000_000
    skip_failed: bool = False

    @property
    def size(self) -> int:
        """How many points are tried.

        Raises:
          ValueError: if a grid has a range.
        """
        if self.search != "grid":
            return self.count
        size = 1
        for name, values in self.axes.items():
            if isinstance(values, Range):
                raise ValueError(
                    f"`{name}` must be a list of values in a grid; for a range take search: random or optuna"
                )
            size *= len(values)
        return size


@dataclass(frozen=True)
class Cell:
    """Settings that are evaluated as one, after some were chosen.

    Attributes:
      config: the settings.
      tune: how others are chosen; None where there is nothing to choose.
    """

    config: dict[str, object]
    tune: Tune | None = None

    def job(self, point: Mapping[str, object] | None = None, phase: str = "evaluation") -> Job:
        """The job at a point of the search; in the selection on its seeds."""
        config = nested({**flat(self.config), **(point or {})})
        if phase == "selection" and self.tune is not None:
            config |= {"runs": self.tune.runs, "seed": self.tune.seed}
        return Job(with_pairs(config), phase)


@dataclass(frozen=True)
class Study:
    """What is to be run.

    Attributes:
      cells: in the order of the file.
      stack: whether runs that differ in their seeds and step sizes alone are stacked in one process.
      source: the file's content, as JSON, by which a folder's study is known again; without `track`.
      track: trackers that runs are written to, by name; None for none.
    """

    cells: list[Cell]
    stack: bool = True
    source: dict[str, object] = field(default_factory=dict)
    track: str | None = None


class _Loader(yaml.SafeLoader):
    """Refuses a name that is given twice, of which the last would count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(problem=f"{twice[0]} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_source(path: Path) -> dict[str, object]:
    """The settings in a YAML file.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is no table of settings.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`study` must be a YAML file that describes a study; there is none at {path}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"`study` must be a file of at most {LARGEST:,} bytes; {path} has {path.stat().st_size:,}")
    try:
        found = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"`study` must be a YAML file; {path} is not ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise ValueError(f"`study` must be a table of settings, such as `env: BiLevel/FourRooms-v0`; {path} is not")
    return found


def study_of(found: Mapping[str, object], allowed: Collection[str]) -> Study:
    """The study that settings describe.

    Args:
      found: settings by name; a list stands for several values, `blocks` for several tables of settings, `tune` for
        settings that are chosen, `track` for where runs are tracked.
      allowed: settings that a job may have.

    Raises:
      ValueError: if it is no study, naming what is wrong.
    """
    top = dict(found)
    stack = check_flag(top.pop("stack", True), "stack")
    track = _track(top.pop("track", None))
    blocks = top.pop("blocks", [{}])
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"`blocks` must be a list of tables of settings, got {blocks!r}")
    cells: list[Cell] = []
    for block in blocks:
        cells += _cells_of({**top, **block}, allowed, MOST_JOBS - len(cells))
    try:
        source = json.loads(json.dumps({name: value for name, value in found.items() if name != "track"}))
    except (TypeError, ValueError, RecursionError) as error:  # dates, bytes, sets, anchors in themselves
        raise ValueError(f"`study` must hold numbers, words, lists and tables alone ({error})") from error
    if len({cell.job({}).name + str(cell.tune) for cell in cells}) < len(cells):
        raise ValueError("`blocks` must not describe the same job twice")
    return Study(cells, stack, source, track)


def _track(found: object) -> str | None:
    """Trackers' names, separated by commas, of a name or a list of them."""
    if found is None:
        return None
    given = found if isinstance(found, list) else [found]
    names = [name for name in given if isinstance(name, str)]
    if not names or len(names) < len(given):
        raise ValueError(f"`track` must be a tracker's name or a list of them, got {found!r}")
    return ",".join(names)


def _cells_of(settings: dict[str, object], allowed: Collection[str], most: int) -> list[Cell]:
    """Every combination of a block's values."""
    tune = settings.pop("tune", None)
    _check_names(settings, allowed)
    axes = {name: _axis(name, value) for name, value in flat(settings).items()}
    if "env" not in axes:
        raise ValueError("`env` must be named by every block of a study, or at its top")
    _check_count(math.prod(len(values) for values in axes.values()), most)
    chosen = None if tune is None else _tune(tune, allowed)
    cells = [Cell(nested(point), chosen) for point in points_of(axes)]
    if chosen is not None:
        for cell in cells:
            _check_seeds(cell, chosen)
    return cells


def _check_names(settings: Mapping[str, object], allowed: Collection[str]) -> None:
    for name in settings:
        if name not in allowed:
            near = meant(str(name), [*allowed, "blocks", "tune", "stack", "track"])
            there = near or f"; there are {', '.join(sorted(allowed))}"
            raise ValueError(f"`study` must have settings of `bilevel train`, got {name!r}{there}")


def _check_count(count: int, most: int = MOST_JOBS) -> None:
    if count > most:
        raise ValueError(f"`study` must describe at most {MOST_JOBS:,} jobs, got {MOST_JOBS - most + count:,}")


def _check_seeds(cell: Cell, tune: Tune) -> None:
    """Refuses a selection on seeds of the evaluation."""
    first, count = cell.config.get("seed", 0), cell.config.get("runs", 10)
    first, count = check_seed(first), check_count(count, "runs")
    if first < tune.seed + tune.runs and tune.seed < first + count:
        raise ValueError(
            f"`tune` must use other seeds than the evaluation, {first} to {first + count - 1}; its own are {tune.seed} "
            f"to {tune.seed + tune.runs - 1}: give it another `seed`"
        )


def _axis(name: str, value: object) -> list[object]:
    """The values that a setting takes: one, or those of a list."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError(f"`{name}` must have a value or a list of them, got an empty list")
    told = [_plain(name, one) for one in values]
    if len({json.dumps(one, sort_keys=True) for one in told}) < len(told):
        raise ValueError(f"`{name}` must name each value once, got {value!r}")
    return told


def _plain(name: str, value: object) -> object:
    """A value as `bilevel train` takes it: {value: [...]} is a list that is one value; 1e-3 is a number."""
    if isinstance(value, dict) and set(value) == {"value"}:
        value = value["value"]
    elif isinstance(value, (dict, list)):
        raise ValueError(f"`{name}` must be a number or a word; a list that is one value is {{value: [...]}}")
    if isinstance(value, str):
        try:
            value = float(value)  # YAML 1.1 reads 1e-3 as a word
        except ValueError:
            return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}")
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a number, a word or a list, got {value!r}") from error
    return value


def _tune(found: object, allowed: Collection[str]) -> Tune:
    """How settings are chosen, as a file says it."""
    if not isinstance(found, dict):
        raise ValueError(f"`tune` must be a table of settings with their values, got {found!r}")
    how = {name: found[name] for name in HOW if name in found}
    if isinstance(how.get("batch"), (dict, list)):  # values of the setting of that name
        del how["batch"]
    settings = {name: value for name, value in found.items() if name not in how}
    if not settings:
        raise ValueError("`tune` must name settings and their values, got none")
    _check_names(settings, [name for name in allowed if name not in ("env", "runs", "seed", "iterations")])
    _check_how(how)
    axes = {name: _range(name, value) or _axis(name, value) for name, value in flat(settings).items()}
    tune = Tune(axes, **how)
    _check_count(tune.size)
    return tune


def _check_how(how: Mapping[str, object]) -> None:
    """Refuses what is no way to search."""
    check_choice(how.get("search", "grid"), SEARCHES, "search")
    for name in ("count", "batch", "runs"):
        check_count(how.get(name, 1), name)
    check_seed(how.get("seed", 0))
    check_flag(how.get("skip_failed", False), "skip_failed")


def _range(name: str, value: object) -> Range | None:
    """A range, {low, high, log, integer}; None where a value is none."""
    if not isinstance(value, dict) or "value" in value:
        return None
    unknown = sorted(map(str, set(value) - {"low", "high", "log", "integer"}))
    if unknown or not {"low", "high"} <= set(value):
        raise ValueError(f"`{name}` must be a list, or a range {{low: , high: , log: , integer: }}, got {value!r}")
    low, high = (_number(name, value[end]) for end in ("low", "high"))
    log, integer = (check_flag(value.get(word, False), f"{name}: {word}") for word in ("log", "integer"))
    if not low < high or (log and low <= 0):
        raise ValueError(f"`{name}` must have low < high, both above 0 where log is true, got {value!r}")
    if integer and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"`{name}` must lie between whole numbers where integer is true, got {value!r}")
    return Range(low, high, log, integer)


def _number(name: str, value: object) -> float:
    """An end of a range."""
    return check_number(_plain(name, value), name)


def check_flag(value: object, name: str) -> bool:
    """Returns `value`; refuses anything but true and false."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false, got {value!r}")
    return value


def points_of(axes: Mapping[str, Sequence[object]]) -> Iterator[dict[str, object]]:
    """Every combination of the values, the last setting varying fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def flat(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings with the entries of `env_args`, `leader_args` and `follower_args` as "env_args.size"."""
    found: dict[str, object] = {}
    for name, value in settings.items():
        if name not in PAIRS:
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            raise ValueError(f"`{name}` must be a table, such as `{name}: {{size: 5}}`, got {value!r}")
    return found


def nested(settings: Mapping[str, object]) -> dict[str, object]:
    """The inverse of `flat`."""
    found: dict[str, object] = {}
    for name, value in settings.items():
        pairs, dot, key = name.partition(".")
        if dot and pairs in PAIRS:
            found[pairs] = {**found.get(pairs, {}), key: value}  # type: ignore[dict-item]
        else:
            found[name] = value
    return found


def with_pairs(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as `bilevel train` takes them: tables as lists of KEY=VALUE, values as JSON."""
    return {
        name: [f"{key}={one if isinstance(one, str) else json.dumps(one)}" for key, one in value.items()]
        if isinstance(value, dict)
        else value
        for name, value in settings.items()
    }
