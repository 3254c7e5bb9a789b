"""Figure 3 of the paper and what lies behind it: building thermal control beside the published curves."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bilevel_envs.core.noise import Noise
from bilevel_envs.wrapper import BilevelWrapper
from leaders import exact
from leaders.algorithms.bchg import BCHG
from leaders.algorithms.exact_gradient import ExactGradient
from leaders.algorithms.hpgd import HPGD
from leaders.algorithms.naive_pgd import NaivePGD
from leaders.leader import Leader
from leaders.published import BUILDING_METHODS, building, building_histogram, trailing_mean
from leaders.training.checkpoint import UNREADABLE, arrays_in
from leaders.training.history import replace_file

ENV = "BiLevel/BuildingThermalControl-v0"
WINDOW = 50  # trailing mean of the published figure
PUBLISHED_ITERATIONS = 2_000
CHECKPOINTS = (100, 250, 500, 1_000, 2_000)
# By multi-start of the exact gradient (the environment's `best_known`).
OPTIMUM = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.7784, 1.0, 1.0])
QUANTITIES = {
    "stability": "stability reward",
    "energy": "energy cost",
    "insulation": "insulation cost",
    "airflow": "airflow cost",
}
# Networks as published cost minutes per outer iteration; least squares on quadratics hold the same values exactly.
QUADRATIC: dict[str, object] = {"preset": "paper", "critic": "lstd"}
NETWORK: dict[str, object] = {"preset": "paper"}


@dataclass(frozen=True)
class Form:
    """A leader of the figure.

    Attributes:
      make: its class.
      arguments: of its constructor.
      label: in the legend.
      published: the published method that it is held against, or None.
    """

    make: Callable[..., Leader]
    arguments: dict[str, object]
    label: str
    published: str | None


FORMS = {
    "bchg": Form(BCHG, {}, "BC-HG", "bchg"),
    "bchg-pathwise": Form(BCHG, {"gradient": "pathwise"}, 'BC-HG, gradient="pathwise"', "bchg"),
    "bchg-score": Form(BCHG, {"gradient": "score"}, 'BC-HG, gradient="score"', "bchg"),
    "naive-pgd": Form(NaivePGD, {}, "Naive-PGD", "naive-pgd"),
    "exact": Form(ExactGradient, {}, "exact hypergradient", None),
    "bchg-paper": Form(BCHG, QUADRATIC, "BC-HG, published form", "bchg"),
    "naive-pgd-paper": Form(NaivePGD, QUADRATIC, "Naive-PGD, published form", "naive-pgd"),
    "hpgd-mc-paper": Form(
        HPGD, QUADRATIC | {"variant": "mc", "baseline": "lstd"}, "HPGD (MC), published form", "hpgd-mc"
    ),
    "hpgd-td-paper": Form(
        HPGD, QUADRATIC | {"variant": "td", "baseline": "lstd"}, "HPGD (TD), published form", "hpgd-td"
    ),
    "bchg-networks": Form(BCHG, NETWORK, "BC-HG, published networks", "bchg"),
    "naive-pgd-networks": Form(NaivePGD, NETWORK, "Naive-PGD, published networks", "naive-pgd"),
    "hpgd-mc-networks": Form(HPGD, NETWORK | {"variant": "mc"}, "HPGD (MC), published networks", "hpgd-mc"),
    "hpgd-td-networks": Form(HPGD, NETWORK | {"variant": "td"}, "HPGD (TD), published networks", "hpgd-td"),
}


@dataclass(frozen=True)
class Curves:
    """What became of one leader.

    Attributes:
      name: its name in `FORMS`.
      value: exact J_L before each update, [iterations, R].
      theta: θ before each update, [iterations, R, 8].
    """

    name: str
    value: np.ndarray
    theta: np.ndarray


def building_runs(
    name: str, *, runs: int, iterations: int, batch_size: int, seed: int = 0, progress_bar: bool = False
) -> Curves:
    """Trains one leader of the figure, all seeds stacked."""
    form = FORMS[name]
    arguments = form.arguments if form.make is ExactGradient else form.arguments | {"batch_size": batch_size}
    leader = form.make(BilevelWrapper(gym.make(ENV)), runs=runs, seed=seed, **arguments)
    theta = [leader.theta]

    def remember(*_: object) -> bool:
        theta.append(leader.theta)
        return True

    leader.learn(iterations, callback=remember, progress_bar=progress_bar)
    return Curves(name, leader.history.filled("leader_value"), np.stack(theta[:-1]))


def save_curves(curves: Curves, path: Path) -> None:
    """Writes them, replacing the file at once."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, name=curves.name, value=curves.value, theta=curves.theta)
    replace_file(path, buffer.getvalue())


