# %% [markdown]
# # 5. A real environment: Gymnasium's taxi
#
# Gymnasium's taxi was written by nobody here. A taxi in a town of 5 × 5 places picks a passenger up at one of four
# stands and drives to another. The town, our leader, would like quiet streets in its middle row, and may set a toll θ ∈
# [0, 2] on each of the 25 places.
#
# Gymnasium tells the taxi's moves, in `P`. So its 500 states are a table, the follower is exact, and no agent has to be
# trained.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium.envs.toy_text.taxi import TaxiEnv

from bilevel_envs import BilevelWrapper, ConfigurableMDP, Preferences, TabularEnv, TabularModel, Transitions
from bilevel_envs.parameterizations import Box
from bilevel_envs.testing import check_bilevel_env
from leaders import BCHG, ExactGradient, NaivePGD, exact

torch.set_num_threads(1)
taxi = TaxiEnv()
STATES, ACTIONS, PLACES = 500, 6, 25

# %% [markdown]
# ## Reading the table off
#
# With the taxi's own reward r, which is −1 for a step, −10 for a mistake and 20 for an arrival, and x its place,
#
# $$ r_F = \frac{r}{20} - \frac{\theta_x}{10}, \qquad r_L = -[x \in \text{middle row}] - \frac{\theta_x}{10} . $$
#
# `P[s][b]` lists (probability, next state, reward, whether the episode ends). Gymnasium ends an episode with a
# passenger's arrival; here, too, it ends after that step, where `continues` is 0.

# %%
after, paid, goes_on = np.zeros((STATES, ACTIONS, 1), int), np.zeros((STATES, ACTIONS)), np.ones((STATES, ACTIONS))
for s, b in np.ndindex(STATES, ACTIONS):
    ((_, after[s, b], paid[s, b], over),) = taxi.P[s][b]
    goes_on[s, b] = not over
place = np.arange(STATES) // 20  # a state counts places of the taxi, then places of the passenger, then stands
QUIET = place // 5 == 2


class Town(ConfigurableMDP):
    """A taxi pays a tenth of θ for each step in a place; the town minds traffic in its middle row, and tolls."""

    theta_space = gym.spaces.Box(0.0, 2.0, (PLACES,), np.float64)
    default_theta = np.zeros(PLACES)
    preferences = Preferences(gamma_leader=0.98, gamma_follower=0.98, beta=0.02)

    def __init__(self):
        self.moves = Transitions.from_lists(after, np.ones((STATES, ACTIONS, 1)))
        self.start = torch.tensor(taxi.initial_state_distrib)[None]
        self.paid, self.goes_on = torch.tensor(paid / 20), torch.tensor(goes_on)[None]
        self.quiet = torch.tensor(QUIET, dtype=torch.float64)[:, None]

    def model(self, theta):
        toll = theta[:, place, None].expand(-1, -1, ACTIONS)  # [R, S, B]
        return TabularModel(self.moves, self.start, -self.quiet - 0.1 * toll, self.paid - 0.1 * toll, self.goes_on)

    def parameterization(self, runs, noise):
        return Box(-3.0 + 0.01 * noise.normal(PLACES), 0.0, 2.0)


print(check_bilevel_env(Town(), raises=False))

# %% [markdown]
# ## Leading
#
# Walls leave two gaps: in rows 0, 1 and in rows 3, 4 parts of the town are cut off from each other, and only the middle
# row is open from end to end. So taxis cannot avoid it; they can spend less time there.

# %%
env = BilevelWrapper(TabularEnv(Town()))
before = env.unwrapped.theta
how = {"seed": 0, "learning_rate": 0.1}
leaders = {
    "BC-HG": BCHG(env, batch_size=2_000, **how),
    "Naive-PGD": NaivePGD(env, batch_size=2_000, **how),
    "exact hypergradient": ExactGradient(env, **how),
}
print(f"no tolls: J_L = {exact.objective(env, before):.3f}")
for name, leader in leaders.items():
    leader.learn(200)
    print(f"{name}: J_L = {exact.objective(env, leader.theta):.3f}")

# %% [markdown]
# ## Driving the taxi itself
#
# The table is ours, the taxi is Gymnasium's. Five hundred passengers are driven in it with the follower's policy, at no
# tolls and at those of BC-HG; the means are what `exact` says, to their standard errors.

# %%
after_tolls = leaders["BC-HG"].theta
rng, time_in = np.random.default_rng(0), {}
for name, theta in (("no tolls", before), ("tolls of BC-HG", after_tolls)):
    policy, visits, returns = env.best_response(theta).policy, np.zeros(PLACES), []
    for passenger in range(500):
        state, _ = taxi.reset(seed=passenger)
        over, discount, collected = False, 1.0, 0.0
        while not over:
            visits[place[state]] += 1 / 500
            collected -= discount * (QUIET[state] + 0.1 * theta[place[state]])
            state, _, over, _, _ = taxi.step(policy.sample(state, rng.random()).item())
            discount *= 0.98
        returns.append(collected)
    time_in[name] = visits.reshape(5, 5)
    error = np.std(returns) / 500**0.5
    print(f"{name}: {np.mean(returns):.3f} ± {error:.3f}, exact {exact.objective(env, theta):.3f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
for axis, (name, visits) in zip(axes, time_in.items(), strict=False):
    image = axis.imshow(visits, cmap="Blues", vmin=0, vmax=2)
    axis.set_title(f"{name}: {visits[2].sum():.1f} steps in the middle row", fontsize=9)
figure.colorbar(image, ax=axes[1], label="steps per passenger")
image = axes[2].imshow(after_tolls.reshape(5, 5), cmap="Oranges", vmin=0)
axes[2].set_title("tolls of BC-HG", fontsize=9)
figure.colorbar(image, ax=axes[2], label="θ")
for axis in axes:
    for letter, at in zip("RGYB", taxi.locs, strict=True):
        axis.text(at[1], at[0], letter, ha="center", va="center", weight="bold")
    axis.axhspan(1.5, 2.5, fill=False, color="tab:red")
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# **Look at** where the tolls stand: at places that a taxi can drive around, mostly in the east, and nowhere else, for a
# toll that nobody can avoid only costs. Naive-PGD sees the cost alone.
#
# Environments whose table nobody can read are led with an agent that learns: [real
# environments](../../docs/real_environments.md).
