"""Fines for a dam's operator: MO-Gymnasium's water reservoir, an agent that learns, BC-HG. Four minutes.

The operator is paid for water and power; the leader, who minds floods, fines it θ₁ for water above the dam and θ₂ for a
river that overflows below. High fines are unpopular: each costs the leader as much per step as it is high.

Needs: pip install "bilevel-envs[render,video]" && pip install --no-deps "mo-gymnasium==1.3.2"
       (without --no-deps its requirements would replace pygame-ce)
Run: python examples/real/water_reservoir.py [--iterations 18] [--seeds 0 1 2] [--guiding sampled]
       [--leaders bchg cmaes zeroth-order naive-pgd] [--out runs/reservoir]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import norm

from bilevel_envs import BilevelWrapper, ConfigurableMDP, ConfigurableRewards, Preferences, TabularEnv, TabularModel
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, CMAES, NaivePGD, ZerothOrder, exact, plots
from leaders.experiments.video import check_films, episode_frames, side_by_side, write_film

try:
    import mo_gymnasium  # noqa: F401  (registers water-reservoir-v0)
except ImportError:
    sys.exit('this example needs MO-Gymnasium: pip install --no-deps "mo-gymnasium==1.3.2"')

LEADERS = {
    "bchg": lambda wrapped, seed, guiding: BCHG(
        wrapped, seed=seed, batch_size=1_000, learning_rate=0.1, guiding=guiding
    ),
    "cmaes": lambda wrapped, seed, _: CMAES(wrapped, seed=seed, episodes=10, population=6),
    "zeroth-order": lambda wrapped, seed, _: ZerothOrder(wrapped, seed=seed, episodes=10, learning_rate=0.1),
    "naive-pgd": lambda wrapped, seed, _: NaivePGD(wrapped, seed=seed, batch_size=1_000, learning_rate=0.1),
}
SEARCHES = ("cmaes", "zeroth-order")  # whose operators learn at other fines from the first trial on
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=18, help="of 1,000 steps by the leader, 1,000 by the operator")
parser.add_argument(
    "--guiding", choices=("sampled", "fitted"), help='of BC-HG: "sampled" or "fitted" (the default here)'
)
parser.add_argument("--leaders", nargs="+", choices=tuple(LEADERS), default=["bchg"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--out", type=Path, default=Path("runs/reservoir"))
arguments = parser.parse_args()
if arguments.iterations < 1:
    parser.error("--iterations must be at least 1")
arguments.out.mkdir(parents=True, exist_ok=True)
check_films()
torch.set_num_threads(1)

SPACE = gym.spaces.Box(0.0, 4.0, (2,), np.float64)
FIRST = np.full(2, 4 / (1 + np.exp(2)))  # 0.477
PREFERENCES = Preferences(gamma_leader=0.95, gamma_follower=0.95, beta=1.0)
SHARES = np.linspace(0, 1, 11)[:, None]  # of what may be released
KNOTS = np.linspace(0, 180, 19)


def r_follower(theta, c):
    """Deficits of water and power, and fines for floods above and below; c = −(above, water, power, below)."""
    return c[..., 1] + 2 * c[..., 2] + theta[..., 0] * c[..., 0] + theta[..., 1] * c[..., 3]


def r_leader(theta, c):
    """Floods, some of the water deficit, and what the fines cost."""
    return 2 * c[..., 0] + c[..., 3] + 0.3 * c[..., 1] - theta.sum(-1)


# 1. The environment that somebody else wrote: eleven releases, the level as hat functions. It cuts after 100 steps.
def hats(level):
    return np.clip(1 - np.abs(level - KNOTS) / 10, 0, None)


made = {
    "nO": 4,
    "normalized_action": True,
    "render_mode": "rgb_array",
    "max_episode_steps": 100,
    "disable_env_checker": True,
}
dam = gym.make("water-reservoir-v0", **made)
dam = gym.wrappers.TransformAction(dam, lambda choice: SHARES[choice], gym.spaces.Discrete(len(SHARES)))
dam = gym.wrappers.TransformObservation(dam, hats, gym.spaces.Box(0.0, 1.0, (len(KNOTS),), np.float64))
env = ConfigurableRewards(dam, SPACE, r_follower, r_leader, PREFERENCES, default_theta=FIRST)


# 2. Its truth: the same world on a grid of levels, for an exact operator. The leader never sees it.
class Grid(ConfigurableMDP):
    """Levels in steps of 2; the inflow is Gaussian with mean 40 and deviation 10."""

    theta_space, default_theta, preferences = SPACE, FIRST, PREFERENCES
    levels = np.arange(0.0, 221.0, 2.0)

    def __init__(self):
        least = np.clip(self.levels - 100, 0, None)[:, None]
        self.release = SHARES[:, 0] * (self.levels[:, None] - least) + least
        edge = np.concatenate([[-np.inf], self.levels[1:] - 1, [np.inf]])
        p = np.diff(norm.cdf(edge, (self.levels[:, None] - self.release + 40)[..., None], 10))
        after, release = self.levels, self.release[..., None]
        above = (p * np.clip(after - 50, 0, None)).sum(-1)
        power = (p * np.clip(4.36 - 9.81e3 * after * release / 3.6e6, 0, None)).sum(-1)
        water, below = np.clip(50 - self.release, 0, None), np.clip(self.release - 30, 0, None)
        self.p = torch.from_numpy(p)[None]
        self.c = -torch.from_numpy(np.stack([above, water, power, below], -1))
        start = hats_of(dam.unwrapped.s_init, self.levels).mean(0)
        self.start = torch.from_numpy(start)[None]

    def model(self, theta):
        at = theta[:, None, None]
        return TabularModel(self.p, self.start, r_leader(at, self.c), r_follower(at, self.c))


def hats_of(level, grid):
    """How levels [N] share in the points of an even grid, [N, G]."""
    return np.clip(1 - np.abs(np.asarray(level, float)[:, None] - grid) / (grid[1] - grid[0]), 0, None)


grid = BilevelWrapper(TabularEnv(Grid()))
print(f"{dam.spec.id}: fines {FIRST.round(3)} are worth {exact.objective(grid, FIRST):.1f} to the leader")


def operator(seed):
    """An agent of SoftDQN that learns from its last 20,000 steps, paid at the present fines."""
    experience = {"buffer": "relabel", "buffer_size": 20_000}
    return SB3Follower(
        "SoftDQN", 1_000, first_steps=10_000, seed=seed, reward_scale=20.0, gradient_steps=2, **experience
    )


# 3. Each leader with an operator of its own, at as many environment steps of both. Values are those with an exact one.
first, paths, results, films = exact.objective(grid, FIRST), {}, {}, {}
budget = 2_000 * arguments.iterations + 9_000
if arguments.leaders[0] in SEARCHES:  # another operator for the film
    alone = BilevelWrapper(env, operator(arguments.seeds[0]))
    alone.best_response(FIRST)
    films["before"] = episode_frames(alone, FIRST, "before", steps=60)
for name in arguments.leaders:
    for seed in dict.fromkeys(arguments.seeds):
        began = time.process_time()
        wrapped = BilevelWrapper(env, operator(seed))
        leader = LEADERS[name](wrapped, seed, arguments.guiding)
        path, spent = [leader.theta], 0.0
        while spent < budget:
            leader.learn(1)
            path.append(leader.theta)
            if not films:  # its operator has learnt at the first fines alone
                films["before"] = episode_frames(wrapped, FIRST, "before", steps=60)
            spent = float(leader.history["env_steps"][-1, 0] + leader.history["follower_steps"][-1, 0])
            if len(path) % 5 == 1:
                value = exact.objective(grid, leader.theta)
                print(f"  after {spent:,.0f} steps: J_L = {value:.1f} at θ = {leader.theta.round(2)}", flush=True)
        if "after" not in films:
            films["after"] = episode_frames(wrapped, leader.theta, f"after, led by {name}", steps=60)
        value, seconds = exact.objective(grid, leader.theta), round(time.process_time() - began)
        paths[name, seed] = np.array(path)
        results[f"{name} {seed}"] = {
            "start": float(first),
            "value": float(value),
            "steps": int(spent),
            "seconds": seconds,
        }
        print(f"{name}, seed {seed}: J_L = {value:.1f}, {spent:,.0f} steps of both, {seconds} CPU s", flush=True)
(arguments.out / "reservoir.json").write_text(json.dumps(results, indent=1) + "\n")

# 4. A look at it: J_L with an exact operator over all fines, and what the operator releases before and after.
fines = np.linspace(0.02, 2.98, 38)
height = exact.objective(grid, np.stack(np.meshgrid(fines, fines), -1).reshape(-1, 2)).reshape(38, 38)
at = np.unravel_index(height.argmax(), height.shape)
print(f"best of a grid of fines: J_L = {height.max():.1f} at θ = ({fines[at[1]]:.2f}, {fines[at[0]]:.2f})")
COLOURS = {"bchg": "#ffffff", "cmaes": "#f0a030", "naive-pgd": "#e377c2", "zeroth-order": "#7fd4ff"}
figure = Figure(figsize=(10.4, 4.4), layout="constrained")
FigureCanvasAgg(figure)
left, right = figure.subplots(1, 2)
filled = left.contourf(fines, fines, height, np.arange(-470, -389, 5), cmap="cividis", extend="both")
figure.colorbar(filled, label="J_L with an exact operator")
for (name, seed), path in paths.items():
    label = name if seed == arguments.seeds[0] else None
    left.plot(*path.T, color=COLOURS[name], linewidth=1.2, label=label)
    left.plot(*path[-1], "o", color=COLOURS[name], markersize=5)
left.plot(
    fines[at[1]], fines[at[0]], "*", color="#d62728", markersize=12, label=f"best of the grid, {height.max():.1f}"
)
left.set(xlabel="θ₁, fine above the dam", ylabel="θ₂, fine below the dam")
left.legend(loc="upper right", fontsize=8, labelcolor="black", facecolor="#cccccc")
last = paths[arguments.leaders[0], arguments.seeds[0]][-1]
for theta, colour, label in ((FIRST, "#808080", "before"), (last, "#1f77b4", "after")):
    g = grid.best_response(theta).policy.probs[0].numpy()
    release = (g * grid.problem.release).sum(-1)
    right.plot(grid.problem.levels, release, color=colour, label=f"{label}, θ = ({theta[0]:.2f}, {theta[1]:.2f})")
right.axhline(30, color="#d62728", linewidth=0.8, linestyle=":", label="floods below from here on")
right.axvline(50, color="#d62728", linewidth=0.8, linestyle="--", label="floods above from here on")
right.set(xlabel="level", ylabel="mean release of an exact operator", xlim=(0, 160), ylim=(0, 150))
right.legend(fontsize=8)
plots.save(figure, arguments.out / "reservoir.png")
write_film(side_by_side(films["before"], films["after"]), arguments.out / "reservoir.mp4", fps=6)
print(f"wrote reservoir.png, .mp4 and .json to {arguments.out}; look at how much is released at which level")