def load_curves(path: Path, name: str, iterations: int) -> Curves:
    """What `save_curves` wrote.

    Raises:
      ValueError: if the file is damaged, another leader's, or of another length.
    """
    try:
        with arrays_in(path) as data:
            curves = Curves(str(data["name"]), data["value"], data["theta"])
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged or no result ({error}); delete it to run that leader again") from error
    if curves.name != name or len(curves.value) != iterations:
        raise ValueError(
            f"{path} holds {len(curves.value)} iterations of {curves.name}, wanted are {iterations} of {name}; "
            "choose another --out"
        )
    return curves


def as_published(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's mean and band of curves [iterations, R]: at each iteration without the best and the worst run.

    Returns:
      Mean, and population deviation over the square root of the number of all runs, both after a trailing mean of 50.
    """
    runs = values.shape[1]
    kept = np.sort(values, 1)[:, 1:-1] if runs > 2 else values
    return trailing_mean(kept.mean(1), WINDOW), trailing_mean(kept.std(1) / runs**0.5, WINDOW)


def table_of(results: Sequence[Curves], best_known: float) -> str:
    """Our exact values beside the published sampled ones, as a Markdown table."""
    lines = [
        f"Exact optimum known: {best_known:.3f}. Ours: exact values, mean (worst run). Published: sampled returns of "
        "50 episodes after a trailing mean of 50, without the best and the worst of 10 seeds, ± s.e. z: ours, treated "
        "alike, less theirs, in units of their error.",
        "",
        "| leader | iteration | ours (worst) | published | z |",
        "|---|---|---|---|---|",
    ]
    for curves in results:
        form, (mean, _) = FORMS[curves.name], as_published(curves.value)
        last = len(curves.value)
        for iteration in [*(checkpoint for checkpoint in CHECKPOINTS if checkpoint < last), last]:
            now = curves.value[iteration - 1]
            ours = f"{now.mean():.2f} ({now.min():.2f})"
            theirs, z = "", ""
            if form.published is not None and iteration <= PUBLISHED_ITERATIONS:
                there, error = building(form.published).at(iteration)
                theirs, z = f"{there:.1f} ± {error:.1f}", f"{(mean[iteration - 1] - there) / error:+.1f}"
            lines.append(f"| {form.label} | {iteration:,} | {ours} | {theirs} | {z} |")
    return "\n".join(lines) + "\n"


def objective_figure(results: Sequence[Curves], best_known: float) -> Figure:
    """Ours solid (mean and standard error), the four published curves dashed, the optimum dotted."""
    figure, axes = _figure(8.0, 5.0)
    colours = _colours(results)
    for curves in results:
        _draw(axes, curves.value, colours[curves.name], FORMS[curves.name].label)
    for method, label in BUILDING_METHODS.items():
        _draw_published(axes, method, "objective", colours[method], f"{label} (arXiv:2603.14867)")
    axes.axhline(best_known, color="black", linestyle=":", linewidth=1, label=f"optimum {best_known:.2f}")
    axes.set_xlabel("outer iterations")
    axes.set_ylabel(r"leader's value $J_L(\theta)$")
    longest = max((len(curves.value) for curves in results), default=0)
    axes.set_xlim(-0.02 * longest, 1.02 * longest)
    axes.set_ylim(-300, -150)
    axes.set_title("Building thermal control: exact values; published: sampled returns", fontsize=11)
    axes.legend(fontsize=7, framealpha=0.9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def parts_figure(results: Sequence[Curves]) -> Figure:
    """The four parts of the objective over iterations, ours exact and solid, published dashed."""
    env = BilevelWrapper(gym.make(ENV))
    figure = Figure(figsize=(10.0, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True)
    colours = _colours(results)
    optimal = exact.parts(env, OPTIMUM)
    summed = {curves.name: exact.parts(env, curves.theta.reshape(-1, len(OPTIMUM))) for curves in results}
    for axes, (quantity, label) in zip(panels.flat, QUANTITIES.items(), strict=True):
        for curves in results:
            values = summed[curves.name][quantity].reshape(curves.value.shape)
            _draw(axes, values, colours[curves.name], FORMS[curves.name].label)
        for method, name in BUILDING_METHODS.items():
            _draw_published(axes, method, quantity, colours[method], f"{name} (arXiv:2603.14867)")
        axes.axhline(optimal[quantity], color="black", linestyle=":", linewidth=1, label="at the optimum")
        axes.set_title(f"{label} (discounted sum)", fontsize=10)
    longest = max((len(curves.value) for curves in results), default=0)
    for axes in panels[1]:
        axes.set_xlabel("outer iterations")
        axes.set_xlim(-0.02 * longest, 1.02 * longest)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="outside right upper")
    return figure


def theta_figure(results: Sequence[Curves]) -> Figure:
    """θ over iterations: mean and range over runs, and where the optimum lies."""
    figure = Figure(figsize=(11.0, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    colours = _colours(results)
    names = [rf"insulation $\alpha_{i}$" for i in range(1, 5)] + [rf"airflow $\phi_{i}$" for i in range(1, 5)]
    for index, (axes, name) in enumerate(zip(panels.flat, names, strict=True)):
        for curves in results:
            entry = curves.theta[..., index]
            x = np.arange(1, len(entry) + 1)
            axes.plot(x, entry.mean(1), color=colours[curves.name], label=FORMS[curves.name].label)
            axes.fill_between(x, entry.min(1), entry.max(1), color=colours[curves.name], alpha=0.15, linewidth=0)
        axes.axhline(OPTIMUM[index], color="black", linestyle=":", linewidth=1, label="optimum")
        axes.set_title(name, fontsize=10)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25)
    for axes in panels[1]:
        axes.set_xlabel("outer iterations")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")
    return figure


# Random search -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """The paper's study of random configurations.

    Attributes:
      exact: J_L of each configuration, [K].
      sampled: its return over 50 episodes, [K].
      growth: largest real part of A's eigenvalues, [K].
      stable: whether all eigenvalues of A lie inside the unit circle, bool [K].
    """

    exact: np.ndarray
    sampled: np.ndarray
    growth: np.ndarray
    stable: np.ndarray


def random_search(count: int, *, seed: int = 42, episodes: int = 50, at_once: int = 100) -> Search:
    """θ uniform in [0, 1]^8, each with its exact follower, its exact value and one sampled evaluation."""
    env = BilevelWrapper(gym.make(ENV))
    gamma = env.preferences.gamma_leader
    theta = np.random.default_rng(seed).random((count, len(OPTIMUM)))
    columns = []
    for first in range(0, count, at_once):
        part = theta[first : first + at_once]
        noise = Noise([[seed, first + index] for index in range(len(part))])
        best, model = env.best_response(part), env.model(part)
        batch = env.rollout(part, best, noise, rows=episodes, horizon=100)
        returns = (gamma ** batch.step.double() * batch.r_leader).sum((1, 2)) / episodes
        roots = torch.linalg.eigvals(model.A)
        stable = (roots.abs() < 1).all(-1)
        columns.append((exact.value(model, best.policy, gamma), returns, roots.real.amax(-1), stable))
    return Search(*(torch.cat(column).numpy() for column in zip(*columns, strict=True)))


def search_figure(search: Search, best_known: float) -> Figure:
    """Our histogram over the published one, the exact values beside, the optimum and where the published BC-HG ends."""
    figure, axes = _figure(8.0, 4.6)
    edges, counts = building_histogram()
    share = 100 / len(search.exact)
    kinds = ((search.sampled, "C0", "50 episodes each, as published"), (search.exact, "C2", "exact values"))
    for values, colour, label in kinds:
        inside = np.clip(values, edges[0], edges[-1])
        axes.hist(
            inside, edges.tolist(), weights=np.full(len(values), share), histtype="step", color=colour, label=label
        )
    published = 100 * counts / counts.sum()
    axes.stairs(published, edges, fill=True, color="C1", alpha=0.3, label="arXiv:2603.14867, 50 episodes each")
    axes.axvline(best_known, color="black", linestyle=":", label=f"optimum {best_known:.2f}")
    axes.axvline(building("bchg").mean[-1], color="C3", linestyle="--", label="where the published BC-HG ends")
    axes.set_xlabel(r"leader's value $J_L(\theta)$")
    axes.set_ylabel("share of random configurations, %")
    axes.set_title(f"{len(search.exact):,} configurations, uniform in [0, 1]⁸", fontsize=11)
    axes.legend(fontsize=8)
    return figure


def search_table(search: Search) -> str:
    """What the study reports, ours and published, as a Markdown table."""
    edges, counts = building_histogram()
    # the published values, spread evenly within their bins
    bins = zip(edges[:-1], edges[1:], counts, strict=True)
    middle = np.concatenate([np.linspace(low, high, 2 * number + 1)[1::2] for low, high, number in bins])
    rows: list[tuple[str, Callable[[np.ndarray], float]]] = [("mean", np.mean), ("standard deviation", np.std)]
    lines = ["| | exact | 50 episodes | published, from bins |", "|---|---|---|---|"]
    for name, statistic in rows:
        numbers = [f"{statistic(values):.1f}" for values in (search.exact, search.sampled, middle)]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    for quantile in (0.05, 0.5, 0.95, 0.99):
        numbers = [f"{np.quantile(values, quantile):.1f}" for values in (search.exact, search.sampled, middle)]
        lines.append(f"| quantile {quantile:g} | {' | '.join(numbers)} |")
    for name, chosen in (
        (("best 25", slice(-25, None)), ("worst 25", slice(None, 25))) if len(search.exact) >= 50 else ()
    ):
        numbers = [f"{np.sort(values)[chosen].mean():.1f}" for values in (search.exact, search.sampled, middle)]
        lines.append(f"| mean of the {name} | {' | '.join(numbers)} |")
    above = [f"{np.mean(values > -196.2):.3%}" for values in (search.exact, search.sampled, middle)]
    lines.append(f"| above −196.2, where the published BC-HG ends | {' | '.join(above)} |")
    lines += [
        "",
        "Every follower's Riccati equation was solved. Largest real part of an eigenvalue of A: "
        f"{search.growth.max():.4f}; share of configurations with all eigenvalues inside the unit circle: "
        f"{search.stable.mean():.1%}.",
    ]
    return "\n".join(lines) + "\n"


def _colours(results: Sequence[Curves]) -> dict[str, str]:
    """A colour for each published method and each leader: its method's, if no earlier one has taken that."""
    colours = {method: f"C{index}" for index, method in enumerate(BUILDING_METHODS)}
    free = iter(f"C{index}" for index in range(len(BUILDING_METHODS), 10))
    taken: set[str | None] = set()
    for curves in results:
        method = FORMS[curves.name].published
        alone = method is not None and method not in taken
        colours[curves.name] = colours[method] if method is not None and alone else next(free, "grey")
        taken.add(method)
    return colours


def _draw(axes: Axes, values: np.ndarray, colour: str, label: str) -> None:
    """Mean and standard error over runs; exact values need no filter."""
    x, mean = np.arange(1, len(values) + 1), values.mean(1)
    error = values.std(1, ddof=1) / values.shape[1] ** 0.5
    axes.plot(x, mean, color=colour, label=label)
    axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    axes.grid(alpha=0.25)


def _draw_published(axes: Axes, method: str, quantity: str, colour: str, label: str) -> None:
    x, mean, error = building(method, quantity)
    axes.plot(x, mean, color=colour, linestyle="--", linewidth=1, label=label)
    axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.08, linewidth=0)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    return figure, axes
