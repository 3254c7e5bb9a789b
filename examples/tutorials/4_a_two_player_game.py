# %% [markdown]
# # 4. A two-player game
#
# In a Markov game both players move: in state s the leader draws a from its policy $f_\theta(a \mid s)$, the follower
# sees a and answers with b. θ is the leader's policy. In the toy game (arXiv:2603.14867, section 5.3) the leader is
# paid whenever the follower walks from S to A; at A it lets the follower pass (a = 0) or sends it back (a = 1), which
# brings the follower to S sooner, and might bring the next visit.

# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from bilevel_envs import BilevelWrapper, LeaderEnv
from bilevel_envs.markov_games import toy_markov_game_v0
from leaders import BCHG, NaivePGD, exact

torch.set_num_threads(1)
game = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", variant="R2"))

# %% [markdown]
# ## Both chairs
#
# PettingZoo has the game for two: turn by turn, `env()`, or both at once, `parallel_env()`. `last()` pays a turn late,
# and after the end each agent has one more turn with action None.

# %%
env = toy_markov_game_v0.env(variant="R2", max_cycles=3)
env.reset(seed=0)
for agent in env.agent_iter():
    observation, reward, terminated, truncated, info = env.last()
    action = None if truncated else 1
    print(f"{agent:>10} sees {observation!s:>6}, is paid {reward:+.0f}, plays {action}")
    env.step(action)

# %% [markdown]
# In the parallel form whoever calls draws a first, and asks what the follower sees then. Here the follower plays its
# answer to a tossed coin.

# %%
env = toy_markov_game_v0.parallel_env(variant="R2")
policy = game.best_response(np.full((3, 2), 0.5)).policy
rng = np.random.default_rng(0)
seen, _ = env.reset(seed=0)
total = {"leader_0": 0.0, "follower_0": 0.0}
while env.agents:
    a = int(rng.integers(2))
    now = env.observe_follower(seen["leader_0"], a)
    b = int(policy.sample(torch.tensor([int(game.problem.index(now))]), torch.tensor([rng.random()])))
    seen, rewards, *_ = env.step({"leader_0": a, "follower_0": b})
    total = {agent: total[agent] + rewards[agent] for agent in total}
print("returns of an episode:", total)

# %% [markdown]
# ## What there is to learn
#
# With $\bar s = (s, a)$ the follower faces an MDP whose next state is drawn as $p(s' \mid s, a, b)\, f_\theta(a' \mid
# s')$: a game is a configurable MDP, and every leader here plays it. Along f(0|A), the probability to let the follower
# pass:

# %%


def passing(p):
    theta = np.full((3, 2), 0.5)
    theta[1] = [p, 1 - p]
    return theta


along = np.linspace(0.3, 0.7, 81)
landscape = [exact.objective(game, passing(p)) for p in along]
for p in (0.3, 0.45, 0.6):
    direct, guiding = (part[1, 0] for part in exact.hypergradient_parts(game, passing(p)))
    comes = float(game.best_response(passing(p)).policy.probs[0, 0, 1])
    print(f"f(0|A) = {p}: the follower comes with probability {comes:.3f}; direct {direct:.1f}, guiding {guiding:.1f}")

# %% [markdown]
# The direct term says: send it back more often. The guiding term says: then it stops coming. The leader must keep the
# follower in doubt.
#
# ## Three leaders
#
# BC-HG takes both terms from trajectories, Naive-PGD the first. PPO of Stable-Baselines3 plays in `LeaderEnv`, an
# ordinary Gymnasium environment in which the follower answers the policy last set by `configure`; its answer is part of
# the world to PPO, as if it did not depend on what PPO learns.

# %%


def as_theta(model):
    """PPO's policy as the table f(a | s)."""
    with torch.no_grad():
        probs = model.policy.get_distribution(torch.arange(3)).distribution.probs.double()
    return (probs / probs.sum(-1, keepdim=True)).numpy()


class TellTheFollower(BaseCallback):
    """Configures the world anew before each rollout, and keeps the policy."""

    way: list

    def _on_training_start(self):
        self.way = []

    def _on_rollout_start(self):
        self.way.append(as_theta(self.model))
        self.training_env.env_method("configure", self.way[-1])

    def _on_step(self):
        return True


told = TellTheFollower()
settings = {"n_steps": 450, "batch_size": 450, "gamma": 0.99, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
PPO("MlpPolicy", LeaderEnv(game), **settings).learn(22_500, callback=told)
ways = {"PPO in LeaderEnv": np.stack(told.way)}
for name, make in (("BC-HG", BCHG), ("Naive-PGD", NaivePGD)):
    leader, way = make(game, seed=0), []
    leader.learn(50, callback=lambda *_, leader=leader, way=way: way.append(leader.theta) is None)
    ways[name] = np.stack(way)
for name, way in ways.items():
    print(f"{name}: J_L = {exact.objective(game, way[-1]):.2f}, f(0|A) = {way[-1][1, 0]:.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
left.plot(along, landscape, color="0.4")
left.axvspan(0.3, 0.4, color="tab:red", alpha=0.12)
left.text(0.34, 30, "the follower\nstays away", ha="center", fontsize=9)
left.set(xlabel="f(0|A), the chance to pass", ylabel="leader's value, ½ elsewhere")
for name, way in ways.items():
    right.plot(450 * np.arange(1, len(way) + 1), exact.objective(game, way), label=name)
right.axhline(game.best_known, color="black", linestyle=":", label="optimum")
right.set(xlabel="steps of the game", ylabel="leader's value, exact")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Look at** the cliff on the left, and at who falls from it on the right. Leaders without the guiding term send the
# follower back ever more often, until it stays away and no gradient is left to bring it back. BC-HG stays at the edge.
#
# A game of your own takes its tables and nothing more: [extending](../../docs/extending.md#a-game). More on both forms:
# [two players](../../docs/games.md).
