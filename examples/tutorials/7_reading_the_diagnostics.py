# %% [markdown]
# # 7. Reading the diagnostics
#
# When a leader does not get on, four numbers say why. Of an estimate $\hat d$ of the hypergradient $d$: its **bias**,
# $|\mathbb{E}\hat d - d|$, and its **variance**, the spread of one estimate. Of what the leader has seen: its
# **coverage**. Of the follower: its **optimality gap**. This page makes each of them bad on purpose, in worlds whose
# exact hypergradient is known, and looks at the column of the history that tells.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import SB3Follower
from bilevel_envs.parameterizations import Budget, Free
from leaders import BCHG, HPGD, NaivePGD, SoBiRL, exact

torch.set_num_threads(1)


def start():
    return Free(np.array([[0.3, -0.2, 0.1, 0.4, -0.3]]))


def anatomy(leader, truth, count=300):
    """Bias, its standard error, and spread of one estimate, relative to the truth."""
    samples, scale = leader.gradient_samples(count), np.linalg.norm(truth)
    variance = samples.var(0, ddof=1).sum()
    return np.linalg.norm(samples.mean(0) - truth) / scale, np.sqrt(variance / count) / scale, np.sqrt(variance) / scale


def bars(axis, found, title):
    """Bias; grey: what 300 unbiased estimates would show by chance; red: more than three times that."""
    for index, (bias, noise, spread) in enumerate(found.values()):
        axis.barh(index, bias, color="C0" if bias < 3 * noise else "C3", height=0.55)
        axis.barh(index, noise, color="0.75", height=0.2)
        axis.text(1.08 * max(bias, noise), index, f"spread {spread:.2f}", va="center", fontsize=8)
    axis.set_yticks(range(len(found)), found)
    axis.invert_yaxis()
    axis.set(xlabel="|mean estimate − exact| / |exact|", xscale="log")
    axis.set_title(title, fontsize=10)
    axis.margins(x=0.4)


# %% [markdown]
# ## Bias and variance, by estimator
#
# A random world with θ in everything; ten whole episodes per estimate; the critic is exact, so that what is left
# belongs to the estimator. BC-HG and HPGD with an oracle have no bias. HPGD from the batch's own repeat visits is a
# ratio estimator; SoBiRL weighs the first choice only and knows nothing of θ in the moves; the naive gradient leaves
# the follower out.
#
# ## Bias, by critic
#
# In the four rooms, with most of the penalties before one corridor, critics are the mean returns of the batch. By
# default each half of the batch is judged by the critic of the other half (cross-fitting). With `cross_fit=False` a
# critic judges the very returns that it was made of, and its errors go with the moves whose gradients it weighs.

# %%
env = BilevelWrapper(gym.make("BiLevel/RandomMDP-v0", seed=0, gamma_leader=0.7, gamma_follower=0.7))
truth = exact.hypergradient(env, parameters=start())
told = {"policy": start(), "critic": "exact"}
by_estimator = {
    "BC-HG": BCHG(env, **told),
    "BC-HG, no control variates": BCHG(env, control_variate="none", score_weight="value", **told),
    "HPGD, oracle": HPGD(env, "oracle", **told),
    "HPGD, repeat visits": HPGD(env, "sa", **told),
    "SoBiRL": SoBiRL(env, **told),
    "Naive-PGD": NaivePGD(env, **told),
}
rooms = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"))
raw = np.zeros((1, 105))
raw[0, 24] = 5.5  # the cell before the top corridor
blocked = Budget(raw, -0.2)
rooms_truth = exact.hypergradient(rooms, blocked().detach().numpy()[0])
by_critic = {
    "exact": BCHG(rooms, policy=blocked, critic="exact"),
    "mean returns, cross-fitted": BCHG(rooms, policy=blocked, critic="monte_carlo"),
    "mean returns, own batch": BCHG(rooms, policy=blocked, critic="monte_carlo", cross_fit=False),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.4), layout="constrained")
bars(left, {name: anatomy(leader, truth) for name, leader in by_estimator.items()}, "by estimator, exact critic")
bars(
    right,
    {name: anatomy(leader, rooms_truth) for name, leader in by_critic.items()},
    "BC-HG in the four rooms, by critic",
)
plt.show()

# %% [markdown]
# Red bars are biases that cannot be chance. A spread of 1 means that one estimate is off by as much as it is long:
# raise `batch_size`, for the spread falls with its root, and bias does not.
#
# ## Coverage
#
# `history["coverage"]` is the share of pairs (s, b) that the leader has seen, `history["visits_per_pair"]` how often
# each of those. A learnt critic knows nothing of the others. Below, θ stands still in a random world of 40 states while
# small batches come in.

# %%
wide = BilevelWrapper(gym.make("BiLevel/RandomMDP-v0", seed=1, states=40, gamma_leader=0.8, gamma_follower=0.8))
wide_truth = exact.hypergradient(wide, parameters=start())
wait = {"policy": start(), "batch_size": 20, "learning_rate": 1e-300, "optimizer": "sgd"}
leader, rows = BCHG(wide, seed=0, **wait), []
for iterations in (2, 5, 10, 20, 40, 160):
    leader.learn(iterations - leader.progress.iterations)
    bias, noise, _ = anatomy(leader, wide_truth, 400)
    rows.append((leader.history["coverage"][-1, 0], leader.history["visits_per_pair"][-1, 0], bias, noise))
    print(f"coverage {rows[-1][0]:.2f}, visits per pair {rows[-1][1]:6.1f}: bias {bias:.2f} ± {noise:.2f}")
coverage, _, coverage_bias, coverage_noise = np.array(rows).T

# %% [markdown]
# ## Optimality gap
#
# The hypergradient is that of an *optimal* follower. `history["optimality_gap"]` is what the soft return of an agent
# lacks of the optimum. Here one of Stable-Baselines3 learns in the same world while θ stands still, and BC-HG takes its
# policy and its values for optimal ones.

# %%
agent = SB3Follower("SoftDQN", 250, learning_starts=50, train_freq=2)
leader = BCHG(BilevelWrapper(wide.env, agent), seed=0, critic="exact", **wait)
rows = []
for responses in (1, 2, 4, 8, 16):
    leader.learn(responses - leader.progress.iterations)
    bias, noise, _ = anatomy(leader, wide_truth, 400)
    rows.append((leader.history["optimality_gap"][-1, 0], bias, noise))
    print(f"{250 * responses:5,} steps of the agent: optimality gap {rows[-1][0]:.3f}, bias {bias:.2f} ± {noise:.2f}")
gap, gap_bias, gap_noise = np.array(rows).T

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
left.errorbar(coverage, coverage_bias, 2 * coverage_noise, fmt="o-", capsize=3)
left.set(xlabel='history["coverage"]', ylabel="relative bias", ylim=(0, None))
right.errorbar(gap, gap_bias, 2 * gap_noise, fmt="o-", capsize=3)
right.set(xlabel='history["optimality_gap"]', ylabel="relative bias", xlim=(0, None), ylim=(0, None))
plt.show()

# %% [markdown]
# **Look at** both curves before you turn to step sizes: an estimate cannot be better than what the leader has seen
# (left), nor than the follower that it sees (right). Where the gap is large, give the follower more steps, or move θ
# more slowly.
#
# All columns of the history: [command line](../../docs/command_line.md). What to do about each:
# [troubleshooting](../../docs/troubleshooting.md). More on estimators: [estimators](../../docs/estimators.md).
