"""Gymnasium's FrozenLake led through its rewards, and the same world as a table of ours: a truth for black boxes."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch

from bilevel_envs import (
    BestResponse,
    BilevelWrapper,
    ConfigurableMDP,
    ConfigurableRewards,
    Preferences,
    TabularEnv,
    TabularModel,
)
from bilevel_envs.core.follower import Capabilities
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.networks.policies import NetworkActionValues, NetworkCategorical
from bilevel_envs.parameterizations import Box

PREFERENCES = Preferences(0.9, 0.9, 0.1)
SPACE = gym.spaces.Box(0.0, 1.0, (3,), np.float64)
HOLES, GOAL = (5, 7, 11, 12), 15


def logged(observation, action, reward, after, info):
    """The goal, the first column, the third, and 1 for the step."""
    return [reward, after % 4 == 0, after % 4 == 2, 1.0]


def r_follower(theta, c):
    """The goal, less tolls in two columns and a price per step."""
    return c[..., 0] - theta[..., 0] * c[..., 1] - theta[..., 1] * c[..., 2] - 0.05 * theta[..., 2] * c[..., 3]


def r_leader(theta, c):
    """A share of the goal, a subsidised column, and the toll of another."""
    return (1 - theta[..., 2]) * c[..., 0] + 0.5 * c[..., 2] + 0.3 * theta[..., 0] * c[..., 1]


class Lake(ConfigurableMDP):
    """The table: whoever reaches a hole or the goal takes one more step, which pays nothing, entropy included."""

    theta_space = SPACE
    default_theta = np.full(3, 0.5)
    preferences = PREFERENCES

    def model(self, theta):
        moves = gym.make("FrozenLake-v1").unwrapped.P
        p, c = torch.zeros(16, 4, 16, dtype=torch.float64), torch.zeros(16, 4, 4, dtype=torch.float64)
        for state, action in np.ndindex(16, 4):
            for probability, after, reward, _ in moves[state][action]:
                p[state, action, after] += probability
                c[state, action] += probability * torch.tensor(logged(None, None, reward, after, None))
        over = torch.zeros(16, 1, dtype=torch.bool)
        over[[*HOLES, GOAL]] = True
        at = theta[:, None, None]
        return TabularModel(
            p[None],
            torch.eye(16, dtype=torch.float64)[:1],
            torch.where(over, 0.0, r_leader(at, c)),
            torch.where(over, -PREFERENCES.beta * np.log(4), r_follower(at, c)),
            (~over).double().expand(1, 16, 4).contiguous(),
        )

    def parameterization(self, runs, noise):
        return Box(np.zeros((runs, 3)), 0.0, 1.0)


class Knowing:
    """The soft optimum of the table, told as networks that look at a one-hot state."""

    beta = None
    capabilities = Capabilities(gives_values=True, learns=True)

    def respond(self, task, theta, model, init=None, learn=True):
        table = TabularEnv(Lake()).model(theta)
        best = SoftValueIteration().best_response(table, PREFERENCES)
        log_g, q = best.policy.probs.log(), best.q.values
        policy = NetworkCategorical(tuple(lambda seen, run=run: log_g[run][seen.argmax(-1)] for run in range(len(q))))
        values = NetworkActionValues(
            tuple(lambda seen, run=run: q[run][seen.argmax(-1)] for run in range(len(q))), PREFERENCES.beta
        )
        return BestResponse(policy, values, values, residual=torch.zeros(len(q), dtype=torch.float64), optimal=True)


def led_lake(follower=None) -> BilevelWrapper:
    """FrozenLake with its rewards in θ."""
    env = ConfigurableRewards("FrozenLake-v1", SPACE, r_follower, r_leader, PREFERENCES, logged)
    return BilevelWrapper(env, Knowing() if follower is None else follower)
