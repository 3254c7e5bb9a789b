"""Prices for the wear of a robot arm's joints: MuJoCo's Reacher-v5, an agent of SAC, BC-HG. Two to three minutes.

An operator is paid for moving the tip near a target. The owner, who wants the target met and the joints spared, charges
θ₁ for the shoulder's wear and θ₂ for the elbow's, the squares of their speeds. High prices are unpopular.

Needs: pip install "bilevel-envs[real,video]"   (where there is no screen, films need MUJOCO_GL=egl or osmesa)
Run: python examples/real/reacher.py [--iterations 10] [--leaders bchg cmaes zeroth-order naive-pgd] [--seeds 0 1 2]
       [--learning-rate 0.2] [--first 8000] [--judge 8000] [--no-film] [--out runs/reacher]
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

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Noise, Preferences
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, CMAES, NaivePGD, ZerothOrder, plots
from leaders.experiments.video import check_films, episode_frames, side_by_side, write_film

try:
    import mujoco  # noqa: F401  (Gymnasium's Reacher-v5 asks for it)
except ImportError:
    sys.exit('this example needs MuJoCo: pip install "bilevel-envs[real]"')

LEADERS = {
    "bchg": lambda w, seed: BCHG(w, seed=seed, batch_size=1_000, learning_rate=arguments.learning_rate),
    "cmaes": lambda w, seed: CMAES(w, seed=seed, episodes=20, population=6),
    "zeroth-order": lambda w, seed: ZerothOrder(w, seed=seed, episodes=20, learning_rate=arguments.learning_rate),
    "naive-pgd": lambda w, seed: NaivePGD(w, seed=seed, batch_size=1_000, learning_rate=arguments.learning_rate),
}
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=10, help="of 1,000 steps by the leader, 1,000 by the operator")
parser.add_argument("--learning-rate", type=float, default=0.2, help="of leaders that follow a gradient")
parser.add_argument("--first", type=int, default=8_000, help="steps of an operator before it is led")
parser.add_argument("--judge", type=int, default=8_000, help="steps of the operator by whom prices are judged")
parser.add_argument("--judges", type=int, default=1, help="such operators; agents differ from seed to seed")
parser.add_argument("--leaders", nargs="+", choices=tuple(LEADERS), default=["bchg"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--no-film", action="store_true", help="where there is no OpenGL to draw with")
parser.add_argument("--out", type=Path, default=Path("runs/reacher"))
arguments = parser.parse_args()
if min(arguments.iterations, arguments.first, arguments.judge, arguments.judges) < 1:
    parser.error("--iterations, --first, --judge and --judges must be at least 1")
arguments.out.mkdir(parents=True, exist_ok=True)
if not arguments.no_film:
    check_films()
torch.set_num_threads(1)

SPACE = gym.spaces.Box(0.0, 4.0, (2,), np.float64)
FIRST = np.full(2, 0.1)
PREFERENCES = Preferences(gamma_leader=0.95, gamma_follower=0.95, beta=0.05)


# 1. The environment that somebody else wrote, and what of a step is paid for.
def logged(observation, action, reward, after, info):
    """−distance of the tip from the target, in decimetres; −torque²; −speed² / 100 of the shoulder and of the elbow."""
    return [10 * info["reward_dist"], info["reward_ctrl"], *(-np.square(after[6:8]) / 100)]


def r_follower(theta, c):
    """Paid for nearness and charged for wear; a tenth of the torque is its own."""
    return c[..., 0] + 0.1 * c[..., 1] + (theta * c[..., 2:]).sum(-1)


def r_leader(theta, c):
    """Nearness and wear, the shoulder's twice, less what prices cost."""
    return c[..., 0] + 4 * c[..., 2] + 2 * c[..., 3] - 0.02 * theta.square().sum(-1)


reacher = gym.make("Reacher-v5", render_mode="rgb_array", width=320, height=320)
env = ConfigurableRewards(reacher, SPACE, r_follower, r_leader, PREFERENCES, logged, default_theta=FIRST)


# 2. What prices are worth: two hundred episodes, always the same targets, of operators that learnt at them alone.
def worth(theta):
    """The leader's returns, [judges, 200]; of the last one the components, [200, 50, 4], and where it acts."""
    returns = []
    for judge in range(arguments.judges):
        alone = BilevelWrapper(env, operator(1_000 + judge, arguments.judge))
        batch = alone.rollout(theta, alone.best_response(theta), Noise([99]), rows=200, horizon=50, whole_episodes=True)
        returns.append((batch.r_leader * PREFERENCES.gamma_leader**batch.step).sum(-1)[0].numpy())
    return np.array(returns), batch.components[0].numpy(), alone


