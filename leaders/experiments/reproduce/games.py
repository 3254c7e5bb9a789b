"""Figures 4 and 5 of the paper: the toy Markov game and the bilevel LQR, beside the published curves."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bilevel_envs.core.follower import Follower
from bilevel_envs.followers import Committed, SoftValueIteration
from bilevel_envs.wrapper import BilevelWrapper
from leaders import exact
from leaders.algorithms.bchg import BCHG
from leaders.algorithms.bi_ac import BiAC
from leaders.algorithms.exact_gradient import ExactGradient
from leaders.algorithms.naive_pgd import NaivePGD
from leaders.leader import Leader
from leaders.published import game_curve
from leaders.training.checkpoint import UNREADABLE, arrays_in
from leaders.training.history import replace_file

TOY, LQR = "BiLevel/ToyMarkovGame-v0", "BiLevel/BilevelLQR-v0"
EVERY = 10  # outer iterations between two evaluations
STEPS = 150  # of an episode of the toy game
CEILINGS = {"R1": (27.315561, 52.324139), "R2": (31.165576, 59.750091)}  # discounted and undiscounted, at the best θ
LQR_CEILING = 18.426353  # undiscounted, 100 steps
LEAST = 1e-3  # of the picture, whose scale is logarithmic


@dataclass(frozen=True)
class Form:
    """A leader of a figure.

    Attributes:
      make: its class.
      label: in the legend.
      arguments: of its constructor.
      published: the published method that it is held against, or None.
      committed: led with the follower as published instead of the exact one.
      most: outer iterations that it is run for at most, or None.
    """

    make: Callable[..., Leader]
    label: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    published: str | None = None
    committed: bool = False
    most: int | None = None

    def iterations(self, wanted: int) -> int:
        """How many of those wanted are run."""
        return wanted if self.most is None else min(wanted, self.most)


PAPER = {"preset": "paper"}
TOY_FORMS = {
    "bchg": Form(BCHG, "BC-HG"),
    "naive-pgd": Form(NaivePGD, "Naive-PGD"),
    "bi-ac": Form(BiAC, "Bi-AC"),
    "bchg-paper": Form(BCHG, "BC-HG, published form", PAPER, "bchg", True),
    "naive-pgd-paper": Form(NaivePGD, "Naive-PGD, published form", PAPER, "naive-pgd", True),
    "bi-ac-paper": Form(BiAC, "Bi-AC, published form", PAPER, "bi-ac", True),
}
PUBLISHED = 500  # outer iterations of the paper's runs of the LQR
FITTED = {"critic": "fitted_linear", "gradient": "pathwise", "batch_size": 500}
LQR_FORMS = {
    "bchg": Form(BCHG, "BC-HG"),
    "bchg-pathwise": Form(BCHG, "BC-HG, fitted loop", FITTED),
    "naive-pgd": Form(NaivePGD, "Naive-PGD"),
    "bchg-paper": Form(BCHG, "BC-HG, published form", PAPER, "bchg", most=PUBLISHED),
    "naive-pgd-paper": Form(NaivePGD, "Naive-PGD, published form", PAPER, "naive-pgd", most=PUBLISHED),
    "naive-pgd-off-paper": Form(
        NaivePGD, "Naive-PGD off-policy, published form", PAPER | {"replay": True}, "naive-pgd-off", most=PUBLISHED
    ),
    "exact": Form(ExactGradient, "exact hypergradient", {"learning_rate": 0.1, "max_grad_norm": float("inf")}),
}


@dataclass(frozen=True)
class Returns:
    """What became of one leader.

    Attributes:
      name: its name among the forms.
      iteration: outer iterations done at each evaluation, [K].
      discounted, undiscounted: exact returns of an episode, under the follower that was led, [K, R].
    """

    name: str
    iteration: np.ndarray
    discounted: np.ndarray
    undiscounted: np.ndarray


def toy_runs(
    name: str, variant: str, *, runs: int, iterations: int, seed: int = 0, progress_bar: bool = False
) -> Returns:
    """Trains one leader of the toy game, all seeds stacked, and evaluates its policies exactly."""
    form = TOY_FORMS[name]
    follower: Follower = Committed() if form.committed else SoftValueIteration()
    env = BilevelWrapper(gym.make(TOY, variant=variant), follower)
    return _evaluated(env, form, name, STEPS, runs, iterations, seed, progress_bar)


def lqr_runs(name: str, *, runs: int, iterations: int, seed: int = 0, progress_bar: bool = False) -> Returns:
    """The same for the bilevel LQR."""
    form = LQR_FORMS[name]
    wanted = form.iterations(iterations)
    return _evaluated(BilevelWrapper(gym.make(LQR)), form, name, 100, runs, wanted, seed, progress_bar)


def _evaluated(
    env: BilevelWrapper, form: Form, name: str, steps: int, runs: int, iterations: int, seed: int, progress_bar: bool
) -> Returns:
    leader = form.make(env, runs=runs, seed=seed, **form.arguments)
    thetas, done = [leader.theta], [0]

    def remember(*_: object) -> bool:
        if leader.progress.iterations % EVERY == 0 or leader.progress.iterations == iterations:
            thetas.append(leader.theta)
            done.append(leader.progress.iterations)
        return True

    leader.learn(iterations, callback=remember, progress_bar=progress_bar)
    theta = np.concatenate(thetas)
    policy = env.best_response(theta).policy
    sums = [exact.objective(env, theta, horizon=steps, policy=policy)]
    sums.append(exact.objective(env, theta, horizon=steps, discount=1.0, policy=policy))
    discounted, undiscounted = (total.reshape(len(done), runs) for total in sums)
    return Returns(name, np.array(done), discounted, undiscounted)


def save_returns(returns: Returns, path: Path) -> None:
    """Writes them, replacing the file at once."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **vars(returns))
    replace_file(path, buffer.getvalue())


