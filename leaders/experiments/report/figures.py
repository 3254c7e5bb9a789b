"""The pictures of a report, drawn from files alone, for light pages and for dark ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

from leaders.experiments.statistics import performance_profile, probability_of_improvement

# Okabe and Ito's colours, which colour-blind readers tell apart; on dark pages lighter ones of the same hues.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#3a8fb7", "#7a3e9d", "#5f6b73")
ON_DARK = ("#56b4e9", "#ff9e4a", "#3fd0a4", "#f0a3cf", "#e6c229", "#9fd8f5", "#c49be0", "#aeb8c0")
DASHES = ("-", "--", "-.", ":")
BUDGETS = {
    "env_steps": "environment steps per run",
    "follower_solves": "follower solves per run",
    "follower_steps": "steps of the follower per run",
}
LARGEST_MEDIA = 6_000_000  # bytes of a film or picture that is put into the page


@dataclass(frozen=True)
class Picture:
    """A picture or film as data URLs.

    Attributes:
      light: for light pages.
      dark: for dark ones; empty for the same.
      caption: what it shows.
    """

    light: str
    dark: str
    caption: str


@dataclass(frozen=True)
class Curve:
    """Runs of one setting.

    Attributes:
      label: the setting.
      value: of each iteration and seed, [iterations, seeds].
      budgets: what was spent up to each iteration, mean over seeds, by name, [iterations].
      published: environment steps and values of the paper's curve, [2, points]; None where there is none.
    """

    label: str
    value: np.ndarray
    budgets: Mapping[str, np.ndarray]
    published: np.ndarray | None = None


def curves_picture(curves: Sequence[Curve], measured: str, best_known: float | None, caption: str) -> Picture:
    """Mean over seeds and 95 % t interval against each budget that was spent, beside the best known value.

    The axis ends where runs do: of a few seeds the interval can be many times as wide as all values.
    """
    best_known = best_known if measured == "leader_value" else None
    spent = [name for name in BUDGETS if any(curve.budgets[name][-1] > 0 for curve in curves)]

    def draw(colours: Sequence[str]) -> Figure:
        figure = Figure(figsize=(5.2 * len(spent) + 0.4, 3.7 + 0.2 * -(-(len(curves) + 2) // 3)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = np.atleast_1d(figure.subplots(1, len(spent), sharey=True))
        drawn: set[str] = set()
        for axes, name in zip(panels, spent, strict=True):
            for index, curve in enumerate(curves):
                _draw_curve(axes, curve, curve.budgets[name], index, colours)
                theirs = curve.label.partition(",")[0] + ", arXiv:2603.14867"
                if curve.published is not None and name == "env_steps" and theirs not in drawn:
                    axes.plot(
                        *curve.published, color=colours[index % len(colours)], linestyle=(0, (1, 1)), label=theirs
                    )
                    drawn.add(theirs)
            if best_known is not None:
                axes.axhline(
                    best_known, color="0.5", linestyle=":", linewidth=1.2, label=f"best known {best_known:.4g}"
                )
            axes.set_xlabel(BUDGETS[name])
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.grid(alpha=0.25)
        panels[0].set_ylim(*_reached(curves, best_known))
        panels[0].set_ylabel("leader's value" if measured == "leader_value" else "leader's sampled return")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        return figure

    return _picture(draw, caption)


def _reached(curves: Sequence[Curve], best_known: float | None) -> tuple[float, float]:
    """The least and the largest value of any run, of the paper's curves and of the best known one, with a margin."""
    published = [curve.published[1] for curve in curves if curve.published is not None]
    marks = [] if best_known is None else [best_known]
    values = np.concatenate([*(curve.value.ravel() for curve in curves), *published, marks])
    margin = 0.05 * (float(np.ptp(values)) or abs(float(values[0])) or 1.0)
    return float(values.min()) - margin, float(values.max()) + margin


def _draw_curve(axes: mpl.axes.Axes, curve: Curve, x: np.ndarray, index: int, colours: Sequence[str]) -> None:
    colour, dash = colours[index % len(colours)], DASHES[index // len(colours) % len(DASHES)]
    mean, seeds = curve.value.mean(1), curve.value.shape[1]
    axes.plot(
        x, mean, color=colour, linestyle=dash, linewidth=1.6, label=curve.label, marker="." if len(x) < 25 else ""
    )
    if seeds > 1:
        half = stats.t.ppf(0.975, seeds - 1) * stats.sem(curve.value, axis=1)
        axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)


def profile_picture(shares: Mapping[str, Mapping[str, np.ndarray]], caption: str) -> Picture:
    """Performance profiles of leaders over tasks, on scores that are 0 at the start and 1 at the best known value."""
    every = np.concatenate([values for tasks in shares.values() for values in tasks.values()])
    limits = np.linspace(min(0.0, float(np.quantile(every, 0.02))), max(1.0, float(every.max())), 101)

    def draw(colours: Sequence[str]) -> Figure:
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for index, (name, tasks) in enumerate(shares.items()):
            above, interval = performance_profile(tasks, limits, resamples=500)
            colour, dash = colours[index % len(colours)], DASHES[index // len(colours) % len(DASHES)]
            axes.plot(limits, above, color=colour, linestyle=dash, linewidth=1.6, label=name)
            axes.fill_between(limits, *interval.T, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("share τ of the way from the start to the best known value")
        axes.set_ylabel("share of runs above τ")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, framealpha=0.8)
        return figure

    return _picture(draw, caption)


def improvement_picture(scores: Mapping[str, Mapping[str, np.ndarray]], caption: str) -> Picture:
    """Probability that a run of one leader is better than a run of another, with its interval."""
    names = list(scores)
    found = {
        (a, b): probability_of_improvement(scores[a], scores[b], resamples=500) for a in names for b in names if a != b
    }

    def draw(colours: Sequence[str]) -> Figure:
        size = 1.5 + 0.95 * len(names)
        figure = Figure(figsize=(size + 1.2, size), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        table = np.array([[found.get((a, b), (0.5, (0.5, 0.5)))[0] for b in names] for a in names])
        axes.imshow(table, cmap="PuOr_r", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(table):
            if row != column:
                low, high = found[names[row], names[column]][1]
                ink = "white" if abs(value - 0.5) > 0.3 else "black"
                text = f"{value:.2f}\n{low:.2f}–{high:.2f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("... a run of this one")
        axes.set_ylabel("a run of this one is better than ...")
        return figure

    return _picture(draw, caption)


def file_picture(path: Path, caption: str) -> Picture | None:
    """A PNG or MP4 file as it is; None where there is none, or none that a page can hold."""
    kinds = {".png": "image/png", ".mp4": "video/mp4"}
    try:
        if path.stat().st_size > LARGEST_MEDIA:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return Picture(_url(content, kinds[path.suffix]), "", caption)


def _picture(draw: Callable[[Sequence[str]], Figure], caption: str) -> Picture:
    """A figure for light pages and for dark ones."""
    return Picture(_drawn(draw, COLOURS, False), _drawn(draw, ON_DARK, True), caption)


def _drawn(draw: Callable[[Sequence[str]], Figure], colours: Sequence[str], dark: bool) -> str:
    buffer = io.BytesIO()
    with style.context(_dark() if dark else {}):
        draw(colours).savefig(buffer, format="png", dpi=130)
    return _url(buffer.getvalue(), "image/png")


def _dark() -> dict[str, str]:
    ink, card = "#e6e9ee", "#1b212a"
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    filled = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    return dict.fromkeys(inked, ink) | dict.fromkeys(filled, card) | {"legend.edgecolor": "#3b4552"}


def _url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