def with_error(returns):
    """Their mean and its standard error: over operators, of a single one over its episodes."""
    values = returns.mean(1) if len(returns) > 1 else returns[0]
    return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def operator(seed, first_steps):
    """An agent of SAC that learns from its last 20,000 steps, paid at the present prices."""
    return SB3Follower(
        "SAC",
        1_000,
        first_steps=first_steps,
        seed=seed,
        buffer="relabel",
        buffer_size=20_000,
        learning_rate=2e-3,
        batch_size=128,
        train_freq=4,
        gradient_steps=2,
        policy_kwargs={"net_arch": [64, 64]},
    )


# 3. Each leader with an operator of its own, at as many environment steps of both.
paths, results, films, budget = {}, {}, {}, 2_000 * arguments.iterations + arguments.first - 1_000
start, before, alone = worth(FIRST)
if not arguments.no_film:
    films["before"] = episode_frames(alone, FIRST, "before", steps=50, seed=1)
print(f"Reacher-v5: prices {FIRST} are worth {with_error(start)} to the owner", flush=True)
for name in arguments.leaders:
    for seed in dict.fromkeys(arguments.seeds):
        began = time.process_time()
        wrapped = BilevelWrapper(env, operator(seed, arguments.first))
        leader = LEADERS[name](wrapped, seed)
        path, spent = [leader.theta], 0.0
        while spent < budget:
            leader.learn(1)
            path.append(leader.theta)
            spent = float(leader.history["env_steps"][-1, 0] + leader.history["follower_steps"][-1, 0])
            if len(path) % 5 == 1:
                print(f"  after {spent:,.0f} steps: θ = {leader.theta.round(2)}", flush=True)
        if "before" in films and "after" not in films:
            films["after"] = episode_frames(wrapped, leader.theta, f"after, led by {name}", steps=50, seed=1)
        seconds = round(time.process_time() - began)
        value, after, _ = worth(leader.theta)
        paths[name, seed] = np.array(path)
        results[f"{name} {seed}"] = {
            "start": float(start.mean()),
            "value": float(value.mean()),
            "theta": leader.theta.round(4).tolist(),
            "steps": int(spent),
            "seconds": seconds,
        }
        print(
            f"{name}, seed {seed}: J_L = {with_error(value)} at θ = {leader.theta.round(2)}, {spent:,.0f} steps of both"
        )
(arguments.out / "reacher.json").write_text(json.dumps(results, indent=1) + "\n")

# 4. A look at it: the way of the prices, and what an operator does by them.
figure = Figure(figsize=(10.4, 3.4), layout="constrained")
FigureCanvasAgg(figure)
way, distance, speed = figure.subplots(1, 3)
for number, ((name, seed), path) in enumerate(paths.items()):
    way.plot(path[:, 0], color=f"C{number}", label=f"{name}, seed {seed}: θ₁, shoulder")
    way.plot(path[:, 1], color=f"C{number}", linestyle="--", label="θ₂, elbow")
way.set(xlabel="outer iterations", ylabel="price", title="The prices")
way.legend(fontsize=8)
JOINTS = {2: "shoulder", 3: "elbow"}
for label, colour, steps in (("before", "#808080", before), ("after", "#1f77b4", after)):
    distance.plot(-10 * steps[..., 0].mean(0), color=colour, label=label)
    for joint, style in ((2, "-"), (3, "--")):
        speed.plot((-100 * steps[..., joint]).mean(0) ** 0.5, style, color=colour, label=f"{JOINTS[joint]}, {label}")
distance.set(xlabel="step", ylabel="centimetres", title="Distance from the target")
speed.set(xlabel="step", ylabel="radians per second", title="Joint speed, root mean square")
distance.legend(fontsize=8)
speed.legend(fontsize=8)
plots.save(figure, arguments.out / "reacher.png")
if films:
    write_film(side_by_side(films["before"], films["after"]), arguments.out / "reacher.mp4", fps=12)
kinds = ", ".join(path.name for path in sorted(arguments.out.glob("reacher.*")))
print(f"wrote {kinds} to {arguments.out}; look at how fast the joints turn before and after")