def load_returns(path: Path, name: str, iterations: int) -> Returns:
    """What `save_returns` wrote.

    Raises:
      ValueError: if the file is damaged, another leader's, or of another length.
    """
    try:
        with arrays_in(path) as data:
            returns = Returns(str(data["name"]), data["iteration"], data["discounted"], data["undiscounted"])
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged or no result ({error}); delete it to run that leader again") from error
    if returns.name != name or returns.iteration[-1] != iterations:
        raise ValueError(
            f"{path} holds {returns.iteration[-1]} iterations of {returns.name}, wanted are {iterations} of {name}; "
            "choose another --out"
        )
    return returns


def toy_table(results: Sequence[Returns], variant: str) -> str:
    """Returns of the last policies in both units, and the published final value, as a Markdown table."""
    d, u = CEILINGS[variant]
    unit = "discounted" if variant == "R1" else "undiscounted"
    lines = [
        f"Variant {variant}, exact returns of 150 steps after the last iteration, mean ± deviation over seeds (worst). "
        f"Ceilings: {d:.2f} discounted, {u:.2f} undiscounted. Published: {unit}, last point.",
        "",
        "| leader | discounted | undiscounted | published |",
        "|---|---|---|---|",
    ]
    for returns in results:
        form = TOY_FORMS[returns.name]
        ours = [
            f"{x[-1].mean():.2f} ± {x[-1].std(ddof=1):.2f} ({x[-1].min():.2f})"
            for x in (returns.discounted, returns.undiscounted)
        ]
        lines.append(f"| {form.label} | {' | '.join(ours)} | {_last(f'toy_{variant}', form)} |")
    return "\n".join(lines) + "\n"


def lqr_table(results: Sequence[Returns]) -> str:
    """Undiscounted returns of the last policies, as a Markdown table."""
    lines = [
        f"Exact undiscounted returns of 100 steps after the last iteration. Ceiling: {LQR_CEILING:.2f}.",
        "",
        "| leader | mean ± deviation over seeds | median | worst | best | published |",
        "|---|---|---|---|---|---|",
    ]
    for returns in results:
        form, last = LQR_FORMS[returns.name], returns.undiscounted[-1]
        spread = f"{last.mean():.3f} ± {last.std(ddof=1):.3f}"
        ends = f"{np.median(last):.3f} | {last.min():.3f} | {last.max():.3f}"
        lines.append(f"| {form.label} | {spread} | {ends} | {_last('lqr', form)} |")
    return "\n".join(lines) + "\n"


