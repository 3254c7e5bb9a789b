"""Cost of the hypergradient step against dim θ: θ from a network of a million parameters.

A hypergradient is one weighted backward pass, so its cost should be that of a plain forward and backward pass through
the network. Target: at most 1.5 times.

Run: python benchmarks/dimension.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import gymnasium as gym
import numpy as np
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.envs.four_rooms import CELLS
from leaders import BCHG

ROUNDS = 60


class PenaltyNetwork(torch.nn.Module):
    """Penalties from a network that sees each cell's coordinates; a million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cells", torch.as_tensor(CELLS / 6.0 - 1.0, dtype=torch.float32))
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2, 1000),
            torch.nn.Tanh(),
            torch.nn.Linear(1000, 1000),
            torch.nn.Tanh(),
            torch.nn.Linear(1000, 1),
        )

    def forward(self) -> torch.Tensor:
        logits = self.net(self.cells)[:, 0]
        return -0.2 * torch.cat([logits, logits.new_zeros(1)]).softmax(0)[:-1]


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = PenaltyNetwork()
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"))
    leader = BCHG(env, policy=network).learn(3)
    theta = leader._theta()
    best = env.best_response(theta.detach())
    batch = env.rollout(theta.detach(), best, leader.noise, rows=1, horizon=100)
    judges = leader.judges(leader.critic, leader.seen, batch, best, env.model(theta).detach(), leader.noise)

    def plain() -> None:
        network.zero_grad()
        network().sum().backward()

    def hypergradient() -> None:
        network.zero_grad()
        theta = leader._theta()
        total, _ = leader.surrogate(
            leader.sample(theta, env.model(theta), batch, best, judges, leader.noise, "continue")
        )
        (-total).sum().backward()

    pairs = [(timed(plain), timed(hypergradient)) for _ in range(ROUNDS)]
    ratio = [b / a for a, b in pairs[5:]]
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{parameters:,} parameters: plain pass {1e3 * np.median([a for a, _ in pairs]):.2f} ms")
    print(f"hypergradient step over plain pass: {np.median(ratio):.2f} (min {min(ratio):.2f}, max {max(ratio):.2f})")


if __name__ == "__main__":
    main()
