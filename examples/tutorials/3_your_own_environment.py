# %% [markdown]
# # 3. Your own Gymnasium environment, and an agent that learns in it
#
# A car comes home at six in the evening and leaves at eight. Its owner has an agent charge it: 0, 1 or 2 units in each
# of fourteen hours. The grid sets the tariff, a price for each of four periods, and wants the cars out of the evening's
# peak. The agent, of Stable-Baselines3, is the **follower**; the grid leads.
#
# Nothing below knows a model of the environment. Where θ stands in the rewards alone, the hypergradient asks for ∇r_L
# and ∇r_F along trajectories.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Noise, Preferences
from bilevel_envs.followers import SB3Follower
from bilevel_envs.testing import check_bilevel_env
from leaders import BCHG

torch.set_num_threads(1)
HOURS, FULL = 14, 10
PERIOD = np.repeat([0, 1, 2, 3], [4, 3, 4, 3])  # evening, late, night, morning
DEMAND = np.array([0.9, 1.0, 1.0, 0.9, 0.7, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2, 0.3, 0.5, 0.6])  # of the houses, from six on

# %% [markdown]
# ## The environment
#
# Plain Gymnasium: it knows nothing of tariffs, and logs in `info` what rewards will be made of.


# %%
class Charging(gym.Env):
    """An evening and a night of one car; the observation is (hour one-hot, share charged)."""

    observation_space = gym.spaces.Box(0.0, 1.0, (HOURS + 1,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def seen(self):
        return np.append(np.eye(HOURS)[min(self.hour, HOURS - 1)], self.charge / FULL).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.hour, self.charge = 0, int(self.np_random.integers(0, 5))
        return self.seen(), {}

    def step(self, action):
        units = min(int(action), FULL - self.charge)
        bought = units * np.eye(4)[PERIOD[self.hour]]
        strain = (DEMAND[self.hour] + units / 2) ** 2 - DEMAND[self.hour] ** 2  # what the car adds to it
        self.hour, self.charge = self.hour + 1, self.charge + units
        over = self.hour == HOURS
        info = {
            "bought": bought,
            "strain": strain,
            "missing": 1 - self.charge / FULL,
            "left empty": over * (FULL - self.charge),
        }
        return self.seen(), 0.0, over, False, info


# %% [markdown]
# ## Two rewards and a θ
#
# θ ∈ [0, 1]⁴ is the tariff, a price for each period h. With bought units $x_h$ the owner is paid
#
# $$
# r_F = -\theta_h x_h - 0.1 \cdot \text{missing} - 3 \cdot \text{left empty}, \qquad
# r_L = -\text{strain} - 0.1\, \overline{(\theta - \tfrac12)^2} :
# $$
#
# it would rather have a full battery early, in case it must leave, and badly wants one at eight. The grid's tariff may
# differ from ½ at a small cost.

# %%


def components(observation, action, reward, after, info):
    return [*info["bought"], info["missing"], info["left empty"], info["strain"]]


env = ConfigurableRewards(
    Charging(),
    theta_space=gym.spaces.Box(0.0, 1.0, (4,), np.float64),
    components=components,
    r_follower=lambda theta, c: -(theta * c[..., :4]).sum(-1) - 0.1 * c[..., 4] - 3 * c[..., 5],
    r_leader=lambda theta, c: -c[..., 6] - 0.1 * ((theta - 0.5) ** 2).mean(-1),
    preferences=Preferences(gamma_leader=0.99, gamma_follower=0.99, beta=0.1),
)
print(check_bilevel_env(env, raises=False))

# %% [markdown]
# ## The agent and the leader
#
# `SoftDQN` learns Q_F and plays softmax(Q_F / β). It is given 4,000 steps at the first tariff, and 500 more whenever θ
# has moved; what it has stored is given the reward of the new tariff (`buffer="relabel"`). BC-HG fits Q_L and ∇Q_F to
# the trajectories that it sees (`critic="td"`, `guiding="fitted"`, the defaults where no model is known).

# %%
agent = SB3Follower(
    "SoftDQN",
    500,
    first_steps=4_000,
    train_freq=4,
    gradient_steps=2,
    batch_size=128,
    buffer="relabel",
    buffer_size=8_000,
    learning_starts=200,
)
world = BilevelWrapper(env, agent)
leader = BCHG(world, seed=0, batch_size=1_400, learning_rate=0.3)


def nights(learn):
    """Two hundred of them at the present tariff: the grid's returns, and units bought by hour."""
    best = world.best_response(leader.theta, learn=learn)
    batch = world.rollout(leader.theta, best, Noise([99]), rows=200, horizon=HOURS, whole_episodes=True)
    returns = (batch.r_leader[0] * 0.99 ** batch.step[0]).sum(-1).numpy()
    bought = FULL * (batch.next_state - batch.state)[0, :, :, HOURS].numpy().mean(0)
    return returns, bought


first = leader.theta
before, bought_before = nights(learn=True)
leader.learn(8)
after, bought_after = nights(learn=False)
for name, returns in (("flat tariff", before), ("led tariff", after)):
    print(f"{name}: J_L = {returns.mean():.2f} ± {returns.std() / len(returns) ** 0.5:.2f}")
print(f"steps of the agent: {agent.spent:,}, seen by the leader: {int(leader.history['env_steps'][-1, 0]):,}")

# %%
hours = [f"{(18 + hour) % 24}" for hour in range(HOURS)]
figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained", sharey=True)
for axis, theta, bought, name, returns in (
    (axes[0], first, bought_before, "flat tariff", before),
    (axes[1], leader.theta, bought_after, "led tariff", after),
):
    axis.bar(hours, DEMAND, color="0.8", label="houses")
    axis.bar(hours, bought / 2, bottom=DEMAND, color="C0", label="the car, on average")
    axis.step(hours, theta[PERIOD], where="mid", color="C3", label="price θ")
    axis.set(xlabel="hour of the day", title=f"{name}: J_L = {returns.mean():.2f}")
axes[0].set_ylabel("load, price")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# **Look at** the blue load: under a flat tariff the agent fills the battery at once, on top of the evening's peak. The
# led tariff is dear until four and cheap in the morning, and the agent has learnt to wait. The night, in which houses
# take least, is still to be found: eight iterations are few.
#
# θ in the physics, observations of other shapes, and the shell: [your own environment](../../docs/own_environment.md).
# Environments of other people: [real environments](../../docs/real_environments.md).