def toy_figure(results: Sequence[Returns], variant: str) -> Figure:
    """Both units side by side, the published curves dashed in theirs, the ceilings dotted."""
    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    colours = {name: f"C{index}" for index, name in enumerate(TOY_FORMS)}
    for axes, unit, ceiling in zip(panels, ("discounted", "undiscounted"), CEILINGS[variant], strict=True):
        for returns in results:
            _draw(axes, returns.iteration, getattr(returns, unit), colours[returns.name], TOY_FORMS[returns.name].label)
        if unit == ("discounted" if variant == "R1" else "undiscounted"):
            for name in ("bchg-paper", "naive-pgd-paper", "bi-ac-paper"):
                form = TOY_FORMS[name]
                label = form.label.removesuffix(", published form") + " (arXiv:2603.14867)"
                _draw_published(axes, f"toy_{variant}_{form.published}", colours[name], label)
        axes.axhline(ceiling, color="black", linestyle=":", linewidth=1, label=f"ceiling {ceiling:.2f}")
        axes.set_xlabel("outer iterations")
        axes.set_ylabel(f"leader's {unit} return of 150 steps")
        axes.grid(alpha=0.25)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        if not label.startswith("ceiling")
    }
    figure.legend(list(handles.values()), list(handles), fontsize=7, loc="outside right upper")
    figure.suptitle(f"Toy Markov game {variant}: exact returns; dotted: ceilings; published: sampled", fontsize=11)
    return figure


def landscape_figure(variant: str) -> Figure:
    """J_L against p = f(0|A), for the exact follower and the one as published."""
    p = np.linspace(0.005, 0.995, 991)
    theta = np.full((len(p), 3, 2), 0.5)
    theta[:, 1] = np.stack([p, 1 - p], -1)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    followers: dict[str, Follower] = {
        "exact follower": SoftValueIteration(),
        "follower as published": Committed(sweeps=5_000),
    }
    for label, follower in followers.items():
        env = BilevelWrapper(gym.make(TOY, variant=variant), follower)
        value = exact.objective(env, theta, policy=env.best_response(theta).policy)
        axes.plot(p, value, label=f"{label}: {value.max():.2f} at p = {p[value.argmax()]:.3f}")
    axes.set_xlabel("p = f(0 | A): how often the leader lets the follower pass")
    axes.set_ylabel(r"leader's value $J_L$")
    axes.set_title(f"Toy Markov game {variant}", fontsize=11)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    return figure


def lqr_figure(results: Sequence[Returns]) -> Figure:
    """Undiscounted returns: each seed thin, the mean thick, the published curves dashed, the ceiling dotted; log."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, returns in enumerate(results):
        form, colour, values = LQR_FORMS[returns.name], f"C{index}", np.maximum(returns.undiscounted, LEAST)
        axes.plot(returns.iteration, values, color=colour, alpha=0.2, linewidth=0.7)
        axes.plot(returns.iteration, np.maximum(values.mean(1), LEAST), color=colour, linewidth=2, label=form.label)
        if form.published is not None:
            x, mean, _ = game_curve(f"lqr_{form.published}")
            name = form.label.removesuffix(", published form")
            axes.plot(x, mean, color=colour, linestyle="--", linewidth=1.2, label=f"{name} (arXiv:2603.14867)")
    axes.axhline(LQR_CEILING, color="black", linestyle=":", linewidth=1, label=f"ceiling {LQR_CEILING:.2f}")
    axes.set_yscale("log")
    axes.set_xlabel("outer iterations")
    axes.set_ylabel("leader's undiscounted return of 100 steps (exact)")
    axes.set_title("Bilevel LQR: seeds thin, their mean thick", fontsize=11)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    axes.grid(alpha=0.25)
    return figure


def _last(key: str, form: Form) -> str:
    if form.published is None:
        return ""
    curve = game_curve(f"{key}_{form.published}")
    return f"{curve.mean[-1]:.2f} ± {curve.sem[-1]:.2f}"


def _draw(axes: Axes, x: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    mean, deviation = values.mean(1), values.std(1, ddof=1)
    axes.plot(x, mean, color=colour, label=label)
    axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def _draw_published(axes: Axes, key: str, colour: str, label: str) -> None:
    x, mean, deviation = game_curve(key)
    axes.plot(x, mean, color=colour, linestyle="--", linewidth=1, label=label)
    axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.08, linewidth=0)
