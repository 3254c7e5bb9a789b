"""How settings are chosen: every point of a grid, random points, or points that Optuna names batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from leaders.experiments.sweep.study import Range, Tune, points_of

if TYPE_CHECKING:
    from optuna.trial import Trial

Point = dict[str, object]


class Search(Protocol):
    """Names points and is told their scores; its state follows from these alone, so that it needs no file."""

    def next(self) -> list[Point]:
        """The next points; none when it has named all."""
        ...

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Scores of the points named last, NaN of those that failed."""
        ...


class Listed:
    """All points at once."""

    def __init__(self, points: list[Point]) -> None:
        self._points = points

    def next(self) -> list[Point]:
        """All, the first time."""
        points, self._points = self._points, []
        return points

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Nothing follows from them."""


class Optuna:
    """Tree-structured Parzen estimators of Optuna, in batches of a fixed size.

    A search that is begun anew and told the same scores names the same points: that is how it is resumed.
    """

    def __init__(self, tune: Tune) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ImportError(
                "`search: optuna` needs the package optuna: pip install 'bilevel-envs[optuna]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._tune, self._named = tune, 0
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=tune.seed))
        self._failed = optuna.trial.TrialState.FAIL
        self._trials: list[Trial] = []

    def next(self) -> list[Point]:
        """A batch, the last one shorter."""
        count = min(self._tune.batch, self._tune.count - self._named)
        self._named += count
        self._trials = [self._study.ask() for _ in range(count)]
        return [
            {name: _suggested(trial, name, axis) for name, axis in self._tune.axes.items()} for trial in self._trials
        ]

    def tell(self, points: Sequence[Point], scores: Sequence[float]) -> None:
        """Of the points of the last batch, in their order."""
        for trial, score in zip(self._trials, scores, strict=True):
            if math.isnan(score):
                self._study.tell(trial, state=self._failed)
            else:
                self._study.tell(trial, score)


def search_of(tune: Tune) -> Search:
    """The search that a study asks for."""
    if tune.search == "optuna":
        return Optuna(tune)
    if tune.search == "random":
        rng = np.random.default_rng(tune.seed)
        return Listed([{name: _drawn(rng, axis) for name, axis in tune.axes.items()} for _ in range(tune.count)])
    return Listed(list(points_of({name: axis for name, axis in tune.axes.items() if isinstance(axis, list)})))


def best_of(points: Sequence[Point], scores: Sequence[float]) -> Point | None:
    """The point with the highest score, the first of several; None where all failed."""
    known = [index for index, score in enumerate(scores) if not math.isnan(score)]
    return points[max(known, key=lambda index: scores[index])] if known else None


def _suggested(trial: Trial, name: str, axis: list[object] | Range) -> object:
    if isinstance(axis, list):
        return axis[trial.suggest_categorical(name, list(range(len(axis))))]  # values may be lists, which it takes not
    if axis.integer:
        return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
    return trial.suggest_float(name, axis.low, axis.high, log=axis.log)


def _drawn(rng: np.random.Generator, axis: list[object] | Range) -> object:
    if isinstance(axis, list):
        return axis[int(rng.integers(len(axis)))]
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    if axis.integer and not axis.log:
        return int(rng.integers(int(axis.low), int(axis.high) + 1))
    value = float(rng.uniform(low, high))
    value = math.exp(value) if axis.log else value
    return round(value) if axis.integer else min(max(value, axis.low), axis.high)
