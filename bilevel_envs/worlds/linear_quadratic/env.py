"""A linear-quadratic world as a Gymnasium environment: one, or many stepped as arrays."""

from __future__ import annotations

from typing import Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike

from bilevel_envs.core.checks import finite_numbers
from bilevel_envs.core.env_base import BLOCK, ConfigurableEnv, ConfigurableVectorEnv
from bilevel_envs.core.mdp import ConfigurableMDP, Numbers
from bilevel_envs.core.problems import check_problem
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel, truncated_normal

SPACES = ("state_space", "action_space")


class LinearProblem(ConfigurableMDP, Protocol):
    """What a linear-quadratic environment needs of a problem beside the hooks of all."""

    @property
    def state_space(self) -> gym.spaces.Box:
        """What the follower observes: states, [n]."""

    @property
    def action_space(self) -> gym.spaces.Box:
        """The follower's actions, [m]; nothing is clipped to it."""


class _Stepper:
    """R models side by side, each for as many environments, in NumPy."""

    def __init__(self, problem: ConfigurableMDP, model: LinearQuadraticModel, theta: np.ndarray, count: int) -> None:
        self.model, self.components = model, problem.components
        self.theta = np.repeat(theta.reshape(-1, *problem.theta_space.shape), count // model.runs, axis=0)
        self.runs, self.bound = model.runs, model.bound
        self.share = count // model.runs
        self.deviation = np.sqrt(model.noise.diagonal(dim1=-2, dim2=-1).numpy())[:, None]
        self.start = np.repeat(np.broadcast_to(model.start.numpy(), (model.runs, model.state_size)), self.share, axis=0)
        self.spread = np.sqrt(model.initial.diagonal(dim1=-2, dim2=-1).numpy())[:, None]

    def first(self, uniform: np.ndarray, index: np.ndarray) -> np.ndarray:
        """First states of the environments `index`, [len(index), n]."""
        return truncated_normal(self.start[index], self.spread[0], self.bound, uniform)

    def advance(
        self, state: np.ndarray, action: np.ndarray, uniform: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Next states [count, n], r_F [count], and what goes into `info`."""
        s, b = (torch.from_numpy(x.reshape(self.runs, self.share, -1)) for x in (state, action))
        noise = uniform.reshape(self.runs, self.share, -1)
        arrived = truncated_normal(self.model.mean_next(s, b).numpy(), self.deviation, self.bound, noise)
        info = {"leader_reward": self.model.r_leader(s, b).numpy().reshape(-1)}
        info |= self.components(state, action, self.theta)
        return arrived.reshape(state.shape), self.model.r_follower(s, b).numpy().reshape(-1), info


class LinearVectorEnv(ConfigurableVectorEnv[LinearQuadraticModel]):
    """Many copies of a linear-quadratic world, stepped as arrays; autoreset mode SAME_STEP.

    Sub-environment i, seeded s + i, reproduces a scalar environment seeded s + i.

    Args:
      problem: the configurable MDP; its `state_space` and `action_space` are those of one environment.
      num_envs: how many copies.
      theta: first θ, see `configure`; the problem's default if None.
      max_episode_steps: time limit; None for none.
      render_mode: "rgb_array" or None.
    """

    model_kind = LinearQuadraticModel

    def __init__(
        self,
        problem: LinearProblem,
        num_envs: int = 1,
        theta: Numbers | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_problem(problem, *SPACES)
        states, actions = problem.state_space, problem.action_space
        self.draws = states.shape[0]
        super().__init__(problem, num_envs, theta, max_episode_steps, render_mode, states, actions)

    def _load(self, model: LinearQuadraticModel) -> None:
        self._stepper = _Stepper(self.problem, model, self._theta, self.num_envs)

    def _first(self, index: np.ndarray) -> np.ndarray:
        return self._stepper.first(self._uniform(index), index)

    def _checked(self, actions: ArrayLike) -> np.ndarray:
        return finite_numbers(actions, (self.num_envs, *(self.single_action_space.shape or ())), "actions")

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        arrived, reward, info = self._stepper.advance(self._state, action, self._uniform(np.arange(self.num_envs)))
        return arrived, reward, np.zeros(self.num_envs, bool), info


class LinearEnv(ConfigurableEnv[LinearQuadraticModel]):
    """The follower's side of a linear-quadratic world: observations are states, actions vectors of any size.

    θ has one owner, `configure`; `theta=` and `reset(options={"theta": ...})` call it, and what they set stays in
    force until changed. A new θ takes effect at the next reset. Actions are not clipped to their space.

    Args:
      problem: the configurable MDP; its `state_space` and `action_space` are those of the environment.
      theta: first θ; the problem's default if None.
      render_mode: "rgb_array", "human" (needs the extra `render`), or None.
    """

    vector_class = LinearVectorEnv
    model_kind = LinearQuadraticModel
    default_follower = "riccati"

    def __init__(self, problem: LinearProblem, theta: Numbers | None = None, render_mode: str | None = None) -> None:
        check_problem(problem, *SPACES)
        self.observation_space, self.action_space = problem.state_space, problem.action_space
        super().__init__(problem, theta, render_mode)

    def _load(self, model: LinearQuadraticModel) -> None:
        self._stepper = _Stepper(self.problem, model, self._theta, 1)

    def _begin(self) -> np.ndarray:
        if self._fresh:
            self._block, self._fresh = np.empty((0, *(self.observation_space.shape or ()))), False
        self._path = [self._stepper.first(self._uniform(), np.zeros(1, int))[0]]
        return self._path[0]

    def _checked(self, action: ArrayLike) -> np.ndarray:
        return finite_numbers(action, self.action_space.shape, "action")

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, float]]:
        arrived, reward, info = self._stepper.advance(self._state[None], action[None], self._uniform())
        self._path.append(arrived[0])
        return arrived[0], float(reward[0]), False, {key: float(value[0]) for key, value in info.items()}

    def _uniform(self) -> np.ndarray:
        """[1, n]."""
        if not len(self._block):
            self._block = self.np_random.random((BLOCK, *(self.observation_space.shape or ())))
        row, self._block = self._block[:1], self._block[1:]
        return row

    def _frame(self) -> np.ndarray:
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `render`")
        return self._picture(np.stack(self._path), self._theta)
