"""Why larger batches hurt the published BC-HG: the decline with batch size, and each slip of the published code mended.

Four rooms as published (mismatched dynamics), `preset="paper"`, 10 seeds; the score is the mean of the leader's exact
value over the last tenth of the iterations. Results: docs/batch_size.md. Ten minutes on one core with
both batch sizes; with the 10,000 iterations of the paper five times that.

Run: python benchmarks/batch_size.py [--beta 1e-3] [--batch 1000] [--iterations 2000]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import torch
import tyro

from bilevel_envs import BilevelWrapper
from leaders import BCHG
from leaders.critics import Empirical, Sarsa
from leaders.estimators.continuation import continuation
from leaders.estimators.sample import Sample
from leaders.experiments.reproduce.four_rooms import settings_of
from leaders.functional.visits import number
from leaders.functional.weights import Weights, discount_weights

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

    beta: float = 1e-3
    batch: int = 1000
    iterations: int = 2_000
    runs: int = 10


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


def score(args: Args, mended: set[str]) -> torch.Tensor:
    """Mean value over the last tenth, by seed."""
    dynamics = "published" if "dynamics" in mended else "mismatched"
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", beta=args.beta, dynamics=dynamics))
    settings: dict[str, Any] = dict(settings_of("bchg", args.beta, args.batch))
    rate, start = settings["critic_learning_rate"], "zeros" if "critic start" in mended else "normal"
    critic: Any = "exact" if "exact critic" in mended else "sarsa"
    if "critic end" in mended:
        critic = Sarsa(env.preferences.gamma_leader, rate, start, cut_is_end=False)
    leader = Mended(
        env,
        preset="paper",
        runs=args.runs,
        batch_size=args.batch,
        critic=critic,
        critic_start=start,
        shared="shared" not in mended,
        rows=args.batch // 100 if "rows" in mended else None,
        **settings,
    )
    leader.mended = mended
    leader.learn(args.iterations)
    return torch.from_numpy(leader.history["leader_value"][-args.iterations // 10 :]).mean(0)


def main(args: Args) -> None:
    torch.set_num_threads(1)
    print(f"β = {args.beta:g}, batch {args.batch}, {settings_of('bchg', args.beta, args.batch)}")
    print("| mended | score | stuck below 0.1 |\n|---|---|---|")
    for name, mended in MENDED.items():
        by_seed = score(args, mended)
        error = by_seed.std() / len(by_seed) ** 0.5
        stuck = int((by_seed < 0.1).sum())
        print(f"| {name} | {by_seed.mean():.3f} ± {error:.3f} | {stuck} of {len(by_seed)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
