"""Lead through contexts: one network places penalties for any start and goal in the four rooms. Two minutes.

Trained on four fifths of the 10,506 pairs, looked at on 200 of the others, beside the best single θ for all pairs.

Run: python examples/contexts.py [--runs 2] [--iterations 600] [--out runs/contexts]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper
from leaders import BCHG, ExactGradient, exact, plots

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--runs", type=int, default=2, help="seeds 0, 1, ...")
parser.add_argument("--iterations", type=int, default=600)
parser.add_argument("--unseen", type=int, default=200, help="pairs to evaluate on")
parser.add_argument("--out", type=Path, default=Path("runs/contexts"))
arguments = parser.parse_args()
torch.set_num_threads(1)

# 1. The world. A context is a pair (start, goal); a follower of β = 0.02 walks, the leader wants it to pass by T.
env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", pairs=True, beta=0.02))
count = env.problem.contexts.count
order = np.random.default_rng(0).permutation(count)
unseen, training = order[: arguments.unseen], order[count // 5 :]
print(f"{count:,} pairs: {len(training):,} to train on, {len(unseen)} of the others to look at")


def values(leader) -> np.ndarray:
    """J_L on each unseen pair, [unseen, R]."""
    theta = leader.theta_in(unseen)  # [unseen, R, 104]
    with env.in_context(unseen):
        return np.stack([exact.objective(env, theta[:, run]) for run in range(arguments.runs)], -1)


with env.in_context(unseen):
    nothing = exact.objective(env, np.zeros((len(unseen), *env.theta_space.shape))).mean()
print(f"no penalties: J_L = {nothing:.3f} on average over the unseen pairs")

# 2. Three leaders; each outer iteration draws a pair for each run. θ(ξ) = −0.2 · softmax(raw + CNN(picture of ξ)).
shared = {"contexts": training, "runs": arguments.runs, "seed": 0, "evaluate_every": 10**9}
leaders = {
    "exact gradient, one θ for all pairs": ExactGradient(env, policy="budget", learning_rate=0.05, **shared),
    "exact gradient, convolutional network": ExactGradient(env, policy="cnn", learning_rate=0.01, **shared),
    "BC-HG from trajectories, the same network": BCHG(
        env, policy="cnn", learning_rate=0.003, batch_size=4000, **shared
    ),
}
every = max(arguments.iterations // 16, 1)
curves, iterations = {}, [0]
for name, leader in leaders.items():
    began, curve = time.perf_counter(), [values(leader).mean(0)]
    while leader.progress.iterations < arguments.iterations:
        leader.learn(min(every, arguments.iterations - leader.progress.iterations))
        curve.append(values(leader).mean(0))
        iterations.extend([leader.progress.iterations] * (leader.progress.iterations > iterations[-1]))
    curves[name] = np.array(curve)  # [points, R]
    last = ", ".join(f"{value:.3f}" for value in curves[name][-1])
    print(f"{name}: {last} after {arguments.iterations} iterations, {time.perf_counter() - began:.0f} s")

# 3. Does the network beat the best single θ where it was never trained?
single, *networks = leaders
best = curves[single].max()
for name in networks:
    ahead = (curves[name][-1] > best).sum()
    print(f"{name}: {ahead} of {arguments.runs} seeds above the best single θ, {best:.3f}")

# 4. A look at it: curves, and the penalties that the network of seed 0 places for three unseen pairs.
figure = Figure(figsize=(11, 4.2), layout="constrained")
FigureCanvasAgg(figure)
grid = figure.add_gridspec(1, 5, width_ratios=(2.2, 0.02, 1, 1, 1))
axes = figure.add_subplot(grid[0])
for (name, curve), colour in zip(curves.items(), plots.COLOURS, strict=False):
    mean = curve.mean(1)
    axes.plot(iterations, mean, color=colour, label=name)
    if arguments.runs > 1:
        half = stats.sem(curve, axis=1) * stats.t.ppf(0.975, arguments.runs - 1)
        axes.fill_between(iterations, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
axes.axhline(nothing, color="grey", linestyle=":", label="no penalties")
axes.set(xlabel="outer iterations, one pair each", ylabel="J_L on unseen pairs, mean of the seeds")
axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.35), frameon=False, fontsize=8)
axes.spines[["top", "right"]].set_visible(False)
shown = leaders[networks[0]]
gains = values(shown)[:, 0] - values(leaders[single])[:, 0]
for column, index in enumerate(np.argsort(-gains)[[0, len(gains) // 10, len(gains) // 4]], 2):
    context = int(unseen[index])
    theta = shown.theta_in([context])[0, 0]
    panel = figure.add_subplot(grid[column])
    panel.imshow(env.problem.draw(None, theta, context))
    with env.in_context(context):
        panel.set_title(f"J_L = {exact.objective(env, theta):.2f}\n(one θ: {values(leaders[single])[index, 0]:.2f})")
    panel.axis("off")
arguments.out.mkdir(parents=True, exist_ok=True)
plots.save(figure, arguments.out / "contexts.png")
data = {"iterations": iterations, "no penalties": nothing, **{name: curve.tolist() for name, curve in curves.items()}}
(arguments.out / "contexts.json").write_text(json.dumps(data, indent=1) + "\n")
print(f"wrote contexts.png, contexts.json to {arguments.out}; look at the penalties for three pairs never trained on")
