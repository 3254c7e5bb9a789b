"""The pictures that a run leaves behind."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from bilevel_envs.core.mdp import ConfigurableMDP
from bilevel_envs.wrapper import BilevelWrapper
from leaders import exact
from leaders.leader import Leader
from leaders.published import WINDOW, Curve, trailing_mean
from leaders.training.history import replace_file

COLOURS = ("#1f4e8c", "#2e8b57", "#8a4f9e", "#b8860b", "#008b8b", "#a0522d")
PAPER, BEST = "#c8642c", "#3a3a3a"


def curve_figure(leader: Leader, title: str, published: Curve | None = None, published_batch: int = 100) -> Figure:
    """Leader's value over outer iterations: mean and 95 % interval over runs, best known, the paper's curve.

    Where there is a paper's curve, ours goes through the same trailing mean as theirs. Where iterations differ in
    their environment steps, as with exploration, both are drawn over steps.

    Args:
      leader: after learning.
      title: of the figure.
      published: the paper's curve.
      published_batch: environment steps of its iterations.
    """
    return curves_figure([leader], title, published, published_batch)


def curves_figure(
    leaders: Sequence[Leader], title: str, published: Curve | None = None, published_batch: int = 100
) -> Figure:
    """The same for several leaders of one environment, which are drawn over environment steps; the first has the rest.

    Args:
      leaders: after learning.
      title, published, published_batch: as in `curve_figure`.
    """
    values = [_value(leader) for leader in leaders]
    figure, axes = _figure(7.0, 4.2)
    iteration, steps = np.arange(1, len(values[0]) + 1), leaders[0].history["env_steps"].mean(1)
    uneven = len(leaders) > 1 or (len(steps) > 0 and not np.allclose(steps, steps[0] * iteration))
    for leader, value, colour in zip(leaders, values, COLOURS, strict=False):
        smooth = published is not None and (leader is leaders[0] or len(value) > 2 * WINDOW)
        along = leader.history["env_steps"].mean(1) if uneven else iteration
        _draw_runs(axes, leader, along, value, colour, smooth)
    if published is not None:
        last = max((steps if uneven else iteration).max(initial=1), 1)
        _draw_published(axes, published, published_batch if uneven else 1, last)
    best = leaders[0].env.best_known
    if best is not None:
        kind = "optimum" if best.exact else "best known"
        axes.axhline(best, color=BEST, linewidth=1, linestyle=":", label=f"{kind}: {best:.4f}")
    known = not np.isnan(leaders[0].history.filled("leader_value")).all()
    axes.set_xlabel("environment steps" if uneven else "outer iterations")
    axes.set_ylabel(r"leader's value $J_L(\theta)$" if known else "leader's sampled return")
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=8, loc="best", framealpha=0.9)
    axes.grid(alpha=0.25)
    return figure


def _draw_runs(axes: Axes, leader: Leader, along: np.ndarray, value: np.ndarray, colour: str, smooth: bool) -> None:
    """The mean over runs of a leader's values [iterations, R] and its interval, through a trailing mean or as it is."""
    smoothed = trailing_mean(value) if smooth else value
    mean = smoothed.mean(1)
    window = f", trailing mean of {WINDOW}" if smooth else ""
    many = f"mean of {leader.runs} runs, 95 % interval" if leader.runs > 1 else "one run"
    axes.plot(along, mean, color=colour, label=f"{leader.name}: {many}{window}")
    if leader.runs > 1:
        half = stats.t.ppf(0.975, leader.runs - 1) * stats.sem(smoothed, axis=1)
        axes.fill_between(along, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)


def _draw_published(axes: Axes, published: Curve, each: int, last: float) -> None:
    """The paper's curve as far as `last`, in units of which an iteration counts `each`."""
    theirs = published.iteration * each
    shown = theirs <= last
    x, y, sem = theirs[shown], published.mean[shown], published.sem[shown]
    axes.plot(x, y, color=PAPER, linestyle="--", label="arXiv:2603.14867 (10 seeds, ± s.e.)")
    axes.fill_between(x, y - sem, y + sem, color=PAPER, alpha=0.2, linewidth=0)


def _value(leader: Leader) -> np.ndarray:
    """J_L of each iteration and run, or what was sampled where there is no model to compute it from."""
    value = leader.history.filled("leader_value")
    return leader.history["leader_return"] if np.isnan(value).all() else value


