"""Tutorial: lead a follower through the four rooms, and check every step on the way. Under a minute.

Run: python examples/four_rooms.py [--iterations 1000] [--out runs/tutorial]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import SoftValueIteration
from leaders import BCHG, exact, plots
from leaders.published import four_rooms

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=1000)
parser.add_argument("--runs", type=int, default=10)
parser.add_argument("--out", type=Path, default=Path("runs/tutorial"))
arguments = parser.parse_args()
torch.set_num_threads(1)

# 1. The world. To the follower it is an ordinary Gymnasium environment; θ is one penalty per cell, 0.2 in all at most.
env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", beta=5e-3), SoftValueIteration())
print(f"{env.spec.id}: θ {env.theta_space.shape}, {env.preferences}")

# 2. The follower. With no penalties at all it takes the short way through the top corridor and never sees the target.
nothing = np.zeros(104)
best = env.best_response(nothing)
print(f"no penalties: V_F(S) = {float(best.v(31)):.4f}, leader's value {exact.objective(env, nothing):.4f}")

# 3. The leader's gradient. Two parts: what θ does directly, and what it does by guiding the follower.
theta = env.unwrapped.theta
direct, guiding = exact.hypergradient_parts(env, theta)
print(f"at the default θ: J_L = {exact.objective(env, theta):.4f}, |direct| {np.linalg.norm(direct):.3f}, ", end="")
print(f"|guiding| {np.linalg.norm(guiding):.3f}")

# 4. The estimate. With an exact critic, BC-HG's samples average to the exact hypergradient.
clean = BCHG(env, critic="exact", seed=0)
samples, truth = clean.gradient_samples(200), exact.hypergradient(env, clean.theta)
z = (samples.mean(0) - truth) / (samples.std(0, ddof=1) / 200**0.5)
print(f"200 estimates against the truth: largest |z| over 104 coordinates {np.abs(z).max():.2f}")

# 5. Learning. From here the exact gradient leads onto a plateau around J_L = 0. In this environment leaders therefore
#    begin with restarts: the first iteration tries every cell by sampled returns, and BC-HG goes on from the best.
leader = BCHG(env, runs=arguments.runs, seed=0)
leader.learn(arguments.iterations, progress_bar=True)
value = leader.history["leader_value"]
print(f"leader's value: {value[0].mean():.3f} at first, {value[-1].mean():.3f} at the end (mean of the runs)")
print(f"best known: {env.best_known:.4f}")

# 6. A look at it.
arguments.out.mkdir(parents=True, exist_ok=True)
plots.save(
    plots.curve_figure(leader, "Four rooms, β = 5e-3", four_rooms("bchg", 5e-3, 100)), arguments.out / "curve.png"
)
figure = plots.incentives_figure(leader)
assert figure is not None
plots.save(figure, arguments.out / "incentives.png")
leader.save(arguments.out / "leader.zip")
print(f"wrote curve.png, incentives.png and leader.zip to {arguments.out}; look at which cells carry the penalties")
