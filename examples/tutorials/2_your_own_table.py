# %% [markdown]
# # 2. Your own table
#
# Hikers walk across an island, from the landing stage L to the lighthouse H. The short way leads through a meadow where
# birds nest. A warden may let paths grow over: θ ∈ [0, 1] for each of 200 places, 0 by default. Hikers are the
# follower, the warden is the leader.
#
# A world of countable states needs one method, `model(θ)`: a table of moves, a start, and both rewards,
#
# $$ r_F(s, b) = -0.05 - 0.3\, \theta_s, \qquad r_L(s, b) = -[s \in \text{meadow}] - 0.3\, \theta_s . $$
#
# Hikers are paid 1 when they arrive, and then the episode ends. Hikers mind undergrowth, and complain to the warden
# about it.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch

from bilevel_envs import BilevelWrapper, ConfigurableMDP, Noise, Preferences, TabularEnv, TabularModel
from bilevel_envs.parameterizations import Box
from bilevel_envs.testing import check_bilevel_env
from leaders import BCHG, ExactGradient, NaivePGD, exact

torch.set_num_threads(1)

# %% [markdown]
# ## The table
#
# θ comes with a leading axis of runs, `[R, 200]`, and the rewards must be differentiable in it: torch operations, no
# `.numpy()`. What does not depend on θ is made once. Places are numbered row by row; one step in ten goes astray.

# %%
ROWS, COLUMNS, SLIP = 10, 20, 0.1
PLACES = ROWS * COLUMNS
MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # up, right, down, left
STAGE, LIGHTHOUSE = 5 * COLUMNS, 5 * COLUMNS + 19
row, column = np.divmod(np.arange(PLACES), COLUMNS)
MEADOW = (abs(row - 5) <= 2) & (abs(column - 10) <= 4)


def moves():
    """p(s' | s, b), [200, 4, 200]."""
    p = np.zeros((PLACES, 4, PLACES))
    for s, b, drift in np.ndindex(PLACES, 4, 4):
        there = np.clip((row[s], column[s]) + MOVES[drift], 0, (ROWS - 1, COLUMNS - 1)) @ (COLUMNS, 1)
        p[s, b, there] += SLIP / 4 + (1 - SLIP) * (drift == b)
    return torch.tensor(p)


class Island(ConfigurableMDP):
    """Hikers walk to the lighthouse; the warden lets paths grow over to spare the birds."""

    theta_space = gym.spaces.Box(0.0, 1.0, (PLACES,), np.float64)
    default_theta = np.zeros(PLACES)
    preferences = Preferences(gamma_leader=0.97, gamma_follower=0.97, beta=0.03)

    def __init__(self):
        self.moves = moves()
        self.start = torch.eye(PLACES, dtype=torch.float64)[[STAGE]]
        self.goes_on = torch.ones(1, PLACES, 4, dtype=torch.float64)
        self.goes_on[:, LIGHTHOUSE] = 0.0  # the step taken there is the last one
        self.arrival = torch.zeros(PLACES, 1, dtype=torch.float64)
        self.arrival[LIGHTHOUSE] = 1.0

    def model(self, theta):
        grown = theta[:, :, None].expand(-1, -1, 4)  # [R, S, B]
        r_follower = self.arrival - 0.05 - 0.3 * grown
        r_leader = -torch.tensor(MEADOW, dtype=torch.float64)[:, None] - 0.3 * grown
        return TabularModel(self.moves[None], self.start, r_leader, r_follower, self.goes_on)

    def parameterization(self, runs, noise):
        return Box(-4.0 + 0.01 * noise.normal(PLACES), 0.0, 1.0)  # begins near 0


print(check_bilevel_env(Island(), raises=False))

# %% [markdown]
# The checker finds nothing: gradients are those of differences, steps are drawn from the table, seeds repeat.
#
# ## Leading it
#
# BC-HG sees transitions alone, 2,000 for each step of θ. `ExactGradient` reads the table, and tells what there is to
# win. Naive-PGD takes hikers for people who always go where they go now: to it undergrowth has a price and no use.

# %%
env = BilevelWrapper(TabularEnv(Island()))
before = env.unwrapped.theta
print(f"no undergrowth: J_L = {exact.objective(env, before):.3f}")
how = {"seed": 0, "learning_rate": 0.1}
leaders = {
    "BC-HG": BCHG(env, batch_size=2_000, **how),
    "exact hypergradient": ExactGradient(env, **how),
    "Naive-PGD": NaivePGD(env, batch_size=2_000, **how),
}
for name, leader in leaders.items():
    leader.learn(100)
    print(f"{name}: J_L = {exact.objective(env, leader.theta):.3f}")

# %% [markdown]
# ## Putting θ in force
#
# The θ that was found is an ordinary array. Any copy of the island takes it, at a reset; the follower's policy at this
# θ is `best_response(θ).policy`. The mean return of a thousand hikers is what `exact.objective` says, to the standard
# error of a thousand hikers.

# %%
theta = leaders["BC-HG"].theta
island, policy = TabularEnv(Island()), env.best_response(theta).policy
rng, returns = np.random.default_rng(0), []
for hiker in range(1_000):
    place, _ = island.reset(seed=hiker, options={"theta": theta})
    arrived, discount, collected = False, 1.0, 0.0
    while not arrived:
        place, _, arrived, _, info = island.step(policy.sample(place, rng.random()).item())
        collected += discount * info["leader_reward"]
        discount *= env.preferences.gamma_leader
    returns.append(collected)
print(f"{np.mean(returns):.3f} ± {np.std(returns) / 1_000**0.5:.3f}, exact {exact.objective(env, theta):.3f}")

# %% [markdown]
# ## The picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
for axis, at, title in zip(axes, (before, theta), ("before", "after"), strict=True):
    batch = env.rollout(at, env.best_response(at), Noise([0]), rows=500, horizon=400, whole_episodes=True)
    walked = np.bincount(batch.state[batch.valid].numpy(), minlength=PLACES).reshape(ROWS, COLUMNS) / 500
    image = axis.imshow(walked, cmap="Blues", vmin=0, vmax=1.5)
    axis.contour(MEADOW.reshape(ROWS, COLUMNS), [0.5], colors="tab:red", linewidths=1.5)
    axis.scatter(column, row, s=60 * at, color="tab:green", marker="^")
    axis.text(0, 5, "L", ha="center", va="center", weight="bold")
    axis.text(19, 5, "H", ha="center", va="center", weight="bold")
    axis.set(xticks=[], yticks=[], title=f"{title}: J_L = {exact.objective(env, at):.3f}")
figure.colorbar(image, ax=axes, label="visits per hiker")
plt.show()

# %% [markdown]
# **Look at** how hikers part around the meadow (red). Undergrowth (green, as large as θ) covers it and the ways into
# it, and costs the warden nothing any more, for nobody walks there. Naive-PGD never plants any: to it, all it would
# bring are the complaints of those who walk there today.
#
# Larger tables: [large tables](../../docs/large_tables.md). Films, ids and other hooks:
# [extending](../../docs/extending.md).
