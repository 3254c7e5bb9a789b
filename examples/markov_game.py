"""Tutorial: a game of two players, from each of its chairs, and why the best leader is unpredictable. A minute.

Run: python examples/markov_game.py [--iterations 500] [--out runs/game]
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
from bilevel_envs.markov_games import toy_markov_game_v0
from leaders import BCHG, NaivePGD, exact, plots

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=500)
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--out", type=Path, default=Path("runs/game"))
arguments = parser.parse_args()
torch.set_num_threads(1)

# 1. Both chairs: PettingZoo. leader_0 moves first; follower_0 sees its action.
aec = toy_markov_game_v0.env(variant="R2")
aec.reset(seed=0)
for _ in range(4):
    agent = aec.agent_selection
    print(f"{agent} sees {aec.observe(agent)}")
    aec.step(1)  # the leader's 1, the follower's "a"
print("paid:", aec.rewards)

# 2. The follower's chair: a configurable MDP over (state, leader's action); θ is the leader's policy.
env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", variant="R2"))


def passing(p: float) -> np.ndarray:
    """The leader's policy that lets the follower pass at A with probability p."""
    theta = np.full((3, 2), 0.5)
    theta[1] = [p, 1 - p]
    return theta


for p in (0.3, 0.5, 0.7):
    goes, value = float(env.best_response(passing(p)).policy.probs[0, 0, 1]), exact.objective(env, passing(p))
    print(f"f(0|A) = {p}: the follower goes to A with probability {goes:.3f}; J_L = {value:.3f}")
direct, guiding = exact.hypergradient_parts(env, passing(0.45))
print(f"at 0.45: dJ/df(0|A) = {direct[1, 0]:.1f} (direct) + {guiding[1, 0]:.1f} (the follower's reaction)")

# 3. Learning. Who ignores the reaction sends the follower back too often, and it stops coming.
figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
for index, make in enumerate((BCHG, NaivePGD)):
    leader = make(env, runs=arguments.runs, seed=0).learn(arguments.iterations)
    value = leader.history["leader_value"]
    axes.plot(value.mean(1), color=f"C{index}", label=leader.name)
    axes.fill_between(np.arange(len(value)), value.min(1), value.max(1), color=f"C{index}", alpha=0.2, linewidth=0)
    print(f"{leader.name}: J_L = {value[-1].mean():.3f}, f(0|A) = {np.round(leader.theta[:, 1, 0], 3)}")
    if make is BCHG:
        arguments.out.mkdir(parents=True, exist_ok=True)
        leader.save(arguments.out / "leader.zip")
axes.axhline(env.best_known, color="black", linestyle=":", label=f"optimum {env.best_known:.2f}")
axes.set_xlabel("outer iterations of 450 steps")
axes.set_ylabel(r"leader's value $J_L(\theta)$")
axes.set_title("Toy Markov game R2: mean and range over runs", fontsize=11)
axes.legend(fontsize=8)
axes.grid(alpha=0.25)
plots.save(figure, arguments.out / "game.png")
print(f"wrote game.png and leader.zip to {arguments.out}; look at how Naive-PGD loses its visitor")
