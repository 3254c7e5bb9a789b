"""A game that nobody can solve: the wind keeps a pendulum out of one half, an agent keeps it upright. Two minutes.

The leader is a network whose output is the wind; θ is its 4,482 weights. Nothing is known of the world but
log f_θ(a | s): trajectories come from `step`, Q_L and V_L from networks, and the follower is an agent of SoftDQN that
goes on learning.

What decides whether this ends better than it starts:

- An agent that can swing up before it is led: 6,000 steps. One of 2,000 hangs down, costs the leader little, and every
  lesson that it takes later looks like a loss of the leader's.
- Batches of 50 episodes. First angles are anywhere, and returns of ten episodes differ by more than θ changes.
- An estimate that is not noise. Naive-PGD takes the direct term alone. BC-HG (--leader bchg) adds the agent's reaction,
  which is divided by β and collected along 200 steps; its advantage is centred under the agent's policy, or errors of
  Q-functions that are larger than β would make most of it.

Run: python examples/guided_pendulum.py [--leader bchg] [--iterations 8] [--out runs/pendulum]
A longer study: --first-steps 20000 --steps 2000 --iterations 60
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper, Noise
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, NaivePGD, plots

LEADERS = {"naive-pgd": NaivePGD, "bchg": BCHG}
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--leader", choices=LEADERS, default="naive-pgd")
parser.add_argument("--first-steps", type=int, default=6_000, help="of the agent, before it is led")
parser.add_argument("--steps", type=int, default=1_000, help="of the agent, whenever θ has moved")
parser.add_argument("--iterations", type=int, default=8)
parser.add_argument("--episodes", type=int, default=50, help="of a batch, 200 steps each")
parser.add_argument("--out", type=Path, default=Path("runs/pendulum"))
arguments = parser.parse_args()
torch.set_num_threads(1)

# 1. The game, with five torques, a wind as strong as the motor, and β of the order of what a torque changes at a step.
agent = SB3Follower(
    "SoftDQN",
    arguments.steps,
    first_steps=arguments.first_steps,
    learning_rate=2e-3,
    train_freq=4,
    gradient_steps=2,
    batch_size=128,
    buffer="keep",
    buffer_size=8_000,
    target_update_interval=200,
    reward_scale=10.0,
    learning_starts=500,
)
env = BilevelWrapper(gym.make("BiLevel/GuidedPendulum-v0", discrete=5, wind=3.0, beta=1.0), agent)
batch_size = 200 * arguments.episodes
leader = LEADERS[arguments.leader](env, seed=0, batch_size=batch_size, learning_rate=0.003)


def episodes(name, theta, learn=False):
    """Fifty episodes from the same first states, by the agent as it is, or once it has learnt at θ."""
    best = env.best_response(theta, learn=learn)
    batch = env.rollout(theta, best, Noise([99]), rows=50, horizon=200, whole_episodes=True)
    returns = (batch.r_leader * 0.99**batch.step).sum(-1).numpy().ravel()
    upright = float((batch.state[0, :, -60:, 0] > 0.9).double().mean())
    error = returns.std(ddof=1) / len(returns) ** 0.5
    print(
        f"{name}: J_L ≈ {returns.mean():.2f} ± {error:.2f}, upright in {upright:.0%} of the last 60 steps", flush=True
    )
    return batch, returns.mean()


# 2. Before, leading, after; and the first wind once more, under an agent that has gone on learning as long.
first = leader.theta
before = episodes("first wind", first, learn=True)
for _ in range(arguments.iterations):
    leader.learn(1)
    print(f"  iteration {len(leader.history)}: sampled return {leader.history['leader_return'][-1, 0]:.2f}", flush=True)
after = episodes("led wind", leader.theta)
env.best_response(first, learn=True)
episodes("first wind, the agent having learnt as long", first, learn=True)

# 3. A look at it: the wind over angle and speed, and twenty episodes.
angle, speed = np.meshgrid(np.linspace(-np.pi, np.pi, 121), np.linspace(-8, 8, 81))
seen = np.stack([np.cos(angle), np.sin(angle), speed], -1).reshape(1, -1, 3)
figure = Figure(figsize=(10.0, 4.2), layout="constrained")
FigureCanvasAgg(figure)
panels = figure.subplots(1, 2, sharey=True)
for axes, title, theta, (batch, value) in zip(
    panels, ("first wind", "led wind"), (first, leader.theta), (before, after), strict=True
):
    wind = env.problem.network.sample(theta[None], seen, np.zeros((1, seen.shape[1], 1))).reshape(angle.shape)
    image = axes.pcolormesh(angle, speed, wind, cmap="RdBu_r", vmin=-1, vmax=1, shading="gouraud")
    cosine, sine, turning = batch.state[0, :20, :, :3].numpy().transpose(2, 0, 1)
    axes.plot(np.arctan2(sine, cosine).ravel(), turning.ravel(), ".", color="black", markersize=1)
    axes.axvspan(0, np.pi, fill=False, hatch="/", edgecolor="0.4", linewidth=0)
    axes.set(xlabel="angle (0 is up; hatched: charged)", title=f"{title}: J_L ≈ {value:.1f}", ylim=(-8, 8))
panels[0].set_ylabel("speed")
figure.colorbar(image, ax=panels, label="wind a (positive: towards larger angles)")
arguments.out.mkdir(parents=True, exist_ok=True)
plots.save(figure, arguments.out / "pendulum.png")
print(f"wrote {arguments.out / 'pendulum.png'}; look at the hatched half, which the pendulum passes less often")
