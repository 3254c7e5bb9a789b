"""Leaders side by side at equal iterations, budgets listed: every grid point and seed stacked in one process."""

from __future__ import annotations

import csv
import inspect
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

from bilevel_envs.core.checks import check_choice, check_count, check_seed
from bilevel_envs.core.follower import capabilities_of
from bilevel_envs.followers import ObservedFollower, Truncated
from bilevel_envs.wrapper import BilevelWrapper
from leaders import exact
from leaders.algorithms.bchg import BCHG
from leaders.algorithms.bi_ac import BiAC
from leaders.algorithms.cmaes import CMAES
from leaders.algorithms.exact_gradient import ExactGradient
from leaders.algorithms.hpgd import HPGD
from leaders.algorithms.mbhg import MBHG
from leaders.algorithms.naive_pgd import NaivePGD
from leaders.algorithms.random_search import RandomSearch
from leaders.algorithms.sobirl import SoBiRL
from leaders.algorithms.zeroth_order import ZerothOrder
from leaders.critics.critic import capabilities_of as critic_capabilities
from leaders.estimators.trajectory import TrajectoryLeader
from leaders.experiments.statistics import Summary, summary
from leaders.leader import Leader
from leaders.training.checkpoint import UNREADABLE, arrays_in
from leaders.training.history import History, replace_file

CONTENDERS: dict[str, tuple[Callable[..., Leader], dict[str, object]]] = {
    "bchg": (BCHG, {}),
    "mbhg": (MBHG, {}),
    "hpgd-mc": (HPGD, {"variant": "mc"}),
    "hpgd-sa": (HPGD, {"variant": "sa"}),
    "hpgd-oracle": (HPGD, {"variant": "oracle"}),
    "sobirl": (SoBiRL, {}),
    "naive-pgd": (NaivePGD, {}),
    "bi-ac": (BiAC, {}),
    "exact": (ExactGradient, {}),
    "zeroth-order": (ZerothOrder, {}),
    "cmaes": (CMAES, {}),
    "random-search": (RandomSearch, {}),
}
SHARED = ("batch_size", "preset")
STACKABLE = ("learning_rate", "critic_learning_rate")
VALUES = {
    "leader_value": r"leader's value $J_L(\theta)$",
    "leader_value_actual": r"leader's value $J_L(\theta)$ under its follower",
    "leader_return": "leader's return, as sampled",
}
BUDGETS = ("env_steps", "follower_solves", "follower_steps")
TAIL = 0.1  # share of the iterations, at the end, by which a grid point is judged


@dataclass(frozen=True)
class Result:
    """What became of one leader.

    Attributes:
      name: its name in `CONTENDERS`.
      points: the hyper-parameters of each grid point, G of them.
      value: what is compared, one of `VALUES` of the history, [iterations, G, seeds], on the seeds that are judged.
      env_steps: environment steps spent, mean over the point's runs, [iterations, G].
      follower_solves: follower solves spent, likewise, [iterations, G].
      follower_steps: steps that followers spent on learning and observation, likewise, [iterations, G].
      column: which of `VALUES` `value` is.
      choosing: scores on the seeds that choose a grid point, [G, further seeds]; without any, those that are judged do.
    """

    name: str
    points: list[dict[str, float]]
    value: np.ndarray
    env_steps: np.ndarray
    follower_solves: np.ndarray
    follower_steps: np.ndarray
    column: str = "leader_value"
    choosing: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def scores(self) -> np.ndarray:
        """Mean value over the last tenth of the iterations, [G, seeds]."""
        return tail_mean(self.value)

    @property
    def best(self) -> int:
        """The grid point with the highest mean score over the seeds that choose: the paper's rule of selection."""
        scores = self.choosing if self.choosing.size else self.scores
        return int(scores.mean(1).argmax())

    def summary(self) -> Summary:
        """Statistics of the best point over the seeds that are judged; too high if these have chosen among several."""
        return summary(self.scores[self.best])


def tail_mean(values: np.ndarray) -> np.ndarray:
    """Means of curves [iterations, ...] over the last tenth of the iterations."""
    return values[-max(1, int(TAIL * len(values))) :].mean(0)


