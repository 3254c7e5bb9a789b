"""Bias and spread of BC-HG where no model is known, with ∇Q_F sampled along trajectories and learnt by a network.

Every row: outer iterations at a fixed θ after some to warm up, with the follower of the table that the world shows,
against that table's exact hypergradient. Writes the table that `docs/estimators.md` includes; what stands in the
JSON file beside it is not measured again.

Needs: pip install --no-deps "mo-gymnasium==1.3.2"
Run: python benchmarks/fitted_guiding.py [--estimates 10] [--worlds lake contract prices] [--points 3]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import mo_gymnasium  # noqa: F401  (registers deep-sea-treasure-v0)
import numpy as np
import torch
import tyro

from bilevel_envs import (
    BestResponse,
    BilevelWrapper,
    ConfigurableMDP,
    ConfigurableRewards,
    Preferences,
    TabularEnv,
    TabularModel,
)
from bilevel_envs.core.follower import Capabilities
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.networks.policies import NetworkActionValues, NetworkCategorical
from bilevel_envs.parameterizations import Free
from leaders import BCHG, exact

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the worlds are those of the tests

from tests.helpers import training_estimates  # noqa: E402
from tests.lake import Lake, led_lake  # noqa: E402

WARM_UP = 12
TREASURES = (0.7, 8.2, 11.5, 14.0, 15.1, 16.1, 19.6, 20.3, 22.4, 23.7)
PREFERENCES = Preferences(gamma_leader=0.97, gamma_follower=0.97, beta=0.5)


@dataclass
class Args:
    """What is run."""

    estimates: int = 10
    points: int = 3  # θ of each world
    batch_size: int = 1_000
    worlds: tuple[str, ...] = ("lake", "contract", "prices")
    guidings: tuple[str, ...] = ("sampled", "fitted")
    out: Path = ROOT / "docs" / "data" / "fitted_guiding.md"


@dataclass(frozen=True)
class Terms:
    """How deep-sea treasure is led: components of (treasure, −1), and both rewards of θ and them."""

    size: int
    components: Callable
    r_follower: Callable
    r_leader: Callable

    @property
    def space(self) -> gym.spaces.Box:
        return gym.spaces.Box(0.0, 1.0, (self.size,), np.float64)


def found_treasure(observation, action, reward, after, info):
    """Which treasure was found, as its value at its place, and −1."""
    return [*(value * (abs(reward[0] - value) < 0.01) for value in TREASURES), reward[1]]


CONTRACT = Terms(
    2,
    lambda observation, action, reward, after, info: reward,
    lambda theta, c: theta[..., 0] * c[..., 0] + (1 - theta[..., 1]) * c[..., 1],
    lambda theta, c: (1 - theta[..., 0]) * c[..., 0] + theta[..., 1] * c[..., 1],
)
PRICES = Terms(
    10,
    found_treasure,
    lambda theta, c: (theta * c[..., :-1]).sum(-1) + c[..., -1],
    lambda theta, c: ((1 - theta) * c[..., :-1]).sum(-1),
)


class Sea(ConfigurableMDP):
    """Deep-sea treasure as a table; who has a treasure takes one more step, which pays nothing, entropy included."""

    preferences = PREFERENCES

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        sea = gym.make("deep-sea-treasure-v0", disable_env_checker=True)
        inner = sea.unwrapped
        logged = [[None] * 4 for _ in range(121)]
        self.p = torch.zeros(1, 121, 4, 121, dtype=torch.float64)
        for cell, action in np.ndindex(121, 4):
            sea.reset(seed=0)
            inner.current_state = np.array(divmod(cell, 11), np.int32)
            reached, reward, *_ = inner.step(action)
            self.p[0, cell, action, int(reached[0]) * 11 + int(reached[1])] = 1.0
            logged[cell][action] = np.asarray(terms.components(None, action, reward, reached, {}), float)
        self.c = torch.tensor(np.array(logged))
        self.over = torch.from_numpy((inner.sea_map > 0).reshape(121, 1))
        self.on = (~self.over).double().expand(1, 121, 4).contiguous()

    @property
    def theta_space(self) -> gym.spaces.Box:
        return self.terms.space

    @property
    def default_theta(self) -> np.ndarray:
        return np.full(self.terms.size, 0.5)

    def model(self, theta: torch.Tensor) -> TabularModel:
        at = theta[:, None, None]
        leader = torch.where(self.over, 0.0, self.terms.r_leader(at, self.c))
        diver = torch.where(self.over, -PREFERENCES.beta * np.log(4), self.terms.r_follower(at, self.c))
        return TabularModel(self.p, torch.eye(121, dtype=torch.float64)[:1], leader, diver, self.on)


def one_hot(cell):
    return np.eye(11)[cell].ravel()


class Known:
    """The table's soft optimum, told as functions of row and column one-hot."""

    beta = None
    capabilities = Capabilities(gives_values=True, learns=True)

    def __init__(self, table: Sea) -> None:
        self.table = TabularEnv(table)

    def respond(self, task, theta, model, init=None, learn=True):
        best = SoftValueIteration().best_response(self.table.model(theta), PREFERENCES)

        def at(seen):
            return seen[..., :11].argmax(-1) * 11 + seen[..., 11:].argmax(-1)

        log_g, q = best.policy.probs.log(), best.q.values
        policy = NetworkCategorical(tuple(lambda seen, run=run: log_g[run][at(seen)] for run in range(len(q))))
        values = tuple(lambda seen, run=run: q[run][at(seen)] for run in range(len(q)))
        q_follower = NetworkActionValues(values, PREFERENCES.beta)
        none = torch.zeros(len(q), dtype=torch.float64)
        return BestResponse(policy, q_follower, q_follower, residual=none, optimal=True)


