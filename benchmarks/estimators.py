"""Variance of estimates by what reduces it, and what cross-fitted networks cost.

Writes the tables that `docs/estimators.md` includes; what the data file holds is not measured again.

Run: python benchmarks/estimators.py [--parts variance judges gradients led cost]
On one core five minutes, with `led` a quarter of an hour.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from leaders import BCHG, HPGD, exact

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the worlds are those of the tests

from benchmarks.record import Record  # noqa: E402
from bilevel_envs.core.checks import check_choice  # noqa: E402
from leaders.training.history import replace_file  # noqa: E402
from tests.helpers import (  # noqa: E402
    STRANGERS,
    building,
    leader_at_fixed_theta,
    leader_at_half,
    policy_at,
    random_mdp,
    training_estimates,
)

SAMPLES = 400
ALONE = {"reward_share": 0.0, "start_share": 0.0}  # θ in the transitions alone
REDUCED: dict[str, tuple[dict[str, float], dict[str, str], dict[str, str]]] = {
    "soft TD errors, θ in the transitions alone": (ALONE, {"score_weight": "value"}, {"score_weight": "td_error"}),
    "soft TD errors, θ everywhere": ({}, {"score_weight": "value"}, {"score_weight": "td_error"}),
    "a constant as control variate, θ everywhere": ({}, {"control_variate": "none"}, {"control_variate": "constant"}),
}
JUDGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "`BCHG()`, the default": (BCHG, {}),
    '`BCHG(critic="expected_sarsa")`': (BCHG, {"critic": "expected_sarsa"}),
    '`BCHG(critic="monte_carlo")`': (BCHG, {"critic": "monte_carlo"}),
    '`HPGD("mc")`': (HPGD, {"variant": "mc"}),
    '`HPGD("sa")`': (HPGD, {"variant": "sa"}),
}
BATCHES = (100, 1_000)
KNOWN: dict[str, dict[str, Any]] = {
    "score": {"gradient": "score"},
    "pathwise": {"gradient": "pathwise"},
    "analytic": {"gradient": "analytic"},
    "published form": {"preset": "paper"},
}
LED: dict[str, tuple[dict[str, Any], int]] = {
    '`"score"`, sampled': ({"gradient": "score", "guiding": "sampled"}, 3),
    '`"score"`, fitted': ({"gradient": "score", "guiding": "fitted"}, 10),
    '`"pathwise"`, sampled': ({"gradient": "pathwise", "guiding": "sampled"}, 10),
    '`"pathwise"`, fitted': ({"gradient": "pathwise", "guiding": "fitted"}, 10),
    '`"pathwise"`, fitted, batches of 1,000': ({"gradient": "pathwise", "guiding": "fitted", "batch_size": 1_000}, 10),
}
COSTLY: dict[str, Callable[[], Any]] = {"building thermal control": building, "`RandomMDP`": random_mdp}


def variance() -> dict[str, list[float]]:
    """By what reduces it: for each of five worlds, the median over coordinates of the factor."""
    found: dict[str, list[float]] = {}
    for name, (world, plain, reduced) in REDUCED.items():
        found[name] = []
        for seed in range(5):
            env = random_mdp(seed=seed, **world)
            wide, narrow = (
                BCHG(env, critic="exact", **how).gradient_samples(SAMPLES).var(0)  # type: ignore[arg-type]
                for how in (plain, reduced)
            )
            found[name].append(float(np.median(wide / narrow)))
    return found


def variance_table(found: dict[str, list[float]]) -> str:
    """Least and largest factor of the five worlds."""
    lines = ["| what reduces the variance | by a factor of (`RandomMDP`, seeds 0 to 4) |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {min(x):.1f} to {max(x):.0f} |" for name, x in found.items()]) + "\n"


def judges() -> dict[str, list[list[float]]]:
    """By leader and batch: ‖mean − exact‖ and the deviation of an estimate, over ‖exact‖: 200 after 50 iterations."""
    found: dict[str, list[list[float]]] = {}
    for name, (make, settings) in JUDGED.items():
        found[name] = []
        for batch in BATCHES:
            env = STRANGERS["random, everywhere"]()
            theta = env.problem.default_theta
            how = {"batch_size": batch} | settings
            leader = leader_at_fixed_theta(make, env, policy_at(theta), **how).learn(50)
            samples = training_estimates(leader, 200).reshape(200, -1)
            truth = exact.hypergradient(env, theta).ravel()
            size = np.linalg.norm(truth)
            off = np.linalg.norm(samples.mean(0) - truth)
            found[name].append([float(off / size), float(np.linalg.norm(samples.std(0, ddof=1)) / size)])
    return found


def judges_table(found: dict[str, list[list[float]]]) -> str:
    """Two columns a batch."""
    columns = " | ".join(f"batch {b:,}: distance of the mean | standard deviation of one" for b in BATCHES)
    lines = [f"| | {columns} |", "|---" * (1 + 2 * len(BATCHES)) + "|"]
    for name, pairs in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{off:.2f} | {spread:.1f}" for off, spread in pairs) + " |")
    return "\n".join(lines) + "\n"


def gradients() -> dict[str, float | list[float]]:
    """Standard deviation of the first vent's entry at θ = ½, from 100 episodes: sampled reactions, and fitted ones."""
    found: dict[str, float | list[float]] = {}
    for name, how in KNOWN.items():
        sampled = {} if "preset" in how or how["gradient"] == "analytic" else {"guiding": "sampled"}
        count = 1_000
        leader = leader_at_half(BCHG(building(), critic="exact", **how, **sampled))
        found[name] = float(leader.gradient_samples(count, episodes=100, raw=True)[:, 4].std(ddof=1))
        if sampled:
            leader = leader_at_half(BCHG(building(), critic="exact", guiding="fitted", **how))
            found[f"{name}, fitted"] = float(leader.gradient_samples(SAMPLES, episodes=100, raw=True)[:, 4].std(ddof=1))
    leader = leader_at_half(BCHG(building(), critic="exact"))
    found["exact value"] = float(exact.hypergradient(leader.env, parameters=leader.policy).ravel()[4])
    return found


