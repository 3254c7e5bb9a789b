"""Tutorial: leading a follower that is observed only, in the four rooms. A minute and a half.

Nothing is asked of the follower: neither its policy nor its values. From states, actions and rewards the leader
estimates g by counting, V_F from β log g and the rewards, and its own Q_L; then BC-HG goes on as ever.

Run: python examples/observed_follower.py [--iterations 1500] [--out runs/observed]
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
from bilevel_envs.envs.four_rooms import STATE
from bilevel_envs.followers import ObservedFollower, SoftValueIteration
from bilevel_envs.parameterizations import Budget
from leaders import BCHG, exact, plots

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=1_500)
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--out", type=Path, default=Path("runs/observed"))
arguments = parser.parse_args()
torch.set_num_threads(1)

# 1. How good is an estimate? The budget lies before one corridor: the follower is torn and its reaction counts.
raw = np.zeros(105)
raw[STATE[3, 5]] = 5.5
for count in (1_000, 10_000, 100_000):
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"), ObservedFollower(observations=count))
    leader = BCHG(env, critic="exact", learning_rate=1e-12, policy=Budget(raw[None], -0.2)).learn(1)
    truth, (direct, _) = exact.hypergradient(env, leader.theta), exact.hypergradient_parts(env, leader.theta)
    found = leader.gradient_samples(10, episodes=500).mean(0)
    angle, naive = (float(x @ truth / np.linalg.norm(x) / np.linalg.norm(truth)) for x in (found, direct))
    print(
        f"{count:7d} transitions watched: cosine to the exact hypergradient {angle:.3f} (direct term alone {naive:.3f})"
    )

# 2. Leading. A thousand transitions are observed per outer iteration; nine tenths of earlier counts are kept.
figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
for name, follower in (
    ("g and V_F known", SoftValueIteration()),
    ("transitions only", ObservedFollower(observations=1_000, forget=0.1)),
):
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"), follower)
    # These settings leave the plateau of the four rooms; see the page on it.
    noisy = {"critic": "expected_sarsa", "cross_fit": False, "tail": "keep", "control_variate": "none"}
    how = {"learning_rate": 0.02, "exploration": "none", **noisy}
    value = BCHG(env, runs=arguments.runs, seed=0, **how).learn(arguments.iterations).history["leader_value"]
    axes.plot(value.mean(1), label=name)
    tail = value[-max(1, len(value) // 10) :].mean()
    print(f"{name}: J_L {tail:.3f} over the last tenth, mean of {arguments.runs} runs")
axes.set_xlabel("outer iterations")
axes.set_ylabel("leader's value")
axes.set_title("Four rooms, led by BC-HG", fontsize=11)
axes.legend(fontsize=8)
axes.grid(alpha=0.25)
arguments.out.mkdir(parents=True, exist_ok=True)
plots.save(figure, arguments.out / "observed.png")
print(f"wrote {arguments.out / 'observed.png'}; look at how little the leader loses by merely watching")
