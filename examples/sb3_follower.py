"""A building whose HVAC controller is a SAC agent that nobody can solve for. Two minutes as it stands.

The agent learns at θ = 0.5, is compared with the exact controller, and then goes on learning while BC-HG moves θ.
The study on the page of followers takes twenty minutes:
--first-steps 50000 --steps 2000 --iterations 100 --learning-rate 0.1

Run: python examples/sb3_follower.py [--first-steps 8000] [--steps 400] [--iterations 8] [--out runs/sac]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper, Noise
from bilevel_envs.followers import ObservedFollower, Riccati, SB3Follower
from leaders import BCHG, NaivePGD, exact, plots

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--first-steps", type=int, default=8_000, help="of the first response; 50000 for a good one")
parser.add_argument("--steps", type=int, default=400, help="of every later response; 2000 with the above")
parser.add_argument("--iterations", type=int, default=8, help="outer iterations; 100 with the above")
parser.add_argument("--learning-rate", type=float, default=0.4, help="large, for few iterations; 0.1 with the above")
parser.add_argument("--out", type=Path, default=Path("runs/sac"))
arguments = parser.parse_args()
torch.set_num_threads(1)


class TenDegrees(BaseFeaturesExtractor):
    """Observations in units of ten degrees: networks like numbers of order one."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, space.shape[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The extractor's output."""
        return x / 10


# 1. The follower. Rewards are of order −1,000: the agent is paid a 200th. β reaches SAC as its entropy coefficient, in
#    the agent's units. Its −1 and 1 stand for a power of −30 and 30, not for the 100 of the action space: with more it
#    learns to push zones against the walls at ±30, which the exact controller does not know. Temperatures settle within
#    twenty steps, so longer episodes would show it less of where it begins.
agent = SB3Follower(
    "SAC",
    arguments.steps,
    first_steps=arguments.first_steps,
    envs=4,
    gradient_steps=4,
    reward_scale=200.0,
    action_range=30.0,
    episode_steps=20,
    buffer="keep",
    learning_rate=lambda left: 1e-3 * left + 3e-5,  # runs through once per response
    learning_starts=500,
    buffer_size=100_000,
    tau=0.02,
    policy_kwargs={"net_arch": [64, 64], "activation_fn": torch.nn.SiLU, "features_extractor_class": TenDegrees},
)
env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), agent)
theta = np.full(8, 0.5)
best, truth = env.best_response(theta), Riccati().best_response(env.model(theta).detach(), env.preferences)
print(f"after {best.steps} steps the soft return is {float(best.optimality_gap[0]):.0f} short of the optimum")
batch = env.rollout(theta, truth, Noise([0]), rows=20, horizon=100)
for name, own, true in (
    ("log g", best.policy.log_prob(batch.state, batch.action), truth.policy.log_prob(batch.state, batch.action)),
    ("V_F", best.v(batch.state), truth.v(batch.state)),
    ("Q_F", best.q(batch.state, batch.action), truth.q(batch.state, batch.action)),
):
    print(
        f"  {name}: median error {float((own - true).abs().median()):.1f}; the truth varies by {float(true.std()):.1f}"
    )

# 2. Leading it, in few and large steps of θ. With agents BC-HG fits Q_L and ∇Q_F (critic="state_values",
#    guiding="fitted"): along trajectories what an agent does wrong would drown the covariance of the two. The agent is
#    watched, 5,000 transitions per iteration: a Gaussian around a straight line and a quadratic V_F leave out what its
#    networks do far from home. Trained this briefly it tells little of its reaction, but the direct term shows through
#    from the first. Whoever ignores the reaction gets on as fast in the beginning, and no further than −197.5.
figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
for name, make, follower in (
    ("BC-HG leads SAC", BCHG, ObservedFollower(agent, 5_000)),
    ("BC-HG leads the exact controller", BCHG, Riccati()),
    ("Naive-PGD leads the exact controller", NaivePGD, Riccati()),
):
    world = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"), follower)
    leader = make(world, seed=0, batch_size=2_000, learning_rate=arguments.learning_rate)
    thetas = [leader.theta]
    leader.learn(arguments.iterations, callback=lambda *_: thetas.append(leader.theta) is None)  # noqa: B023
    value = exact.objective(world.unwrapped, np.stack(thetas))
    axes.plot(value, label=name)
    spent = int(leader.history["follower_steps"][-1, 0])
    print(f"{name}: exact J_L from {value[0]:.1f} to {value[-1]:.1f}, {spent} steps of the follower")
axes.axhline(float(env.best_known), color="black", linestyle=":", linewidth=1, label="best known")
axes.set_xlabel("outer iterations")
axes.set_ylabel("leader's value under an optimal follower")
axes.set_title("Building thermal control, with a follower that learns and an exact one", fontsize=11)
axes.legend(fontsize=8)
axes.grid(alpha=0.25)
arguments.out.mkdir(parents=True, exist_ok=True)
plots.save(figure, arguments.out / "sac.png")
print(f"wrote {arguments.out / 'sac.png'}; look at how far the learning agent falls behind the exact one")