def gradients_table(found: dict[str, float]) -> str:
    """By what the leader knows."""
    uses = {
        "score": ('`"score"`', "nothing", r"score, $\delta\, \nabla \log p$"),
        "pathwise": (
            '`"pathwise"`',
            "how θ moves the mean μ of the next state",
            r"pathwise, $\nabla\mu^\top \nabla V(\mu)$",
        ),
        "analytic": ('`"analytic"`', "all matrices", r"closed form of $\nabla Q_F - \nabla V_F$"),
        "published form": ("published form", "nothing", r"score, $V\, \nabla \log p$, no control variate"),
    }
    lines = [
        "| | uses beside trajectories | gradient of what arrives | standard deviation at θ = ½ "
        "| with fitted reactions |",
        "|---|---|---|---|---|",
    ]
    for name, cells in uses.items():
        fitted = _short(found[f"{name}, fitted"]) if f"{name}, fitted" in found else ""
        lines.append(f"| {' | '.join(cells)} | {_short(found[name])} | {fitted} |")
    return "\n".join(lines) + f"\n\nThe exact value of that entry is {found['exact value']:.1f}.\n"


def _short(number: float) -> str:
    """To three digits or so."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def led() -> dict[str, list[float]]:
    """J_L of each run of the building after 250 iterations with batches of 10,000."""
    found = {}
    for name, (how, runs) in LED.items():
        leader = BCHG(building(), runs=runs, seed=0, **{"batch_size": 10_000} | how)
        found[name] = leader.learn(250).history["leader_value"][-1].round(3).tolist()
    return found


def led_table(found: dict[str, list[float]]) -> str:
    """Worst and best run."""
    lines = ["| | runs | J_L, worst and best |", "|---|---|---|"]
    for name, values in found.items():
        ends = " to ".join(f"{value:.2f}".replace("-", "−") for value in (min(values), max(values)))
        lines.append(f"| {name} | {len(values)} | {ends} |")
    return "\n".join(lines) + "\n"


def cost() -> dict[str, list[list[float]]]:
    """CPU seconds of an iteration of `critic="td"`, cross-fitted and not, in turn: pairs by world."""
    found: dict[str, list[list[float]]] = {}
    for name, world in COSTLY.items():
        pair = [BCHG(world(), critic="td", cross_fit=cross_fit, seed=0).learn(1) for cross_fit in (True, False)]
        found[name] = []
        for _ in range(8):
            seconds = []
            for leader in pair:
                began = time.process_time()
                leader.learn(1)
                seconds.append(time.process_time() - began)
            found[name].append(seconds)
    return found


def cost_table(found: dict[str, list[list[float]]]) -> str:
    """Medians and the range of the ratio."""
    lines = ["| world | cross-fitted, CPU s | `cross_fit=False`, CPU s | ratio of pairs |", "|---|---|---|---|"]
    for name, pairs in found.items():
        fitted, plain = np.median(pairs, 0)
        ratios = [a / b for a, b in pairs]
        lines.append(f"| {name} | {fitted:.2f} | {plain:.2f} | {min(ratios):.1f} to {max(ratios):.1f} |")
    return "\n".join(lines) + "\n"


PARTS: dict[str, tuple[Callable[[], Any], Callable[[Any], str]]] = {
    "variance": (variance, variance_table),
    "judges": (judges, judges_table),
    "gradients": (gradients, gradients_table),
    "led": (led, led_table),
    "cost": (cost, cost_table),
}


@dataclass
class Args:
    """What is measured."""

    parts: tuple[str, ...] = tuple(PARTS)
    out: Path = ROOT / "docs" / "data" / "estimators.json"


def main(args: Args) -> None:
    torch.set_num_threads(1)
    record = Record(args.out)
    for part in args.parts:
        check_choice(part, PARTS, "parts")
    for part in args.parts:
        measure, table = PARTS[part]
        text = table(record.get(part, measure))
        replace_file(args.out.with_name(f"estimators_{part}.md"), text.encode())


if __name__ == "__main__":
    main(tyro.cli(Args))
