"""A pendulum's design: Gymnasium's Pendulum-v1 with mass, length and gravity in θ, an agent that learns, BC-HG.

The agent swings the pendulum up and pays for angle, speed and torque; the designer wants calm motion and little torque,
by a design near the middle. Nobody has written down how θ moves the pendulum: BC-HG learns it on the way.

Needs: pip install "bilevel-envs[render,video]"
Run: python examples/real/pendulum_physics.py [--iterations 20] [--seed 0] [--out runs/pendulum]   (some four minutes)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bilevel_envs import BilevelWrapper, ConfigurableDynamics, Noise, Preferences
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, plots
from leaders.experiments.video import check_films, episode_frames, side_by_side, write_film

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--iterations", type=int, default=20, help="of 2,600 steps by the leader and 1,500 by the agent")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("runs/pendulum"))
arguments = parser.parse_args()
if arguments.iterations < 1:
    parser.error("--iterations must be at least 1")
arguments.out.mkdir(parents=True, exist_ok=True)
check_films()
torch.set_num_threads(1)

TORQUES = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
NAMES = ("mass", "length", "gravity")


# 1. The environment that somebody else wrote, with five torques; what it logs; where θ goes.
def torque(action):
    return TORQUES[[action]]


def set_physics(env, theta):
    """θ ∈ [0, 1]³: mass ½ + θ₁, length ½ + θ₂, gravity 5 + 10 θ₃."""
    pendulum = env.unwrapped
    pendulum.m, pendulum.l, pendulum.g = 0.5 + theta[0], 0.5 + theta[1], 5 + 10 * theta[2]


def logged(observation, action, reward, after, info):
    """The environment's reward, which is the agent's; the speed, and the torque."""
    return [reward, observation[2], TORQUES[action]]


def r_leader(theta, c):
    """Calm motion and little torque, by a design near the middle."""
    return -0.2 * c[..., 1] ** 2 - 0.2 * c[..., 2] ** 2 - 2 * ((theta - 0.5) ** 2).sum(-1)


pendulum = gym.make("Pendulum-v1", render_mode="rgb_array", disable_env_checker=True)
env = ConfigurableDynamics(
    gym.wrappers.TransformAction(pendulum, torque, gym.spaces.Discrete(5)),
    gym.spaces.Box(0.0, 1.0, (3,), np.float64),
    set_physics,
    r_leader,
    Preferences(gamma_leader=0.95, gamma_follower=0.95, beta=0.5),
    components=logged,
)

# 2. An agent that learns, and a leader that learns how θ moves the pendulum.
agent = SB3Follower(
    "SoftDQN",
    1_500,
    first_steps=6_000,
    seed=arguments.seed,
    learning_rate=2e-3,
    train_freq=4,
    gradient_steps=2,
    batch_size=128,
    buffer="keep",
    buffer_size=8_000,
    target_update_interval=200,
)
wrapped = BilevelWrapper(env, agent)
leader = BCHG(wrapped, seed=arguments.seed, batch_size=2_000, learning_rate=0.2, dynamics="learnt")


def episodes(theta, learn):
    """Twenty whole ones, by the agent as it is, or once it has learnt."""
    best = wrapped.best_response(theta, learn=learn)
    return wrapped.rollout(theta, best, Noise([99]), rows=20, horizon=200, whole_episodes=True)


def said(theta, batch):
    """A design, and the leader's mean return with its standard error."""
    returns = (batch.r_leader * 0.95**batch.step).sum(-1).numpy().ravel()
    return f"θ = {theta.round(2)}: J_L ≈ {returns.mean():.1f} ± {returns.std() / len(returns) ** 0.5:.1f}"


began, path = time.perf_counter(), [leader.theta]
before = episodes(leader.theta, learn=True)
first_frames = episode_frames(wrapped, leader.theta, "before", steps=100, seed=1)
print(said(leader.theta, before), flush=True)
for _ in range(arguments.iterations):
    path.append(leader.learn(1).theta)
after = episodes(leader.theta, learn=False)
last_frames = episode_frames(wrapped, leader.theta, "after", steps=100, seed=1)
history = leader.history
steps = history["env_steps"][-1, 0] + agent.spent
print(f"{said(leader.theta, after)} after {steps:,.0f} steps, {time.perf_counter() - began:.0f} s")
print(f"learnt dynamics: R² = {history['dynamics_r2'][-1, 0]:.4f} on held-out episodes, in the worst entry")

# 3. A look at it: the way of θ, and speeds before and after.
figure = Figure(figsize=(9.0, 3.4), layout="constrained")
FigureCanvasAgg(figure)
way, *portraits = figure.subplots(1, 3)
for name, line in zip(NAMES, np.array(path).T, strict=True):
    way.plot(line, label=name)
way.set(xlabel="outer iterations", ylabel="θ", ylim=(0, 1), title="The design")
way.legend(fontsize=8)
for axes, batch, title in zip(portraits, (before, after), ("Before", "After"), strict=True):
    cosine, sine, speed = batch.state[0, :8].numpy().transpose(2, 0, 1)
    for angle, turning in zip(np.arctan2(sine, cosine), speed, strict=True):
        axes.plot(angle, turning, ".", markersize=2)
    axes.set(xlabel="angle (0 is up)", ylabel="speed", xlim=(-np.pi, np.pi), ylim=(-8.2, 8.2), title=title)
plots.save(figure, arguments.out / "pendulum.png")
write_film(side_by_side(first_frames, last_frames), arguments.out / "pendulum.mp4", fps=20)
print(f"wrote pendulum.png and pendulum.mp4 to {arguments.out}; look at the speeds before and after")
