"""Tutorial: choose the insulation and the vents of a building, three ways, and see why the estimate matters. A minute.

Run: python examples/building_thermal_control.py [--iterations 250] [--out runs/building]
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
from leaders import BCHG, NaivePGD, exact, plots

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=250)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--batch", type=int, default=2_000)
parser.add_argument("--out", type=Path, default=Path("runs/building"))
arguments = parser.parse_args()
torch.set_num_threads(1)

# 1. The world. θ = (insulation of four zones, opening of four vents); the follower is the exact one, by Riccati.
env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))
half = env.problem.default_theta
print(f"θ = 1/2: J_L = {exact.objective(env, half):.4f}; best known {env.best_known:.4f}")

# 2. Two forces. Insulating and opening everything pays directly; how the controller reacts speaks against much of it.
direct, guiding = exact.hypergradient_parts(env, half)
print("direct term: ", np.round(direct, 1))
print("guiding term:", np.round(guiding, 1))

# 3. The same gradient from 100 episodes, by what the leader knows of the model. The spread is what decides.
for gradient in ("score", "pathwise", "analytic"):
    samples = BCHG(env, gradient=gradient, batch_size=10_000).gradient_samples(20, raw=True, episodes=100)
    print(f'gradient="{gradient}": standard deviation of one estimate, first vent: {samples.std(0, ddof=1)[4]:9.1f}')

# 4. Learning. Without the guiding term a leader ends near θ = 1; with it, at the optimum.
shared = {"runs": arguments.runs, "batch_size": arguments.batch, "seed": 0}
trained = {
    "BC-HG": BCHG(env, **shared),
    'BC-HG, gradient="pathwise"': BCHG(env, gradient="pathwise", **shared),
    'BC-HG, gradient="score"': BCHG(env, gradient="score", **shared),
    "Naive-PGD": NaivePGD(env, **shared),
}
figure = Figure(figsize=(7, 4.2), layout="constrained")
axes = figure.subplots()
for index, (name, leader) in enumerate(trained.items()):
    leader.learn(arguments.iterations)
    value = leader.history["leader_value"]
    axes.plot(value.mean(1), color=f"C{index}", label=name)
    axes.fill_between(np.arange(len(value)), value.min(1), value.max(1), color=f"C{index}", alpha=0.2, linewidth=0)
    print(f"{name}: J_L = {value[-1].mean():.3f}, θ of the first run {np.round(leader.theta[0], 2)}")
axes.axhline(env.best_known, color="black", linestyle=":", label=f"best known {env.best_known:.2f}")
axes.axhline(-196.2, color="grey", linestyle="--", label="where the published BC-HG ends (arXiv:2603.14867)")
axes.set_xlabel("outer iterations")
axes.set_ylabel(r"leader's value $J_L(\theta)$")
axes.set_title(f"Building thermal control, {arguments.batch:,} transitions per iteration", fontsize=11)
axes.legend(fontsize=8)
axes.grid(alpha=0.25)

arguments.out.mkdir(parents=True, exist_ok=True)
plots.save(figure, arguments.out / "building.png")
trained["BC-HG"].save(arguments.out / "leader.zip")
print(
    f"wrote building.png and leader.zip to {arguments.out}; look at where Naive-PGD, which ignores the reaction, ends"
)
