"""Why larger batches hurt the published BC-HG: the decline with batch size, and each slip of the published code mended.

Four rooms as published (mismatched dynamics), `preset="paper"`, 10 seeds; the score is the mean of the leader's exact
value over the last tenth of the iterations: 10,000 with the hyper-parameters of `leaders.experiments.reproduce`, for
the decline; 2,000 for what is mended. Writes the tables and the figure of `docs/batch_size.md`; what the data file
holds is not run again.

Run: python benchmarks/batch_size.py   (about an hour on one core)
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from bilevel_envs import BilevelWrapper
from leaders import BCHG
from leaders.critics import Empirical, Sarsa
from leaders.estimators.continuation import continuation
from leaders.estimators.sample import Sample
from leaders.experiments import plots
from leaders.experiments.compare import tail_mean
from leaders.experiments.reproduce.four_rooms import PUBLISHED_SEEDS, four_rooms_runs, settings_of
from leaders.functional.visits import number
from leaders.functional.weights import Weights, discount_weights
from leaders.published import four_rooms
from leaders.training.history import replace_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import Record  # noqa: E402

BETA = 1e-3  # where the decline is steepest
BETAS, BATCHES, MENDED_BATCHES = (1e-3, 3e-3, 5e-3), (100, 200, 400, 1_000), (1_000, 100)
STUCK = 0.1  # below, a seed ended on the plateau where nothing is spent

# What is mended, one at a time and all together (four-rooms pitfalls 1, 2, 3, 4, 6, 8).
MENDED: dict[str, set[str]] = {
    "nothing (published)": set(),
    "critic starts at 0": {"critic start"},
    "critic looks beyond the batch": {"critic end"},
    "exact critic": {"exact critic"},
    "per episode begun, not finished": {"normaliser"},
    "direct term: first visits only": {"direct"},
    "cut episodes left out": {"drop"},
    "cut episodes continued": {"continue"},
    "∇Q_F not shared among visits": {"shared"},
    "simulator = planner": {"dynamics"},
    "rows of 100 steps (bias of batch 100)": {"rows"},
    "critic start, critic end, normaliser, direct, continue": {
        "critic start", "critic end", "normaliser", "direct", "continue"
    },
    "the same with an exact critic": {"exact critic", "normaliser", "direct", "continue"},
}  # fmt: skip


@dataclass
class Args:
    """What is run."""

    runs: int = 10
    iterations: int = 10_000
    mended_iterations: int = 2_000
    out: Path = ROOT / "docs" / "data" / "batch_size.json"


class Mended(BCHG):
    """The published BC-HG with some of its weights mended."""

    mended: frozenset[str] | set[str] = frozenset()

    def weights(self, sample: Sample) -> Weights:
        weights, batch = super().weights(sample), sample.batch
        gamma, follower = self.env.preferences.gamma_leader, weights.r_follower
        ended = batch.valid & (batch.terminated | batch.truncated)
        if "drop" in self.mended:
            dropped = replace(sample, tail="drop", discounts=discount_weights(batch, gamma, "drop"))
            follower = super().weights(dropped).r_follower
        if "normaliser" in self.mended:
            follower = follower * number(ended) / number(batch.starts)
        weights = replace(weights, r_follower=follower)
        if "direct" in self.mended:
            weights = replace(weights, r_leader=discount_weights(batch, gamma, "drop"))
        return weights

    def surrogate(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor | int]:
        total, steps = super().surrogate(sample)
        if "continue" in self.mended:  # the follower's traces go on in the world as this batch shows it
            preferences, batch, best, model = self.env.preferences, sample.batch, sample.best, sample.model
            seen = Empirical(preferences.gamma_leader)
            seen.fit(batch, best, model.detach(), sample.noise)
            weights = self.weights(sample)
            where = replace(sample.judges, seen=[seen])
            nothing = torch.zeros_like(weights.r_leader)
            total = total + continuation(where, model, batch, best, nothing, weights, preferences, rule=sample.rule)
        return total, steps


def decline(beta: float, batch: int, args: Args) -> list[float]:
    """Score of each seed, with the hyper-parameters found for that batch size."""
    result = four_rooms_runs("bchg", beta, batch, runs=args.runs, iterations=args.iterations)
    return result.scores[result.best].round(4).tolist()


def mending(batch: int, mended: set[str], args: Args) -> list[float]:
    """Score of each seed with some of the slips mended."""
    dynamics = "published" if "dynamics" in mended else "mismatched"
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", beta=BETA, dynamics=dynamics))
    settings: dict[str, Any] = dict(settings_of("bchg", BETA, batch))
    rate, start = settings["critic_learning_rate"], "zeros" if "critic start" in mended else "normal"
    critic: Any = "exact" if "exact critic" in mended else "sarsa"
    if "critic end" in mended:
        critic = Sarsa(env.preferences.gamma_leader, rate, start, cut_is_end=False)
    leader = Mended(
        env,
        preset="paper",
        runs=args.runs,
        batch_size=batch,
        critic=critic,
        critic_start=start,
        shared="shared" not in mended,
        rows=batch // 100 if "rows" in mended else None,
        **settings,
    )
    leader.mended = mended
    leader.learn(args.mended_iterations)
    return tail_mean(leader.history["leader_value"]).round(4).tolist()


def mean_and_error(scores: Sequence[float]) -> tuple[float, float]:
    """Of some seeds."""
    return float(np.mean(scores)), float(np.std(scores, ddof=1) / len(scores) ** 0.5)


def published(beta: float, batch: int) -> tuple[float, float]:
    """The published score, with a standard error in sample form, as ours."""
    curve = four_rooms("bchg", beta, batch)
    assert curve is not None
    error = tail_mean(curve.sem) * (PUBLISHED_SEEDS / (PUBLISHED_SEEDS - 1)) ** 0.5
    return float(tail_mean(curve.mean)), float(error)


def declines(found: dict[str, list[float]]) -> str:
    """The table of the decline."""
    lines = ["| β | batch | step, η | ours | seeds below 0.1 | published | z |", "|---" * 7 + "|"]
    for beta, batch in itertools.product(BETAS, BATCHES):
        scores, theirs = found[decline_key(beta, batch)], published(beta, batch)
        ours, stuck = mean_and_error(scores), sum(score < STUCK for score in scores)
        z = (ours[0] - theirs[0]) / np.hypot(ours[1], theirs[1])
        settings = ", ".join(f"{value:g}" for value in settings_of("bchg", beta, batch).values())
        cells = [f"{beta:g}", f"{batch:,}", settings, pm(ours), str(stuck), pm(theirs), f"{z:+.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mendings(found: dict[str, list[float]]) -> str:
    """The table of what is mended."""
    lines = ["| mended | " + " | ".join(f"batch {batch:,} | stuck" for batch in MENDED_BATCHES) + " |"]
    lines.append("|---" * (1 + 2 * len(MENDED_BATCHES)) + "|")
    for name in MENDED:
        cells = [name]
        for batch in MENDED_BATCHES:
            scores = found[mended_key(name, batch)]
            cells += [pm(mean_and_error(scores)), f"{sum(score < STUCK for score in scores)} of {len(scores)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def pm(pair: tuple[float, float]) -> str:
    """Mean ± standard error."""
    return f"{pair[0]:.3f} ± {pair[1]:.3f}"


def figure(found: dict[str, list[float]]) -> Figure:
    """Score against batch size: ours solid, published dashed."""
    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = drawn.subplots()
    for index, beta in enumerate(BETAS):
        ours = np.array([mean_and_error(found[decline_key(beta, batch)]) for batch in BATCHES]).T
        theirs = np.array([published(beta, batch) for batch in BATCHES]).T
        style = {"color": f"C{index}", "capsize": 3, "marker": "o", "markersize": 4}
        axes.errorbar(BATCHES, *ours, label=f"β = {beta:g}", **style)
        axes.errorbar(BATCHES, *theirs, linestyle="--", linewidth=1, alpha=0.7, **style)
    axes.plot([], [], color="black", linestyle="--", linewidth=1, label="published")
    axes.set_xscale("log")
    axes.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES])
    axes.minorticks_off()
    axes.set_xlabel("transitions per outer iteration")
    axes.set_ylabel("leader's value, last tenth of 10,000 iterations")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    return drawn


def decline_key(beta: float, batch: int) -> str:
    """Name of a run in the data file."""
    return f"β = {beta:g}, batch {batch}"


def mended_key(name: str, batch: int) -> str:
    """The same of a mended one."""
    return f"batch {batch}, mended: {name}"


def main(args: Args) -> None:
    torch.set_num_threads(1)
    record = Record(args.out)
    for beta, batch in itertools.product(BETAS, BATCHES):
        record.get(decline_key(beta, batch), lambda beta=beta, batch=batch: decline(beta, batch, args))
    for batch, (name, mended) in itertools.product(MENDED_BATCHES, MENDED.items()):
        record.get(mended_key(name, batch), lambda batch=batch, mended=mended: mending(batch, mended, args))
    record.table(declines(record.found))
    replace_file(args.out.with_name("batch_size_mended.md"), mendings(record.found).encode())
    plots.save(figure(record.found), ROOT / "docs" / "images" / "batch_size.png")


if __name__ == "__main__":
    main(tyro.cli(Args))