def led_sea(terms: Terms) -> tuple[BilevelWrapper, BilevelWrapper]:
    """The environment, led, and its table."""
    sea = gym.make("deep-sea-treasure-v0", disable_env_checker=True)
    seen = gym.wrappers.TransformObservation(sea, one_hot, gym.spaces.Box(0.0, 1.0, (22,), np.float64))
    env = ConfigurableRewards(seen, terms.space, terms.r_follower, terms.r_leader, PREFERENCES, terms.components)
    table = Sea(terms)
    return BilevelWrapper(env, Known(table)), BilevelWrapper(TabularEnv(table))


WORLDS: dict[str, tuple[str, Callable, list[np.ndarray]]] = {
    "lake": (
        "FrozenLake, θ ∈ R³",
        lambda: (led_lake(), BilevelWrapper(TabularEnv(Lake()))),
        [np.full(3, 0.5), np.array([0.8, 0.2, 0.2])],
    ),
    "contract": (
        "treasure, contract, θ ∈ R²",
        lambda: led_sea(CONTRACT),
        [np.array([0.5, 0.5]), np.array([0.3, 0.7]), np.array([0.7, 0.9])],
    ),
    "prices": (
        "treasure, price list, θ ∈ R¹⁰",
        lambda: led_sea(PRICES),
        [np.full(10, 0.5), np.linspace(0.3, 0.7, 10), np.linspace(0.7, 0.3, 10)],
    ),
}


def measured(world: str, theta: np.ndarray, guiding: str, args: Args) -> dict[str, float]:
    """Cosine, bias and spread of training estimates, and the seconds that an outer iteration takes."""
    env, table = WORLDS[world][1]()
    how = {"optimizer": "sgd", "learning_rate": 1e-300, "max_grad_norm": float("inf"), "batch_size": args.batch_size}
    leader = BCHG(env, policy=Free(theta[None]), guiding=guiding, seed=0, **how).learn(WARM_UP)
    began = time.process_time()
    samples = training_estimates(leader, args.estimates).reshape(args.estimates, -1)
    seconds = (time.process_time() - began) / args.estimates
    truth, mean = exact.hypergradient(table, theta), samples.mean(0)
    size = float(np.linalg.norm(truth))
    return {
        "cosine": float(truth @ mean) / size / float(np.linalg.norm(mean)),
        "off": float(np.linalg.norm(mean - truth)) / size,
        "spread": float(np.linalg.norm(samples.std(0, ddof=1))) / size,
        "seconds": seconds,
    }


def cell(found: dict[str, float] | None) -> str:
    """One measurement in the table."""
    if found is None:
        return "|"
    return f"{found['cosine']:.3f} ({found['off']:.2f}, {found['spread']:.2f}) | {found['seconds']:.1f}"


def main(args: Args) -> None:
    torch.set_num_threads(1)
    kept = args.out.with_suffix(".json")
    done = json.loads(kept.read_text()) if kept.exists() else {}
    for world in args.worlds:
        for theta in WORLDS[world][2][: args.points]:
            for guiding in args.guidings:
                key = f"{world}|{theta.round(2).tolist()}|{guiding}"
                if key not in done:
                    done[key] = measured(world, theta, guiding, args)
                    print(key, done[key], flush=True)
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(done, indent=1) + "\n")
    lines = [
        f"BC-HG at a fixed θ with the exact follower of the table: {args.estimates} or more training estimates from",
        f"batches of {args.batch_size:,} steps, after {WARM_UP} to warm up (`python benchmarks/fitted_guiding.py`).",
        "Cosine of the mean to the exact hypergradient; in brackets ‖mean − exact‖ and the standard deviation of one",
        "estimate, both over ‖exact‖; CPU seconds of an outer iteration:",
        "",
        '| world | θ | `"sampled"` | CPU s | `"fitted"` | CPU s |',
        "|---|---|---|---|---|---|",
    ]
    for world, (title, _, points) in WORLDS.items():
        for theta in points:
            pair = [done.get(f"{world}|{theta.round(2).tolist()}|{guiding}") for guiding in ("sampled", "fitted")]
            if any(pair):
                short = ", ".join(f"{x:.1f}" for x in theta[:3]) + (", …" if len(theta) > 3 else "")
                lines.append(f"| {title} | {short} | " + " | ".join(map(cell, pair)) + " |")
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Args))