def incentives_figure(leader: Leader) -> Figure | None:
    """A map of what the best run's leader does, and of where its follower goes; None for worlds without a map.

    Also None where contexts are drawn: what is done and visited differs from one to another.

    With `draw_visits` two pictures, at the default θ and at the leader's; with a `grid` penalties and visits.
    """
    problem = leader.env.problem
    if leader.contexts is not None or (problem.draw_visits is None and problem.grid is None):
        return None
    run = best_run(leader)
    theta = leader.theta.reshape(leader.runs, *leader.env.theta_space.shape)[run]
    value = float(exact.objective(leader.env, theta))
    which = f"run {run} of {leader.runs}, " if leader.runs > 1 else ""
    title = f"{which}after {leader.progress.iterations:,} iterations: leader's value {value:.4f}"
    if problem.draw_visits is not None:
        return visits_figure(leader.env, problem.default_theta, theta, title)
    visits = _visits(leader.env, theta).sum(-1)
    by_cell = theta.shape == visits.shape  # otherwise there is no map of θ
    figure = Figure(figsize=(9.6 if by_cell else 5.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    *left, right = np.atleast_1d(figure.subplots(1, 1 + by_cell))
    if left and (theta <= 0).all():
        _map(figure, left[0], problem, -theta, "Reds", f"penalty per cell (spent: {np.abs(theta).sum():.3f})")
    elif left:
        _map(figure, left[0], problem, theta, "Reds", "θ per cell")
    _map(figure, right, problem, visits, "Blues", r"follower's expected visits, discounted by $\gamma_L$")
    figure.suptitle(title, fontsize=11)
    return figure


def visits_figure(env: BilevelWrapper, before: np.ndarray, after: np.ndarray, title: str = "") -> Figure:
    """The follower's discounted visits at two θ side by side, as the problem's `draw_visits` shows them.

    Args:
      env: whose problem has `draw_visits`.
      before: θ of the left picture.
      after: θ of the right one.
      title: of the figure.

    Raises:
      ValueError: if it has none.
    """
    draw_visits = env.problem.draw_visits
    if draw_visits is None:
        raise ValueError(f"`env` must have a problem with `draw_visits`, got {env.problem.title}")
    pictures = [draw_visits(_visits(env, theta), theta) for theta in (before, after)]
    height, width = pictures[0].shape[:2]
    figure = Figure(figsize=(11.0, 5.5 * height / width + 0.75), layout="constrained")
    FigureCanvasAgg(figure)
    named = zip(figure.subplots(1, 2), pictures, (before, after), ("before", "after"), strict=True)
    for axes, picture, theta, name in named:
        axes.imshow(picture, interpolation="lanczos")
        axes.set_axis_off()
        axes.set_title(f"{name}: leader's value {float(exact.objective(env, theta)):.3f}", fontsize=11)
    figure.suptitle(title, fontsize=11)
    return figure


def best_run(leader: Leader) -> int:
    """The run with the highest mean value over the last tenth of the iterations."""
    value = _value(leader)
    return int(value[-max(1, len(value) // 10) :].mean(0).argmax()) if len(value) else 0


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, replacing the file at once."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    replace_file(path, picture.getvalue())


def _visits(env: BilevelWrapper, theta: np.ndarray) -> np.ndarray:
    """Visits of pairs by an optimal follower, discounted by γ_L, [S, B]."""
    model = env.model(theta).detach()
    probs = exact.best_response(model, env.preferences).policy.probs
    visits = model.resolvent(probs, env.preferences.gamma_leader, model.initial, transpose=True)
    return (visits[..., None] * probs)[0].numpy()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no global state, no window
    return figure, figure.subplots()


def _map(figure: Figure, axes: Axes, problem: ConfigurableMDP, values: np.ndarray, colours: str, title: str) -> None:
    assert problem.grid is not None, "asked for problems with a map alone"
    picture = problem.grid(values)
    axes.set_facecolor("#5c6270")
    image = axes.imshow(picture, cmap=colours, vmin=min(np.nanmin(picture), 0.0))
    figure.colorbar(image, ax=axes, shrink=0.85)
    for letter, (row, column) in problem.landmarks.items():
        dark = picture[row, column] > 0.6 * np.nanmax(picture)
        axes.text(column, row, letter, ha="center", va="center", color="white" if dark else "black", weight="bold")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
