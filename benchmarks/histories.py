"""Histories of every leader on every environment for fixed seeds, to compare two versions of the code.

    python benchmarks/histories.py write before.json     # with one version
    python benchmarks/histories.py compare before.json   # with the other: a table of the largest differences

A pair of leader and environment that is refused is recorded as refused. Differences are relative to the largest entry
of a column; those above 1e-9 are named and make the command fail.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bilevel_envs
from bilevel_envs import BilevelWrapper, followers
from leaders import LEADERS

ITERATIONS = 2
TOLERANCE = 1e-9
LONG = "BuildingThermalControl-v0"  # takes minutes an iteration in the published form, which other tests hold
IDS = (
    "TollBridge-v0",
    "FourRooms-v0",
    "RandomMDP-v0",
    "BuildingThermalControl-v0",
    "TaxDesign-small-v0",
    "ToyMarkovGame-v0",
    "BilevelLQR-v0",
    "GuidedCartPole-v0",
)
FOLLOWERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "truncated": ("TollBridge-v0", lambda: followers.Truncated(rounds=3)),
    "quantal": ("TollBridge-v0", lambda: followers.Quantal(0.4)),
    "soft_q_learning": ("TollBridge-v0", lambda: followers.SoftQLearning(rounds=5)),
    "observed tables": ("TollBridge-v0", lambda: followers.ObservedFollower(followers.SoftValueIteration())),
    "observed matrices": ("BuildingThermalControl-v0", lambda: followers.ObservedFollower(followers.Riccati())),
    "sac": ("BuildingThermalControl-v0", lambda: followers.SB3Follower("SAC", 100, learning_starts=20)),
    "agent": ("GuidedCartPole-v0", lambda: followers.SB3Follower("SAC", 100, learning_starts=20)),
}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "bchg": [{"shared": True}, {"critic": "expected_sarsa", "cross_fit": False}, {"critic": "exact"}],
    "hpgd": [{"variant": variant} for variant in ("mc", "sa", "td", "oracle")],
    "sobirl": [{"modified": True}],
}


def worlds() -> Iterator[tuple[str, BilevelWrapper]]:
    """Every environment with its default follower, and some with others."""
    for name in IDS:
        env = gym.make(f"BiLevel/{name}")
        if name != "GuidedCartPole-v0":
            yield name, BilevelWrapper(env)
    for variant in ("R2",):
        yield f"ToyMarkovGame-v0 {variant}", BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", variant=variant))
    for label, (name, make) in FOLLOWERS.items():
        yield f"{name} {label}", BilevelWrapper(gym.make(f"BiLevel/{name}"), make())


def settings(leader: str) -> Iterator[dict[str, Any]]:
    """Keyword arguments that a leader is tried with."""
    yield {}
    if "preset" in inspect.signature(LEADERS[leader].__init__).parameters:
        yield {"preset": "paper"}
    yield from SETTINGS.get(leader, [])


def published(name: str) -> bool:
    """Whether the published form is recorded there: with the default follower, where it is quick."""
    return name != LONG and not any(name.endswith(f" {label}") for label in FOLLOWERS)


def record(env: BilevelWrapper, leader: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The history of a few outer iterations and the last θ."""
    try:
        trainer = LEADERS[leader](env, runs=2, seed=0, **kwargs)
        trainer.learn(ITERATIONS)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    history = trainer.history
    columns = {
        column: np.asarray(history[column], dtype=float).ravel().tolist() for column in COLUMNS if column in history
    }
    return {**columns, "theta": np.asarray(trainer.theta, dtype=float).ravel().tolist()}


COLUMNS = ("env_steps", "follower_solves", "leader_value", "leader_return", "grad_norm", "residual", "episodes")


def records(only: str) -> dict[str, Any]:
    """All records whose name contains `only`."""
    made = {}
    for leader in LEADERS:
        for kwargs in settings(leader):
            for name, env in worlds():
                key = f"{name} | {leader} {json.dumps(kwargs)}"
                if only not in key or (kwargs == {"preset": "paper"} and not published(name)):
                    continue
                made[key] = record(env, leader, kwargs)
                print(key, "refused" if "refused" in made[key] else "ok", file=sys.stderr, flush=True)
    return made


def difference(before: list[float], after: list[float]) -> float:
    """Largest difference, relative to the largest entry; inf for other lengths or another pattern of NaN."""
    a, b = np.array(before), np.array(after)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return math.inf
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    return (
        float(np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-300)) if a.any() or b.any() else 0.0
    )


def compare(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Prints a Markdown table of differences; True if all are small."""
    print("| environment and leader | largest relative difference |\n|---|---|")
    fine = True
    for key, old in before.items():
        new = after.get(key, {"refused": "not run"})
        if "refused" in old or "refused" in new:
            same = ("refused" in old) == ("refused" in new)
            said = (
                "refused by both" if same else f"before: {old.get('refused', 'ran')}; now: {new.get('refused', 'ran')}"
            )
        else:
            worst = {column: difference(old[column], new.get(column, [])) for column in old}
            column = max(worst, key=worst.__getitem__)
            same = worst[column] <= TOLERANCE
            said = f"{worst[column]:.1e} ({column})"
        fine = fine and same
        print(f"| {key} | {said}{'' if same else ' **differs**'} |")
    return fine


def main() -> None:
    """Writes or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file")
    parser.add_argument("--only", default="", help="records whose name contains this")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # sums over several threads differ in their rounding, which an agent's networks amplify
    print(f"bilevel_envs {bilevel_envs.__version__} at {bilevel_envs.__file__}", file=sys.stderr)
    now = records(arguments.only)
    if arguments.action == "write":
        with open(arguments.file, "w", encoding="utf-8") as file:
            json.dump(now, file)
        return
    with open(arguments.file, encoding="utf-8") as file:
        before = {key: value for key, value in json.load(file).items() if arguments.only in key}
    sys.exit(0 if compare(before, now) else 1)


if __name__ == "__main__":
    main()
