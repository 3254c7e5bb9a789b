"""A treasure diver and whoever pays: MO-Gymnasium's deep-sea treasure, an agent that learns, BC-HG. Four minutes.

Contract, θ ∈ [0, 1]²: the diver keeps the share θ₁ of a treasure and bears the share 1 − θ₂ of the time it takes.
Price list, θ ∈ [0, 1]^10: the share of each of the ten treasures that the diver keeps; all of the time is the diver's.
The leader has the rest.

Needs: pip install "bilevel-envs[render,video]" && pip install --no-deps "mo-gymnasium==1.3.2"
       (without --no-deps its requirements would replace pygame-ce)
Run: python examples/real/deep_sea_treasure.py [--problem prices] [--leaders bchg cmaes naive-pgd zeroth-order]
       [--seeds 0 1 2] [--iterations 30] [--out runs/deep_sea]
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

from bilevel_envs import BilevelWrapper, ConfigurableMDP, ConfigurableRewards, Preferences, TabularEnv, TabularModel
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, CMAES, NaivePGD, ZerothOrder, exact, plots
from leaders.experiments.video import check_films, episode_frames, side_by_side, write_film

try:
    import mo_gymnasium  # noqa: F401  (registers deep-sea-treasure-v0)
except ImportError:
    sys.exit('this example needs MO-Gymnasium: pip install --no-deps "mo-gymnasium==1.3.2"')

LEADERS = {
    "bchg": lambda wrapped, seed: BCHG(wrapped, seed=seed, batch_size=2_000, learning_rate=0.1),
    "naive-pgd": lambda wrapped, seed: NaivePGD(wrapped, seed=seed, batch_size=2_000, learning_rate=0.1),
    "cmaes": lambda wrapped, seed: CMAES(wrapped, seed=seed, episodes=10, population=6),
    "zeroth-order": lambda wrapped, seed: ZerothOrder(wrapped, seed=seed, episodes=10, learning_rate=0.1),
}
SEARCHES = ("cmaes", "zeroth-order")  # whose divers learn at other θ from the first trial on
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--problem", choices=("contract", "prices"), default="contract")
parser.add_argument("--leaders", nargs="+", choices=tuple(LEADERS), default=["bchg"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--iterations", type=int, default=30, help="of 2,000 steps by the leader and 2,000 by the diver")
parser.add_argument("--out", type=Path, default=Path("runs/deep_sea"))
arguments = parser.parse_args()
if arguments.iterations < 1:
    parser.error("--iterations must be at least 1")
arguments.out.mkdir(parents=True, exist_ok=True)
check_films()
torch.set_num_threads(1)

PREFERENCES = Preferences(gamma_leader=0.97, gamma_follower=0.97, beta=0.5)
TREASURES = (0.7, 8.2, 11.5, 14.0, 15.1, 16.1, 19.6, 20.3, 22.4, 23.7)


def which_treasure(observation, action, reward, after, info):
    """The value of the treasure that was found, at its place among ten, and −1 for the step."""
    return [*(value * (abs(reward[0] - value) < 0.01) for value in TREASURES), reward[1]]


if arguments.problem == "contract":  # components: the environment's vector reward, treasure and −1
    SIZE, COMPONENTS = 2, None

    def r_follower(theta, c):
        return theta[..., 0] * c[..., 0] + (1 - theta[..., 1]) * c[..., 1]

    def r_leader(theta, c):
        return (1 - theta[..., 0]) * c[..., 0] + theta[..., 1] * c[..., 1]

else:
    SIZE, COMPONENTS = 10, which_treasure

    def r_follower(theta, c):
        return (theta * c[..., :-1]).sum(-1) + c[..., -1]

    def r_leader(theta, c):
        return ((1 - theta) * c[..., :-1]).sum(-1)


SPACE = gym.spaces.Box(0.0, 1.0, (SIZE,), np.float64)


# 1. The environment that somebody else wrote; the diver sees row and column one-hot.
def one_hot(cell):
    return np.eye(11)[cell].ravel()


sea = gym.make("deep-sea-treasure-v0", render_mode="rgb_array", disable_env_checker=True)
seen = gym.wrappers.TransformObservation(sea, one_hot, gym.spaces.Box(0.0, 1.0, (22,), np.float64))
env = ConfigurableRewards(seen, SPACE, r_follower, r_leader, PREFERENCES, COMPONENTS)


# 2. Its truth: the same world read off as a table, for an exact diver. The leader never sees it.
class Table(ConfigurableMDP):
    """Cell by cell; whoever has a treasure takes one more step, which pays nothing, entropy included."""

    theta_space, default_theta, preferences = SPACE, np.full(SIZE, 0.5), PREFERENCES

    def __init__(self):
        inner = sea.unwrapped
        depths = inner.sea_map
        self.p = torch.zeros(1, 121, 4, 121, dtype=torch.float64)
        logged = [[None] * 4 for _ in range(121)]
        self.over = torch.from_numpy((depths > 0).reshape(121, 1))
        for cell in range(121):
            for action in range(4):
                sea.reset(seed=0)
                inner.current_state = np.array(divmod(cell, 11), np.int32)
                reached, reward, *_ = inner.step(action)
                self.p[0, cell, action, int(reached[0]) * 11 + int(reached[1])] = 1.0
                logged[cell][action] = (
                    reward if COMPONENTS is None else which_treasure(None, action, reward, None, None)
                )
        self.c = torch.tensor(np.array(logged, float))
        self.start = torch.eye(121, dtype=torch.float64)[:1]
        self.on = (~self.over).double().expand(1, 121, 4).contiguous()

    def model(self, theta):
        at = theta[:, None, None]
        nothing = -PREFERENCES.beta * np.log(4)
        leader = torch.where(self.over, 0.0, r_leader(at, self.c))
        diver = torch.where(self.over, nothing, r_follower(at, self.c))
        return TabularModel(self.p, self.start, leader, diver, self.on)


FIRST = np.full(SIZE, 0.5)
table = BilevelWrapper(TabularEnv(Table()))
first = exact.objective(table, FIRST)
print(f"{sea.spec.id}: θ = ½ is worth {first:.2f} to the leader")


def diver(seed):
    """An agent of SoftDQN that learns from its last 20,000 steps, paid at the present θ."""
    experience = {"buffer": "relabel", "buffer_size": 20_000}
    return SB3Follower("SoftDQN", 2_000, first_steps=5_000, seed=seed, learning_rate=2e-3, **experience)


# 3. Each leader with a diver of its own, at as many environment steps of both. Values are those with an exact diver.
paths, results, films, budget = {}, {}, {}, 4_000 * arguments.iterations
if arguments.leaders[0] in SEARCHES:  # another diver for the film
    alone = BilevelWrapper(env, diver(arguments.seeds[0]))
    alone.best_response(FIRST)
    films["before"] = episode_frames(alone, FIRST, "before", steps=40)
for name in arguments.leaders:
    for seed in dict.fromkeys(arguments.seeds):
        began = time.process_time()
        wrapped = BilevelWrapper(env, diver(seed))
        leader = LEADERS[name](wrapped, seed)
        path, spent = [leader.theta], 0.0
        while spent < budget:
            leader.learn(1)
            path.append(leader.theta)
            if not films:  # its diver has learnt at the first θ alone
                films["before"] = episode_frames(wrapped, FIRST, "before", steps=40)
            if len(path) % 10 == 1:
                print(f"  after {len(path) - 1}: J_L = {exact.objective(table, leader.theta):.2f}", flush=True)
            spent = float(leader.history["env_steps"][-1, 0] + leader.history["follower_steps"][-1, 0])
        if "after" not in films:
            films["after"] = episode_frames(wrapped, leader.theta, f"after, led by {name}", steps=40)
        value = exact.objective(table, leader.theta)
        paths[name, seed] = np.array(path)
        results[f"{name} {seed}"] = {
            "start": float(first),
            "value": float(value),
            "steps": int(spent),
            "seconds": round(time.process_time() - began),
        }
        print(
            f"{name}, seed {seed}: J_L = {value:.2f} at θ = {leader.theta.round(2)}, {spent:,.0f} steps, "
            f"{results[f'{name} {seed}']['seconds']} CPU s",
            flush=True,
        )
(arguments.out / f"{arguments.problem}.json").write_text(json.dumps(results, indent=1) + "\n")

# 4. A look at it: J_L by the exact diver, over all contracts or along the way, and where each leader went.
COLOURS = {"bchg": "#ffffff", "cmaes": "#f0a030", "naive-pgd": "#e377c2", "zeroth-order": "#7fd4ff"}
figure = Figure(figsize=(6.4, 5.0), layout="constrained")
FigureCanvasAgg(figure)
axes = figure.subplots()
if arguments.problem == "contract":
    grid = np.linspace(0.005, 0.995, 41)
    contracts = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    height = exact.objective(table, contracts).reshape(41, 41)
    filled = axes.contourf(grid, grid, height, np.arange(-12, 5.5, 0.5), cmap="cividis", extend="both")
    figure.colorbar(filled, label="J_L with an exact diver")
    for (name, seed), path in paths.items():
        label = name if seed == arguments.seeds[0] else None
        axes.plot(*path.T, color=COLOURS[name], linewidth=1.2, label=label)
        axes.plot(*path[-1], "o", color=COLOURS[name], markersize=5)
    best = np.unravel_index(height.argmax(), height.shape)
    found = f"best of the grid, {height.max():.2f}"
    axes.plot(grid[best[1]], grid[best[0]], "*", color="#d62728", markersize=12, label=found)
    axes.set(xlabel="θ₁, the diver's share of the treasure", ylabel="θ₂, the leader's share of the time")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="lower left", fontsize=8, labelcolor="black", facecolor="#cccccc")
else:
    places = np.arange(SIZE)
    axes.bar(places, np.full(SIZE, 0.5), color="#d9d9d9", label="before")
    for number, ((name, seed), path) in enumerate(paths.items()):
        value = exact.objective(table, path[-1])
        axes.plot(
            places, path[-1], "o-", linewidth=0.8, label=f"{name}, seed {seed}: J_L = {value:.2f}", color=f"C{number}"
        )
    axes.set(xlabel="treasure, by its value", ylabel="share that the diver keeps", ylim=(0, 1))
    axes.set_xticks(places, TREASURES)
    axes.legend(fontsize=8)
plots.save(figure, arguments.out / f"{arguments.problem}.png")
look = (
    "where the leaders end on the landscape" if arguments.problem == "contract" else "which treasures pay the diver now"
)
write_film(side_by_side(films["before"], films["after"]), arguments.out / f"{arguments.problem}.mp4", fps=4)
kinds = ", ".join(f"{arguments.problem}.{kind}" for kind in ("png", "mp4", "json"))
print(f"wrote {kinds} to {arguments.out}; look at {look}")
