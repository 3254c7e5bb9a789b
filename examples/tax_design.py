# %% [markdown]
# # Taxes for households that react
#
# A government sets an income tax $x$ and a value-added tax $y_i$ on each of three goods. Households of two kinds work,
# save and spend; which kind one meets is drawn anew in each episode, and the government does not know. The tax on
# income enters the household's *transitions*, the taxes on goods its *rewards*, and both the government's reward.
#
# The world is that of the macro-economic example of arXiv:2406.01575. This page looks at the household, at the
# government's return along the income tax, and at leaders that ascend it.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch

import bilevel_envs  # noqa: F401  (registers BiLevel/*)
from bilevel_envs import BilevelWrapper
from leaders import BCHG, ExactGradient, NaivePGD, exact
from leaders.experiments.reproduce.tax import draw_left_out, draw_value, landscape

torch.set_num_threads(1)
env = BilevelWrapper(gym.make("BiLevel/TaxDesign-v0"))
problem, theta = env.problem, env.unwrapped.theta
print("first rates", theta, " F =", round(exact.objective(env, theta), 2), " best known:", env.best_known)

# %% [markdown]
# ## The household
#
# Its assets are a number within ±100. Planners see them on a grid, on which the softly optimal household is found
# exactly; bundles that cost the same are lumped, because they move the assets alike, so that a table of 130 actions
# stands for 1,250. In debt a household works all it can; it buys hardly anything until its savings reach 20, a cushion
# against noise whose standard deviation is 5 a step.

# %%
best, states = env.best_response(theta), problem.observations()
g = best.policy.probs[0].view(2, len(problem.points), problem.hour_levels, len(problem.totals))
hours = (g.sum(-1) * problem.hours).sum(-1)
spending = (g.sum(-2) * problem.totals).sum(-1)
shown = problem.points.abs() <= 50
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
for axis, table, title in zip(axes, (hours, spending), ("mean hours", "mean spending"), strict=True):
    for kind, taste in enumerate(problem.households):
        axis.plot(problem.points[shown], table[kind][shown], label=f"taste {taste}")
    axis.set(xlabel="assets", title=title)
    axis.grid(alpha=0.3)
axes[0].legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# The environment itself steps assets of any size. With `actions="totals"` it takes the table's actions, so that the
# household above can live in it; `nearest_state` finds its row.

# %%
walk = gym.make("BiLevel/TaxDesign-v0", actions="totals", render_mode="rgb_array")
rng = np.random.default_rng(0)
(assets,), info = walk.reset(seed=1, options={"context": 0})
for _ in range(104):
    state = problem.nearest_state(assets, info["context"])
    (assets,), _, _, _, info = walk.step(int((best.policy.cdf[0][state] <= rng.random()).sum()))
plt.figure(figsize=(6, 4.5))
plt.imshow(walk.render())
plt.axis("off")
plt.show()
# %% [markdown]
# ## The government's return along the income tax
#
# Value-added taxes stay at 0.3. $F$ rises up to $x \approx 0.65$ and then falls off a cliff: work hardly pays any more,
# households slide into debt, and debt is charged to the government, too. To the right, the slope and its two parts.
# With the household's policy held fixed, a higher income tax looks better up to $x \approx 0.76$; its reaction says
# otherwise. The released code of HPGD estimates the first part only for the income tax (for the value-added taxes it
# has both).

# %%
along = landscape(env)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
draw_value(axes[0], along)
draw_left_out(axes[1], along)
figure.tight_layout()

# %% [markdown]
# ## Three leaders
#
# BC-HG estimates the whole slope from trajectories, Naive-PGD its direct part, and `ExactGradient` ascends the exact
# one. All begin at rates of 0.3, the first two with the settings that the environment advises.

# %%
leaders = {
    "BC-HG": BCHG(env, seed=0),
    "Naive-PGD": NaivePGD(env, seed=0),
    "exact hypergradient": ExactGradient(env),
}
for leader in leaders.values():
    leader.learn(60)
for name, leader in leaders.items():
    print(f"{name:20s} F = {exact.objective(env, leader.theta):6.2f}   rates {leader.theta.round(2)}")

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.6))
for (name, leader), colour in zip(leaders.items(), ("tab:blue", "tab:orange", "0.3"), strict=True):
    axis.plot(leader.history["leader_value"], label=name, color=colour)
axis.axhline(env.best_known, color="0.7", linestyle="--", linewidth=1, label="best known")
axis.set(xlabel="outer iteration", ylabel="leader's return F", ylim=(26, 39))
axis.legend(fontsize=8)
axis.grid(alpha=0.3)

# %% [markdown]
# Naive-PGD also raises the value-added taxes: it does not see that households buy less of what is taxed.
