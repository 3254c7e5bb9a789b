"""A contract with a treasure diver: MO-Gymnasium's deep-sea treasure, an agent that learns, BC-HG. Five minutes.

The diver keeps the share θ₁ of a treasure and bears the share 1 − θ₂ of the time it takes; the leader has the rest.

Needs: pip install --no-deps "mo-gymnasium==1.3.2"   (its other requirements would replace pygame-ce)
Run: python examples/real/deep_sea_treasure.py [--iterations 60] [--seeds 1] [--compare] [--out runs/deep_sea]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bilevel_envs import BilevelWrapper, ConfigurableMDP, ConfigurableRewards, Preferences, TabularEnv, TabularModel
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, CMAES, exact, plots

try:
    import mo_gymnasium  # noqa: F401  (registers deep-sea-treasure-v0)
except ImportError:
    sys.exit('this example needs MO-Gymnasium: pip install --no-deps "mo-gymnasium==1.3.2"')

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=60, help="of 1,000 steps by the leader and 1,000 by the diver")
parser.add_argument("--compare", action="store_true", help="CMA-ES, too, at as many steps")
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--out", type=Path, default=Path("runs/deep_sea"))
arguments = parser.parse_args()
torch.set_num_threads(1)

SPACE = gym.spaces.Box(0.0, 1.0, (2,), np.float64)
PREFERENCES = Preferences(gamma_leader=0.97, gamma_follower=0.97, beta=0.5)


def r_follower(theta, c):
    """The diver's share of the treasure, c₁, and of the time, c₂ = −1."""
    return theta[..., 0] * c[..., 0] + (1 - theta[..., 1]) * c[..., 1]


def r_leader(theta, c):
    """The rest."""
    return (1 - theta[..., 0]) * c[..., 0] + theta[..., 1] * c[..., 1]


# 1. The environment that somebody else wrote. Components are its vector reward; the diver sees row and column one-hot.
def one_hot(cell):
    return np.eye(11)[cell].ravel()


sea = gym.make("deep-sea-treasure-v0", disable_env_checker=True)
seen = gym.wrappers.TransformObservation(sea, one_hot, gym.spaces.Box(0.0, 1.0, (22,), np.float64))
env = ConfigurableRewards(seen, SPACE, r_follower, r_leader, PREFERENCES)


# 2. Its truth: the same world read off as a table, for an exact diver. The leader never sees it.
class Table(ConfigurableMDP):
    """Cell by cell; whoever has a treasure takes one more step, which pays nothing, entropy included."""

    theta_space, default_theta, preferences = SPACE, np.full(2, 0.5), PREFERENCES

    def __init__(self):
        inner = sea.unwrapped
        depths = inner.sea_map
        self.p = torch.zeros(1, 121, 4, 121, dtype=torch.float64)
        self.c = torch.zeros(121, 4, 2, dtype=torch.float64)
        self.over = torch.from_numpy((depths > 0).reshape(121, 1))
        for cell in range(121):
            for action in range(4):
                sea.reset(seed=0)
                inner.current_state = np.array(divmod(cell, 11), np.int32)
                reached, reward, *_ = inner.step(action)
                self.p[0, cell, action, int(reached[0]) * 11 + int(reached[1])] = 1.0
                self.c[cell, action] = torch.from_numpy(np.asarray(reward, float))
        self.start = torch.eye(121, dtype=torch.float64)[:1]
        self.on = (~self.over).double().expand(1, 121, 4).contiguous()

    def model(self, theta):
        at = theta[:, None, None]
        nothing = -PREFERENCES.beta * np.log(4)
        leader = torch.where(self.over, 0.0, r_leader(at, self.c))
        diver = torch.where(self.over, nothing, r_follower(at, self.c))
        return TabularModel(self.p, self.start, leader, diver, self.on)


table = BilevelWrapper(TabularEnv(Table()))
first = exact.objective(table, np.full(2, 0.5))
print(f"{sea.spec.id}: the contract (½, ½) is worth {first:.2f} to the leader")

# 3. BC-HG, and CMA-ES if asked for, each with a diver of its own, at as many environment steps.
leaders = {
    "BC-HG": lambda wrapped, seed: BCHG(wrapped, seed=seed, batch_size=1_000, learning_rate=0.1),
}
if arguments.compare:
    leaders["CMA-ES"] = lambda wrapped, seed: CMAES(wrapped, seed=seed, episodes=5, population=6)
paths, budget = {}, 2_000 * arguments.iterations
for name, make in leaders.items():
    for seed in range(arguments.seeds):
        began = time.perf_counter()
        diver = SB3Follower(
            "SoftDQN", 1_000, first_steps=5_000, seed=seed, learning_rate=2e-3, train_freq=4, gradient_steps=4
        )
        leader = make(BilevelWrapper(env, diver), seed)
        path, spent = [leader.theta], 0.0
        while spent < budget:
            leader.learn(1)
            path.append(leader.theta)
            spent = float(leader.history["env_steps"][-1, 0] + leader.history["follower_steps"][-1, 0])
        value = exact.objective(table, leader.theta)
        paths[name, seed] = np.array(path)
        print(
            f"{name}, seed {seed}: J_L = {value:.2f} at θ = {leader.theta.round(2)}, {spent:,.0f} steps, "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )

# 4. A look at it: J_L by the exact diver over all contracts, and the way of each leader.
grid = np.linspace(0.005, 0.995, 41)
contracts = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
height = exact.objective(table, contracts).reshape(41, 41)
figure = Figure(figsize=(6.4, 5.0), layout="constrained")
FigureCanvasAgg(figure)
axes = figure.subplots()
filled = axes.contourf(grid, grid, height, np.arange(-12, 5.5, 0.5), cmap="cividis", extend="both")
figure.colorbar(filled, label="J_L with an exact diver")
for (name, seed), path in paths.items():
    colour = {"BC-HG": "#ffffff", "CMA-ES": "#f0a030"}[name]
    axes.plot(*path.T, color=colour, linewidth=1.2, label=name if seed == 0 else None)
    axes.plot(*path[-1], "o", color=colour, markersize=5)
best = np.unravel_index(height.argmax(), height.shape)
axes.plot(
    grid[best[1]], grid[best[0]], "*", color="#d62728", markersize=12, label=f"best of the grid, {height.max():.2f}"
)
axes.set(
    xlabel="θ₁, the diver's share of the treasure",
    ylabel="θ₂, the leader's share of the time",
    xlim=(0, 1),
    ylim=(0, 1),
)
axes.legend(loc="lower left", fontsize=8, labelcolor="black", facecolor="#cccccc")
arguments.out.mkdir(parents=True, exist_ok=True)
plots.save(figure, arguments.out / "deep_sea.png")
print(f"wrote deep_sea.png to {arguments.out}")
