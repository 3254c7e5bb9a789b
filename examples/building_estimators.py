# %% [markdown]
# # One hypergradient, two estimators
#
# In building thermal control the published BC-HG (arXiv:2603.14867, Figure 3) ends at a leader's value of −196, with
# every wall insulated and every vent open: θ = 1. That is also where a leader ends who ignores the follower. The
# optimum is −162.50. The method is not to blame: its hypergradient points to the optimum. What differs is the
# *estimate*. This notebook looks at both estimates at the same θ, and then at where each of them leads. About two
# minutes.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch

from bilevel_envs import BilevelWrapper
from leaders import BCHG, NaivePGD, exact
from leaders.critics import LeastSquares

torch.set_num_threads(1)
env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))
names = [f"α{i}" for i in range(1, 5)] + [f"φ{i}" for i in range(1, 5)]


def at_half(leader):
    torch.nn.init.zeros_(leader.policy.raw)  # θ = sigmoid(0) = 1/2
    return leader


# %% [markdown]
# ## Two forces
#
# The direct term moves θ with the follower held still; the guiding term is what the follower's reaction adds. Both are
# exact here, in the raw coordinates that the optimiser moves. The direct term is positive everywhere: insulating and
# opening pays at once. The guiding term objects to some of it.

# %%
leader = at_half(BCHG(env))
direct, guiding = exact.hypergradient_parts(env, parameters=leader.policy)
print("          ", *(f"{name:>6}" for name in names))
print("direct    ", *(f"{x:6.1f}" for x in direct))
print("guiding   ", *(f"{x:6.1f}" for x in guiding))
half, ones = (exact.objective(env, np.full(8, x)) for x in (0.5, 1.0))
print(f"J_L at θ = 1/2: {half:.2f}, at θ = 1: {ones:.2f}")

# %% [markdown]
# ## The same hypergradient, estimated
#
# Forty estimates from 100 episodes each. The published form weighs the score ∇log p by V_F ≈ −1000 without a baseline,
# and 1/σ² = 2500 and 1/β = 10 do the rest: it is unbiased in its guiding part, but a single estimate is off by ten
# thousand times what it estimates. After the clip to norm 1 a step is noise. The default takes ∇Q_F − ∇V_F in closed
# form.
#
# `gradient="score"` has what the published form has, the score and nothing of the model, but fits ∇Q_F
# (`guiding="fitted"`, its default) and weighs the score by temporal-difference errors.
#
# (`critic="lstd"` gives the published form an exact critic, which is more than it had.)

# %%
published = at_half(BCHG(env, preset="paper", critic="lstd")).gradient_samples(40, raw=True, episodes=100)
scores = at_half(BCHG(env, gradient="score", batch_size=10_000)).gradient_samples(40, raw=True, episodes=100)
clean = at_half(BCHG(env, batch_size=10_000)).gradient_samples(40, raw=True, episodes=100)
print("           exact   published: mean ± deviation   scores, fitted ∇Q_F            default")
for k, name in enumerate(names):
    theirs, same, ours = published[:, k], scores[:, k], clean[:, k]
    told = f"{theirs.mean():12.0f} ± {theirs.std():<12.0f} {same.mean():8.1f} ± {same.std():<6.1f}"
    print(f"{name:>6} {direct[k] + guiding[k]:9.1f}   {told} {ours.mean():8.1f} ± {ours.std():.1f}")

truth = direct + guiding


def cosine(samples):
    return samples @ truth / np.linalg.norm(samples, axis=1) / np.linalg.norm(truth)


figure, axes = plt.subplots(figsize=(6, 3))
axes.hist(cosine(published), np.linspace(-1, 1, 41), label="published form", alpha=0.7)
axes.hist(cosine(scores), np.linspace(-1, 1, 41), label="scores, fitted ∇Q_F", alpha=0.7)
axes.hist(cosine(clean), np.linspace(-1, 1, 41), label="default", alpha=0.7)
axes.set_xlabel("cosine between an estimate and the exact hypergradient")
axes.set_ylabel("estimates of 40")
axes.legend()
plt.show()


# %% [markdown]
# ## An error with one sign
#
# ∇V_F(s) is positive in every entry: insulation and open vents always help the follower. E[Benefit | s] = 0 keeps that
# out of the guiding term. A Benefit that is off by a constant ε does not: it adds ε E[Σ γᵗ ∇V_F(s_t)] / β, thousands
# per unit of ε, where the true guiding term is about 10. So the sign of such an error decides where a leader drifts: up
# to θ = 1, which looks like success, or down to θ = 0. Here the exact critic is made wrong on purpose, by a fifth of
# V_L ≈ −260. (What made the published runs drift is not known: without such an error this form walks at random, and so
# did the released code when it was run again.)


# %%
class Off:
    """A critic whose Q_L is off by a constant, while its V_L is right."""

    def __init__(self, error):
        self.error, self.inner = error, LeastSquares(env.preferences.gamma_leader)

    def fit(self, *arguments):
        self.inner.fit(*arguments)

    def values(self, batch, policy):
        q, v, v_next = self.inner.values(batch, policy)
        return q + self.error, v, v_next

    def copies(self, count):
        return Off(self.error)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


# Steps three times as long as by default, so that a hundred iterations are enough.
published_form = {"preset": "paper", "learning_rate": 0.3, "runs": 2, "seed": 0}
settings = {"learning_rate": 0.15, "runs": 2, "seed": 0}
iterations = 100
led = {
    "published form": BCHG(env, critic="lstd", **published_form),
    "published form, ε = +50": BCHG(env, critic=Off(50.0), **published_form),
    "published form, ε = −50": BCHG(env, critic=Off(-50.0), **published_form),
    "Naive-PGD": NaivePGD(env, **settings),
    "BC-HG, scores alone": BCHG(env, gradient="score", batch_size=10_000, **settings),
    "BC-HG, default": BCHG(env, **settings),
}
for leader in led.values():
    leader.learn(iterations)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for name, leader in led.items():
    value = leader.history["leader_value"]
    left.plot(value.mean(1), label=name)
    left.fill_between(np.arange(iterations), value.min(1), value.max(1), alpha=0.15)
left.axhline(env.best_known, color="black", linestyle=":", label="optimum")
left.axhline(-196.2, color="grey", linestyle="--", label="published BC-HG, after 2,000")
left.set(xlabel="outer iterations", ylabel="leader's value (exact)", ylim=(-420, -150))
left.legend(fontsize=7)
places = np.arange(8)
for offset, (name, leader) in enumerate(led.items()):
    right.bar(places + 0.14 * (offset - 2.5), leader.theta.mean(0), width=0.14, label=name)
right.plot(places, [1, 0, 1, 1, 0, 0.7784, 1, 1], "k_", markersize=24, label="optimum")
right.set_xticks(places, names)
right.set_title("θ at the end, mean of the runs", fontsize=10)
figure.tight_layout()
for name, leader in led.items():
    print(f"{name:>24}: J_L = {leader.history['leader_value'][-1].mean():8.2f}, mean θ = {leader.theta.mean():.2f}")

# %% [markdown]
# The published form wanders; an error of one sign carries it up towards θ = 1, of the other down towards θ = 0. The
# default goes to the optimum: (1, 0, 1, 1 | 0, 0.78, 1, 1), its last vents last; and so does the leader that knows no
# more than the published one. Naive-PGD goes to θ = 1 because its force does.
#
# What to take home, for leaders of your own: centre *both* factors of the guiding term, the Benefit and ∇Q_F; never
# clip per sample; and look at `gradient_samples` beside `exact.hypergradient` before training.
