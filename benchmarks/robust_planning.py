"""Random large models, each solved and held against SciPy: does anything fail?

Rooms, warehouses and random models of 1,000 to 3,000 states, β from 1e-4 to 1, γ from 0.9 to 0.9999, rewards of
scales from 1e-3 to 1e3 (β likewise), from V = 0 and from a nearby response. Of each case: the soft Bellman residual
of the response, and the solutions of both systems of its policy beside SciPy's sparse elimination.

Run: python benchmarks/robust_planning.py [--cases 280] [--seed 0]   (a minute; ends with 1 if any case fails)
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from large_models import Lists, four_rooms, random_model, warehouse
from scipy.sparse import csr_array, eye_array
from scipy.sparse.linalg import splu
from scipy.special import logsumexp

from bilevel_envs import Preferences, TabularModel, Transitions
from bilevel_envs.followers import SoftValueIteration

KINDS: dict[str, Callable[[np.random.Generator], Lists]] = {
    "rooms": lambda rng: four_rooms(int(rng.integers(34, 56)), slip=rng.uniform(0, 0.6), seed=int(rng.integers(99))),
    "warehouse": lambda rng: warehouse(int(rng.integers(30, 48)), slip=rng.uniform(0, 0.6), seed=int(rng.integers(99))),
    "random": lambda rng: random_model(int(rng.integers(1_000, 2_000)), 3, int(rng.integers(1, 4))),
    "wide": lambda rng: random_model(1_000, 6, int(rng.integers(5, 40))),
}
RESIDUAL = 1e-6  # of β, that the follower is asked for
DIGITS = 1e-7  # of the largest entry of a solution


@dataclass
class Robust:
    """Solves what is drawn."""

    cases: int = 280
    seed: int = 0
    out: Path = Path(__file__).parents[1] / "docs" / "data" / "robust_planning.json"

    def run(self) -> None:
        """Case by case."""
        torch.set_num_threads(1)
        failed, worst = [], {"residual": 0.0, "solutions": 0.0}
        for number in range(self.cases):
            try:
                found = case(np.random.default_rng([self.seed, number]), list(KINDS)[number % len(KINDS)])
            except RuntimeError as error:
                failed.append(f"case {number}: {error}")
                continue
            worst = {name: max(worst[name], found[name]) for name in worst}
            if found["residual"] > RESIDUAL or found["solutions"] > DIGITS:
                failed.append(f"case {number}: {found}")
        told = {"cases": self.cases, "seed": self.seed, "failed": failed, "worst": worst}
        self.out.write_text(json.dumps(told, indent=1) + "\n")
        print(json.dumps(told, indent=1))
        sys.exit(bool(failed))


def case(rng: np.random.Generator, kind: str) -> dict[str, float]:
    """The residual of a response beside β, and the largest error of the solutions under its policy."""
    lists = KINDS[kind](rng)
    gamma, scale = 1 - 10 ** rng.uniform(-4, -1), 10 ** rng.uniform(-3, 3)
    beta = scale * 10 ** rng.uniform(-4, 0)
    reward = torch.from_numpy(lists.reward * scale)
    start = torch.full((1, reward.shape[1]), 1 / reward.shape[1], dtype=torch.float64)
    transitions = Transitions.from_lists(lists.successor, lists.probability[0])
    goes_on = torch.from_numpy(lists.continues.astype(float))[None]
    model = TabularModel(transitions, start, reward, reward, goes_on)
    follower, preferences = SoftValueIteration(tol=RESIDUAL), Preferences(gamma, gamma, beta)
    best = follower.best_response(model, preferences)
    if rng.random() < 0.5:  # once more from nearby
        nearby = reward + 0.1 * beta * torch.from_numpy(rng.standard_normal(reward.shape))
        model = TabularModel(transitions, start, reward, nearby, goes_on)
        best, reward = follower.best_response(model, preferences, best), nearby
    v, g = best.v.values[0].numpy(), best.policy.probs[0].numpy()
    states = len(g)
    dense = np.broadcast_to(lists.successor, lists.probability.shape[1:])
    onward = lists.continues[..., None] * lists.probability[0]
    q = reward[0].numpy() + gamma * (onward * v[dense]).sum(-1)
    rows = np.broadcast_to(np.arange(states)[:, None, None], dense.shape)
    going = csr_array(((g[..., None] * onward).ravel(), (rows.ravel(), dense.ravel())), (states, states))
    system = (eye_array(states) - gamma * going).tocsc()
    resolvents, error = model.resolvents(best.policy.probs, gamma), 0.0
    for transpose in (False, True):
        y = rng.standard_normal(states) if rng.random() < 0.5 else np.eye(1, states, int(rng.integers(states)))[0]
        known = splu(system).solve(y, trans="T" if transpose else "N")
        found = resolvents(torch.from_numpy(y)[None], transpose=transpose)[0].numpy()
        error = max(error, float(np.abs(found - known).max() / np.abs(known).max()))
    residual = np.abs(beta * logsumexp(q / beta, axis=1) - v).max() / beta
    return {"residual": float(residual), "solutions": error}


if __name__ == "__main__":
    tyro.cli(Robust).run()
