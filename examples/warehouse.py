"""Lead robots around the people in a warehouse by speed limits, on the small floor or a large one. Two minutes.

Run: python examples/warehouse.py [--iterations 8] [--out runs/warehouse]
     python examples/warehouse.py --rows 77 --columns 97 [--iterations 100]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import SoftValueIteration
from leaders import BCHG, MBHG, ExactGradient, exact, plots
from leaders.experiments.video import follower_film

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=None, help="8 of MBHG, or 100 on a large floor")
parser.add_argument("--rows", type=int, default=5)
parser.add_argument("--columns", type=int, default=7)
parser.add_argument("--out", type=Path, default=Path("runs/warehouse"))
arguments = parser.parse_args()
torch.set_num_threads(1)

# 1. The world. θ is one number per cell: a robot leaves cell c with probability 0.2 + 0.8 sigmoid(θ_c).
floor = {"rows": arguments.rows, "columns": arguments.columns}
env = BilevelWrapper(gym.make("BiLevel/Warehouse-v0", **floor), SoftValueIteration())
warehouse, nothing = env.problem, env.unwrapped.theta
print(f"{env.spec.id}: {env.unwrapped.states:,} states, θ {env.theta_space.shape}, {env.preferences}")
print(f"no limits: J_L = {exact.objective(env, nothing):.4f}")
large = (arguments.rows, arguments.columns) != (5, 7)

# 2. Two settings by hand. Fast everywhere is better than nothing; slow among the people is better still.
by_hand = {"3 everywhere": 3.0, "−3 in the zone, 3 elsewhere": -3.0}
for name, in_zone in by_hand.items():
    value = exact.objective(env, np.where(warehouse.plan.zone, in_zone, 3.0))
    print(f"{name}: J_L = {value:.4f}")

# 3. The gradient at θ = 0 says the opposite for the middle of the zone: robots that go through had better be quick.
zone = exact.hypergradient(env, nothing)[warehouse.plan.zone]
print(f"exact hypergradient at θ = 0: from {zone.min():+.4f} to {zone.max():+.4f} in the zone")

# 4. Leaders, all from θ ≈ 0. On a large floor the exact gradient stands in for MBHG, which counts visits of each state.
if large:
    iterations = arguments.iterations or 100
    leaders = {
        "exact gradient": (ExactGradient(env, seed=0, learning_rate=0.1, max_grad_norm=np.inf), iterations),
        "BC-HG": (BCHG(env, seed=0, exploration="none", batch_size=20_000), iterations),
    }
else:
    iterations = arguments.iterations or 8
    leaders = {
        "MBHG": (MBHG(env, seed=0), iterations),
        "BC-HG": (BCHG(env, seed=0), 40 * iterations),
    }
values = {}
for name, (leader, count) in leaders.items():
    before, began = exact.objective(env, leader.theta), time.perf_counter()
    leader.learn(count)
    values[name] = exact.objective(env, leader.theta)
    seconds, steps = time.perf_counter() - began, leader.history["env_steps"][-1].mean()
    print(f"{name}: J_L from {before:.4f} to {values[name]:.4f} in {count} iterations", end=", ")
    print(f"{steps:,.0f} steps, {seconds:.0f} s")
if env.best_known is not None:
    print(f"best known: {env.best_known:.4f}")

# 5. A look at it: where robots go before and after, and on the small floor a film of one.
best = max(values, key=values.__getitem__)
leader, _ = leaders[best]
arguments.out.mkdir(parents=True, exist_ok=True)
figure = plots.visits_figure(env, nothing, leader.theta, f"Speed limits by {best}, and where robots go")
plots.save(figure, arguments.out / "warehouse.png")
written = ["warehouse.png"]
if not large:
    try:
        follower_film(env, nothing, leader.theta, arguments.out / "warehouse.mp4", steps=80)
        written.append("warehouse.mp4")
    except ImportError as error:
        print(error)
print(f"wrote {', '.join(written)} to {arguments.out}; look at how robots go around the people")
