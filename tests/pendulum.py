"""Gymnasium's pendulum with mass, length and gravity in θ, and the same world solved on a grid: a truth for physics."""

from __future__ import annotations

import functools

import gymnasium as gym
import numpy as np
import scipy.sparse
import torch
from scipy.special import logsumexp

from bilevel_envs import BestResponse, BilevelWrapper, ConfigurableDynamics, Preferences
from bilevel_envs.core.follower import Capabilities
from bilevel_envs.networks.policies import NetworkActionValues, NetworkCategorical

PREFERENCES = Preferences(0.95, 0.95, 0.5)
SPACE = gym.spaces.Box(0.0, 1.0, (3,), np.float64)
TORQUES = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
ANGLES, SPEEDS = 200, np.linspace(-8.0, 8.0, 121)
STEP = 0.05  # seconds
TOLERANCE = 1e-9


def set_physics(env, theta):
    """Mass, length and gravity."""
    inside = env.unwrapped
    inside.m, inside.l, inside.g = 0.5 + theta[0], 0.5 + theta[1], 5 + 10 * theta[2]


def logged(observation, action, reward, after, info):
    """The environment's reward, the speed and the torque of the step."""
    return [reward, observation[2], TORQUES[action]]


def r_leader(theta, c):
    """Calm motion and little torque, by a design near the middle."""
    return -0.2 * c[..., 1] ** 2 - 0.2 * c[..., 2] ** 2 - 2 * ((theta - 0.5) ** 2).sum(-1)


def pendulum() -> gym.Env:
    """Pendulum-v1 with five torques."""
    env = gym.make("Pendulum-v1", disable_env_checker=True)
    return gym.wrappers.TransformAction(env, torque, gym.spaces.Discrete(5))


def torque(action):
    """The torque that an action stands for."""
    return TORQUES[[action]]


def led_pendulum(follower=None, **changed) -> BilevelWrapper:
    """The pendulum with its physics in θ."""
    env = ConfigurableDynamics(pendulum(), SPACE, set_physics, r_leader, PREFERENCES, components=logged, **changed)
    return BilevelWrapper(env, OnGrid() if follower is None else follower)


class Solved:
    """The follower's soft optimum at one θ on a grid of angles and speeds, and what it is worth to the leader.

    Args:
      theta: θ.
    """

    def __init__(self, theta):
        theta = np.asarray(theta, float)
        mass, length, gravity = 0.5 + theta[0], 0.5 + theta[1], 5 + 10 * theta[2]
        angle = -np.pi + 2 * np.pi * np.arange(ANGLES) / ANGLES
        angle, speed, push = (x.ravel() for x in np.meshgrid(angle, SPEEDS, TORQUES, indexing="ij"))
        faster = speed + STEP * (3 * gravity / (2 * length) * np.sin(angle) + 3 / (mass * length**2) * push)
        faster = faster.clip(-8, 8)
        numbers, weights = corners(angle + STEP * faster, faster)
        rows = np.repeat(np.arange(len(angle)), 4)
        shape = (len(angle), ANGLES * len(SPEEDS))
        moves = scipy.sparse.csr_matrix((weights.ravel(), (rows, numbers.ravel())), shape)
        paid = -(angle**2 + 0.1 * speed**2 + 0.001 * push**2)
        gamma, beta = PREFERENCES.gamma_follower, PREFERENCES.beta
        v, change = np.zeros(shape[1]), np.inf
        while change > TOLERANCE:
            q = (paid + gamma * (moves @ v)).reshape(-1, 5)
            new = beta * logsumexp(q / beta, axis=1)
            change, v = np.abs(new - v).max(), new
        self.q, self.v = q.reshape(ANGLES, -1, 5), v.reshape(ANGLES, -1)
        self.g = np.exp((q - v[:, None]) / beta)
        earned = -0.2 * speed**2 - 0.2 * push**2 - 2 * ((theta - 0.5) ** 2).sum()
        here = (self.g * earned.reshape(-1, 5)).sum(1)
        pairs = np.arange(len(angle))
        onward = scipy.sparse.csr_matrix((self.g.ravel(), (pairs // 5, pairs))) @ moves
        self.v_leader, change = np.zeros(shape[1]), np.inf
        while change > TOLERANCE:
            new = here + PREFERENCES.gamma_leader * (onward @ self.v_leader)
            change, self.v_leader = np.abs(new - self.v_leader).max(), new

    @property
    def objective(self) -> float:
        """J_L from the environment's first states: any angle, speeds in [−1, 1]."""
        angle, speed = (x.ravel() for x in np.meshgrid(np.linspace(-np.pi, np.pi, 400), np.linspace(-1, 1, 41)))
        share = np.where(np.abs(speed) > 0.99, 0.5, 1.0)
        numbers, weights = corners(angle, speed)
        return float(np.average((self.v_leader[numbers] * weights).sum(1), weights=share))


def corners(angle, speed):
    """Numbers of the four grid points around each, [K, 4], and their bilinear weights."""
    at = (angle + np.pi) % (2 * np.pi) / (2 * np.pi) * ANGLES
    i, x = np.floor(at).astype(int), at - np.floor(at)
    height = (speed.clip(-8, 8) + 8) / (SPEEDS[1] - SPEEDS[0])
    j = np.minimum(np.floor(height).astype(int), len(SPEEDS) - 2)
    y = height - j
    numbers = [(i + a) % ANGLES * len(SPEEDS) + j + b for a in (0, 1) for b in (0, 1)]
    weights = [(x if a else 1 - x) * (y if b else 1 - y) for a in (0, 1) for b in (0, 1)]
    return np.stack(numbers, -1), np.stack(weights, -1)


@functools.cache
def solved(*theta) -> Solved:
    """The optimum at θ."""
    return Solved(theta)


def true_gradient(theta, width=0.02):
    """Central differences of the best-response objective, [3]."""
    steps = width * np.eye(3)
    return np.array([(Solved(theta + e).objective - Solved(theta - e).objective) / (2 * width) for e in steps])


def interpolated(table, seen):
    """Values of a table [angles, speeds, D] at observations [K, 3], differentiable in them."""
    angle = torch.atan2(seen[:, 1], seen[:, 0]) / (2 * np.pi) * ANGLES + ANGLES / 2
    height = (seen[:, 2].clamp(-8, 8) + 8) / (SPEEDS[1] - SPEEDS[0])
    i, j = angle.detach().floor().long(), height.detach().floor().long().clamp(max=len(SPEEDS) - 2)
    x, y = (angle - i)[:, None], (height - j)[:, None]
    low, high = i % ANGLES, (i + 1) % ANGLES
    return (1 - x) * ((1 - y) * table[low, j] + y * table[low, j + 1]) + x * (
        (1 - y) * table[high, j] + y * table[high, j + 1]
    )


class OnGrid:
    """The soft optimum of the grid, told as networks that look at an observation."""

    beta = None
    capabilities = Capabilities(gives_values=True, learns=True)

    def respond(self, task, theta, model, init=None, learn=True):
        tables = [torch.from_numpy(solved(*one).q) for one in theta.tolist()]
        networks = tuple(lambda seen, q=q: interpolated(q, seen.double()) for q in tables)
        log_g = tuple(lambda seen, f=f: torch.log_softmax(f(seen) / PREFERENCES.beta, -1) for f in networks)
        values = NetworkActionValues(networks, PREFERENCES.beta)
        unknown = torch.zeros(len(theta), dtype=torch.float64)
        return BestResponse(NetworkCategorical(log_g), values, values, residual=unknown, optimal=True)
