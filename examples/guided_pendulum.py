"""Tutorial: a game that nobody can solve: the wind leads a pendulum that is kept upright by SAC. A minute as it stands.

The leader is a network whose output is the wind; θ is its weights. It wants the pendulum out of one half. Nothing is
known of the world but log f_θ(a | s): trajectories come from `step`, Q_L and V_L from networks, and the follower's
values from SAC.
A real run takes an hour: --first-steps 30000 --steps 2000 --iterations 100.

Run: python examples/guided_pendulum.py [--first-steps 2000] [--steps 400] [--iterations 5] [--out runs/pendulum]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, NaivePGD, plots

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--first-steps", type=int, default=2_000)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--iterations", type=int, default=5)
parser.add_argument("--out", type=Path, default=Path("runs/pendulum"))
arguments = parser.parse_args()
torch.set_num_threads(1)

figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
for make in (BCHG, NaivePGD):
    follower = SB3Follower(
        "SAC",
        arguments.steps,
        first_steps=arguments.first_steps,
        envs=4,
        gradient_steps=2,
        learning_rate=1e-3,
        learning_starts=500,
        buffer="keep",
        buffer_size=50_000,
        policy_kwargs={"net_arch": [64, 64]},
    )
    env = BilevelWrapper(gym.make("BiLevel/GuidedPendulum-v0"), follower)
    leader = make(env, seed=0, batch_size=2_000, learning_rate=0.01).learn(arguments.iterations)
    history = leader.history
    axes.plot(np.arange(1, len(history) + 1), history["leader_return"][:, 0], marker=".", label=leader.name)
    print(f"{leader.name}: sampled return {history['leader_return'][:, 0].round(1)}")
    rise = history["follower_improvement"][:, 0].round(2)
    print(f"  the follower's mean reward rose by {rise} at the end of each training")
axes.set_xlabel("outer iteration")
axes.set_ylabel("leader's sampled return")
axes.set_title("Guided pendulum, with a SAC follower that goes on learning", fontsize=11)
axes.legend(fontsize=8)
axes.grid(alpha=0.25)
arguments.out.mkdir(parents=True, exist_ok=True)
plots.save(figure, arguments.out / "pendulum.png")
print(f"wrote {arguments.out / 'pendulum.png'}")