def grid_points(grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every combination of a grid's values.

    Raises:
      ValueError: if a key is no hyper-parameter that may differ between stacked runs, or a list is empty.
    """
    for name, values in grid.items():
        check_choice(name, STACKABLE, "grid")
        if not len(values):
            raise ValueError(f"`grid` must give values for {name}, got none")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def run_grid(
    env: BilevelWrapper,
    name: str,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    runs: int | tuple[int, int] = 10,
    iterations: int = 1000,
    seed: int = 0,
    value: str = "leader_value",
    progress_bar: bool = False,
    **arguments: object,
) -> Result:
    """Trains one leader at every grid point with every seed, all stacked.

    Args:
      env: the environment with its follower.
      name: a key of `CONTENDERS`.
      grid: values of hyper-parameters, by name; those that the leader has no use for are left out.
      runs: seeds per grid point; every point has the same ones. A pair (seeds that are judged, further seeds by which
        the best point is chosen) keeps the two apart; of a single point the latter are not run. (Followers that draw
        have streams of their own, one for each stacked run.)
      iterations: outer iterations.
      seed: the first seed.
      value: what is compared: "leader_value", "leader_value_actual" (under the follower that acts), or "leader_return"
        (as sampled, where neither can be computed).
      progress_bar: shows how far it is.
      arguments: further arguments of the leader, such as `batch_size` and `preset`.

    Raises:
      ValueError: if the leader's name, a grid key or `value` is unknown, or that value is not known here.
    """
    judged, choosing = runs if isinstance(runs, tuple) else (runs, 0)
    iterations, runs = check_count(iterations, "iterations"), check_count(judged, "runs", at_least=2)
    check_choice(value, VALUES, "value")
    further = check_count(choosing, "selection_seeds", at_least=0)
    leader, points = stacked_leader(env, name, grid=grid, runs=runs, seed=seed, further=further, **arguments)
    history: History = leader.history

    def known(*_: object) -> bool:
        if np.isnan(history.latest(value)).all():
            others = ", ".join(other for other in VALUES if not np.isnan(history.latest(other)).all())
            raise ValueError(f"`value` must be one that is known here, {others}; got {value!r}")
        return True

    leader.learn(iterations, callback=known, progress_bar=progress_bar)
    shape = (iterations, len(points), -1)
    values = history.filled(value).reshape(shape)
    spent = {budget: history[budget].reshape(shape)[:, :, :runs].mean(2) for budget in BUDGETS}
    choosers = tail_mean(values[:, :, runs:])
    return Result(name, points, values[:, :, :runs], **spent, column=value, choosing=choosers)


def value_of(env: BilevelWrapper) -> str:
    """What is compared if nobody says: "leader_value" where a model is solved exactly, else "leader_return"."""
    return "leader_value" if exact.solves(env.model(env.theta)) else "leader_return"


def rehearse(env: BilevelWrapper, name: str, value: str, **arguments: Any) -> None:
    """Refuses, before anything is spent, what `run_grid` would refuse; arguments as there.

    Followers that plan answer once. Of those that learn it is asked whether they go with the world.
    """
    check_choice(value, VALUES, "value")
    follower = env.follower
    planned = follower.follower if isinstance(follower, ObservedFollower) else follower
    if not capabilities_of(planned).learns:
        run_grid(env, name, runs=2, iterations=1, value=value, **arguments)
        return
    leader, _ = stacked_leader(env, name, runs=2, **arguments)
    model = env.model(np.asarray(leader.theta))
    if value == "leader_value" and not exact.solves(model):
        raise ValueError(f'`value` must be "leader_return" where no model is known, got {value!r}: leave --value out')


def stacked_leader(
    env: BilevelWrapper,
    name: str,
    *,
    grid: Mapping[str, Sequence[float]] | None = None,
    runs: int = 10,
    seed: int = 0,
    further: int = 0,
    **arguments: object,
) -> tuple[Leader, list[dict[str, float]]]:
    """A leader with a run for every grid point and seed, and the points; arguments as those of `run_grid`.

    `further` seeds follow those of `runs` where there are several points.
    """
    check_choice(name, CONTENDERS, "leaders")
    runs, seed = check_count(runs, "runs", at_least=2), check_seed(seed)
    cls, fixed = CONTENDERS[name]
    taken = inspect.signature(cls).parameters
    # Arguments that a leader does not take, such as a batch where nothing is sampled, are left out.
    arguments = {key: value for key, value in arguments.items() if key in taken or key not in SHARED}
    probe = cls(env, **fixed, **arguments)
    learns_critic = isinstance(probe, TrajectoryLeader) and critic_capabilities(probe.critic).has_rate
    useful = {"learning_rate": "learning_rate" in taken, "critic_learning_rate": learns_critic}
    used = {key: values for key, values in (grid or {}).items() if useful.get(key, True)}
    grid_points(grid or {})  # refuses bad keys also where they are left out
    points = grid_points(used)
    runs += further if len(points) > 1 else 0
    stacked = {key: np.repeat([point[key] for point in points], runs) for key in used}
    seeds = [seed + run for run in range(runs)] * len(points)
    if isinstance(env.follower, Truncated):  # its noise goes by run, too
        env = BilevelWrapper(env.env, replace(env.follower, seed=tuple(seeds)))
    return cls(env, **fixed, **{**arguments, **stacked}, runs=len(seeds), seed=seeds), points


def write_table(results: Sequence[Result], path: Path) -> list[list[str]]:
    """One line per leader, at its best grid point; also returned."""
    header = ["leader", "hyper-parameters", "chosen_by", "seeds", "mean", "low", "high", "iqm", "iqm_low", "iqm_high"]
    lines = [[*header, *BUDGETS, "value"]]
    for result in results:
        point, s = result.points[result.best], result.summary()
        settings = " ".join(f"{key}={value:g}" for key, value in point.items()) or "defaults"
        numbers = [s.mean, *s.mean_interval, s.iqm, *s.iqm_interval]
        budget = [f"{getattr(result, spent)[-1, result.best]:.0f}" for spent in BUDGETS]
        seeds = str(result.value.shape[2])
        chosen_by = "" if len(result.points) == 1 else f"{result.choosing.shape[1] or 'the same'} seeds"
        lines.append([result.name, settings, chosen_by, seeds, *(f"{x:.4f}" for x in numbers), *budget, result.column])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    replace_file(path, text.getvalue().encode())
    return lines


def comparison_figure(results: Sequence[Result], title: str, best_known: float | None = None) -> Figure:
    """The best point of each leader against environment steps and against follower solves: mean and 95 % t interval."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    learning = any(result.follower_steps.any() for result in results)
    for axes, budget, label in zip(
        panels,
        ("env_steps", "follower_steps" if learning else "follower_solves"),
        ("environment steps per run", "steps of the follower per run" if learning else "follower solves per run"),
        strict=True,
    ):
        for index, result in enumerate(results):
            x, curves = getattr(result, budget)[:, result.best], result.value[:, result.best]
            mean, half = curves.mean(1), stats.t.ppf(0.975, curves.shape[1] - 1) * stats.sem(curves, axis=1)
            axes.plot(x, mean, color=f"C{index}", label=result.name)
            axes.fill_between(x, mean - half, mean + half, color=f"C{index}", alpha=0.18, linewidth=0)
        if best_known is not None and results[0].column == "leader_value":
            axes.axhline(best_known, color="#3a3a3a", linestyle=":", linewidth=1, label=f"best known {best_known:.3f}")
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(VALUES[results[0].column])
    panels[1].legend(fontsize=8, loc="best", framealpha=0.9)
    figure.suptitle(title, fontsize=11)
    return figure


def save_result(result: Result, path: Path) -> None:
    """Writes a result, replacing the file at once."""
    keys = sorted({key for point in result.points for key in point})
    table = np.array([[point[key] for key in keys] for point in result.points]).reshape(len(result.points), len(keys))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        name=result.name,
        keys=np.array(keys, dtype=str),
        points=table,
        value=result.value,
        env_steps=result.env_steps,
        follower_solves=result.follower_solves,
        follower_steps=result.follower_steps,
        column=result.column,
        choosing=result.choosing,
    )
    replace_file(path, buffer.getvalue())


def load_result(path: Path) -> Result:
    """What `save_result` wrote.

    Raises:
      ValueError: if the file is damaged or no such result.
    """
    try:
        with arrays_in(path) as data:
            points = [dict(zip(data["keys"].tolist(), row.tolist(), strict=True)) for row in data["points"]]
            budgets = {name: data[name] for name in BUDGETS}
            choosing = data["choosing"] if "choosing" in data else np.empty((0, 0))  # older files lack it
            column = str(data["column"])
            return Result(str(data["name"]), points, data["value"], **budgets, column=column, choosing=choosing)
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged or no result ({error}); delete it to run that leader again") from error


def kept_results(paths: Mapping[str, Path], iterations: int) -> dict[str, Result]:
    """The results that are there already, by the name of the leader.

    Raises:
      ValueError: if one is damaged, another leader's, or of another length.
    """
    kept = {name: load_result(path) for name, path in paths.items() if path.is_file()}
    for name, result in kept.items():
        if result.name != name or len(result.value) != iterations:
            raise ValueError(
                f"{paths[name]} holds {len(result.value)} iterations of {result.name}, "
                f"wanted are {iterations} of {name}; choose another --out"
            )
    return kept
