# %% [markdown]
# # 1. A first hypergradient
#
# A commuter takes the bridge or the ferry. The leader sets the bridge's toll θ ∈ [0, 2] and wants the bridge spared.
# The commuter is the **follower**: it solves its own entropy-regularised decision problem given θ, softly with
# temperature β. How does the leader's return
#
# $$
# J_L(\theta) = \mathbb{E}\Big[\sum_t \gamma_L^t\, r_L(s_t, b_t)\Big], \qquad
# b_t \sim g_\theta(b \mid s_t) = \exp\frac{Q_F(s_t, b) - V_F(s_t)}{\beta}
# $$
#
# change with θ, the commuter's reaction included? That is the hypergradient, and this page estimates one.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch

from bilevel_envs import BilevelWrapper  # importing the package registers BiLevel/*
from bilevel_envs.followers import SoftValueIteration
from leaders import BCHG, NaivePGD, exact

torch.set_num_threads(1)
env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), follower=SoftValueIteration())

# %% [markdown]
# ## The follower's answer
#
# `best_response(θ)` solves the follower's problem: its policy g, its values, and how exactly they were found.

# %%
for toll in (0.0, 0.5, 1.0):
    best = env.best_response(np.array([toll]))
    bridge, ferry = best.policy.probs[0, 0].tolist()
    print(f"toll {toll}: bridge {bridge:.3f}, ferry {ferry:.3f}; V_F = {float(best.v(0)):.3f}", end=", ")
    print(f"residual {best.residual.max():.0e}")

# %% [markdown]
# ## Two effects of θ
#
# θ acts *directly*, through rewards and moves with the follower held still, and it *guides*: it changes what the
# follower does. The guiding term needs no derivative of a solver. Because g is a Boltzmann policy, it is a covariance
# under the follower's own actions (arXiv:2603.14867, Theorem 1),
#
# $$
# \mathbb{E}\Big[\sum_t \gamma_L^t\, \tfrac{1}{\beta}\, \big(Q_L - \mathbb{E}_b Q_L\big)(s_t, b_t)\;
# \nabla_\theta Q_F(s_t, b_t)\Big],
# $$
#
# and trajectories are enough to estimate it. On the bridge the direct term is 0 everywhere: the toll is in neither the
# leader's reward nor the moves.

# %%
for toll in (0.2, 0.5, 1.0):
    direct, guiding = exact.hypergradient_parts(env, np.array([toll]))
    print(f"toll {toll}: direct {direct[0] + 0:.3f}, guiding {guiding[0]:.3f}")

# %% [markdown]
# ## Estimates from trajectories
#
# `gradient_samples` gives independent estimates, each from ten episodes. In a random world with five entries of θ, in
# rewards, moves and start, the means of 400 of them are held against the exact hypergradient.

# %%
mdp = BilevelWrapper(gym.make("BiLevel/RandomMDP-v0", seed=1))
forms = {"BC-HG": BCHG(mdp, critic="exact"), "Naive-PGD": NaivePGD(mdp, critic="exact")}
truth = exact.hypergradient(mdp, forms["BC-HG"].theta)
figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for offset, (name, leader) in zip((-0.12, 0.12), forms.items(), strict=True):
    samples = leader.gradient_samples(400)
    error = samples.std(0, ddof=1) / 400**0.5
    axis.errorbar(np.arange(5) + offset, samples.mean(0), 1.96 * error, fmt="o", label=name, capsize=3)
    print(f"{name}: largest |mean − exact| in standard errors: {np.abs((samples.mean(0) - truth) / error).max():.1f}")
axis.hlines(truth, np.arange(5) - 0.3, np.arange(5) + 0.3, color="black", label="exact")
axis.set(xlabel="entry of θ", ylabel="hypergradient, 95 % interval", xticks=range(5))
axis.legend(fontsize=8, ncol=3)
plt.show()

# %% [markdown]
# ## Following it
#
# Ten runs, stacked, and the way of the toll on the landscape that they cannot see.

# %%
leader = BCHG(env, runs=10, seed=0, learning_rate=0.1)
way = [leader.theta]
leader.learn(200, callback=lambda *_: way.append(leader.theta) is None)
naive = NaivePGD(env, runs=10, seed=0, learning_rate=0.1).learn(200)

tolls = np.linspace(0, 2, 81)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(tolls, [exact.objective(env, np.array([toll])) for toll in tolls], color="0.6", label=r"$J_L(\theta)$")
for iteration, colour in ((0, "tab:orange"), (10, "tab:green"), (40, "tab:blue")):
    at = way[iteration].ravel()
    left.plot(at, exact.objective(env, way[iteration]), "o", color=colour, label=f"ten runs, iteration {iteration}")
left.set(xlabel="toll θ", ylabel="leader's value")
left.legend(fontsize=8)
for name, led in (("BC-HG", leader), ("Naive-PGD", naive)):
    right.plot(led.history["leader_value"].mean(1), label=name)
right.axhline(env.best_known, color="black", linestyle=":", label="optimum, at a toll of 2")
right.set(xlabel="outer iterations", ylabel="leader's value")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Look at** the right picture: Naive-PGD does not move, for the direct term is 0, while BC-HG, which sees the same
# episodes, climbs to the optimum.
#
# Next: [a table of your own](2_your_own_table.ipynb). The words used here: [concepts](../../docs/concepts.md).
