# %% [markdown]
# # 6. A follower that is only observed
#
# So far the leader could ask the follower for its policy g and its values. Now it sees states, actions and rewards, and
# nothing else. `ObservedFollower` hides any follower, counts g from what it did, and solves
#
# $$ V_F = \mathbb{E}_{b \sim \hat g}\big[\, r_F - \beta \log \hat g(b \mid s) + \gamma_F V_F(s') \,\big] $$
#
# for its values. The leader goes on as ever with these estimates. Two questions: how much must it see, and does it
# still arrive?

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.envs.four_rooms import STATE
from bilevel_envs.followers import ObservedFollower, SB3Follower, SoftValueIteration
from bilevel_envs.parameterizations import Budget
from leaders import BCHG, exact

torch.set_num_threads(1)

# %% [markdown]
# ## How much must be seen?
#
# In the four rooms most of the leader's penalties stand before one corridor, so that the follower is torn between two
# ways and its reaction counts. Ten estimates of 200 episodes each are averaged and held against the exact
# hypergradient.

# %%
raw = np.zeros(105)
raw[STATE[3, 5]] = 5.5


def estimate(follower):
    """The mean of ten estimates at that θ, by a leader with an exact critic, and the truth."""
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"), follower)
    leader = BCHG(env, critic="exact", learning_rate=1e-12, policy=Budget(raw[None], -0.2)).learn(1)
    return leader.gradient_samples(10, episodes=200).mean(0), exact.hypergradient_parts(env, leader.theta)


def cosine(x, y):
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


seen, cosines = [300, 1_000, 10_000, 100_000], []
for count in seen:
    found, (direct, guiding) = estimate(ObservedFollower(observations=count))
    cosines.append(cosine(found, direct + guiding))
    print(f"{count:7,} transitions observed: cosine to the exact hypergradient {cosines[-1]:.3f}")
told, _ = estimate(SoftValueIteration())
known, alone = cosine(told, direct + guiding), cosine(direct, direct + guiding)
print(f"g and V_F known: {known:.3f}; the direct term alone: {alone:.3f}")

# %% [markdown]
# ## Does it arrive?
#
# On the toll bridge three followers are led: one that tells all, the same one merely observed, and a PPO agent of
# Stable-Baselines3, which has no soft values to tell. PPO learns 1,000 steps after each change of the toll, and 500 of
# its transitions are seen.

# %%
ppo = SB3Follower("PPO", 1_000, first_steps=4_000, n_steps=200, batch_size=200, learning_rate=3e-3)
followers = {
    "exact, tells g and V_F": SoftValueIteration(),
    "exact, only observed": ObservedFollower(observations=500),
    "PPO, only observed": ObservedFollower(ppo, 500),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
left.semilogx(seen, cosines, "o-", label="only observed")
left.axhline(known, color="black", linestyle=":", label="g and V_F known")
left.axhline(alone, color="tab:red", linestyle="--", label="direct term alone")
left.set(xlabel="transitions observed", ylabel="cosine to the exact hypergradient", ylim=(0, 1.05))
left.legend(fontsize=8)
for name, follower in followers.items():
    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), follower)
    leader = BCHG(env, seed=0, learning_rate=0.2).learn(30)
    value = leader.history["leader_value"][:, 0]
    right.plot(value, label=name)
    print(f"{name}: J_L from {value[0]:.3f} to {value[-1]:.3f}, toll {leader.theta[0]:.2f}")
right.axhline(env.best_known, color="black", linestyle=":", label="optimum")
right.set(xlabel="outer iterations", ylabel="leader's value, under an exact follower")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Look at** the left picture first: some thousand transitions turn an estimate that points elsewhere into one that is
# nearly as good as if the follower had told all. On the right, being observed costs the exact follower's leader
# nothing. PPO's leader takes longer, and is still on its way.
#
# What followers can tell, what they cost, and what was measured: [followers](../../docs/followers.md). The script
# `examples/observed_follower.py` leads the four rooms this way.
