"""A game without a known model, as a Gymnasium environment from the follower's side: one, or many as arrays."""

from __future__ import annotations

from typing import Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from bilevel_envs.core.checks import finite_numbers
from bilevel_envs.core.env_base import BLOCK, ConfigurableEnv, ConfigurableVectorEnv
from bilevel_envs.core.mdp import ConfigurableMDP, Numbers
from bilevel_envs.core.problems import check_problem
from bilevel_envs.worlds.declared.model import LeaderNetwork, SimulatedModel

PARTS = ("state_space", "action_space", "network", "start_size", "start_many", "advance_many", "ends")


class SimulatedProblem(ConfigurableMDP, Protocol):
    """What an environment needs of a game without a known model, beside the hooks of all problems."""

    @property
    def state_space(self) -> gym.spaces.Box:
        """What the follower observes: s̄ = (s, a), [n + m]."""

    @property
    def action_space(self) -> gym.Space:
        """The follower's actions: one number, or with `choices` an index of them."""

    @property
    def network(self) -> LeaderNetwork:
        """The leader's policy, whose weights are θ."""

    @property
    def start_size(self) -> int:
        """Uniform numbers that a first state takes."""

    @property
    def choices(self) -> np.ndarray | None:
        """The numbers that the actions 0, 1, ... stand for, [K]; None where actions are numbers themselves."""

    def start_many(self, uniform: np.ndarray) -> np.ndarray:
        """First states [N, n], from uniform numbers [N, start_size]."""

    def advance_many(
        self, state: np.ndarray, leader_action: np.ndarray, action: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states that follow [N, n], r_L and r_F [N], from states [N, n] and actions [N]."""

    def ends(self, state: np.ndarray) -> np.ndarray:
        """Whether the game is over in states [N, n] that a step led to, bool [N]."""


class _Stepper:
    """One game, and R leaders who play it side by side, each in as many environments, in NumPy."""

    def __init__(self, problem: SimulatedProblem, model: SimulatedModel, count: int) -> None:
        self.problem, self.network, self.theta = problem, model.network, model.theta.numpy()
        self.run = np.arange(count) // (count // model.runs)
        self.size, self.reply_size = model.network.sizes[0], model.network.sizes[-1]

    def first(self, uniform: np.ndarray, index: np.ndarray) -> np.ndarray:
        """First s̄ of the environments `index`, [len(index), n + m]."""
        start = uniform[:, : self.problem.start_size]
        return self._led(self.problem.start_many(start), uniform, index)

    def advance(
        self, state: np.ndarray, action: np.ndarray, uniform: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Next s̄ [count, n + m], r_F and whether the game is over [count], and what goes into `info`."""
        s, a = state[:, : self.size], state[:, self.size]
        following, r_leader, r_follower = self.problem.advance_many(s, a, action)
        arrived = self._led(following, uniform, np.arange(len(state)))
        return arrived, r_follower, self.problem.ends(following), {"leader_reward": r_leader}

    def _led(self, state: np.ndarray, uniform: np.ndarray, index: np.ndarray) -> np.ndarray:
        """s̄ = (s, a) with a as its leader draws it, from the last of the uniform numbers."""
        least = np.finfo(float).tiny  # of a uniform number that is 0
        normal = ndtri(np.maximum(uniform[:, -self.reply_size :], least))
        reply = np.empty((len(state), self.reply_size))
        for run in np.unique(self.run[index]):
            mine = self.run[index] == run
            theta = self.theta[run : run + 1]
            reply[mine] = self.network.sample(theta, state[mine][None], normal[mine][None])[0]
        return np.concatenate([state, reply], 1)


class SimulatedVectorEnv(ConfigurableVectorEnv[SimulatedModel]):
    """Many copies of a game, stepped as arrays; the leader's actions are drawn inside; autoreset mode SAME_STEP.

    Sub-environment i, seeded s + i, reproduces a scalar environment seeded s + i.

    Args:
      problem: the game; see `SimulatedEnv`.
      num_envs: how many copies.
      theta: first θ, see `configure`; the problem's default if None.
      max_episode_steps: time limit; None for none.
      render_mode: "rgb_array" or None.
    """

    problem: SimulatedProblem
    model_kind = SimulatedModel

    def __init__(
        self,
        problem: SimulatedProblem,
        num_envs: int = 1,
        theta: Numbers | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_problem(problem, *PARTS)
        self.draws = _draws(problem)
        states, actions = problem.state_space, problem.action_space
        super().__init__(problem, num_envs, theta, max_episode_steps, render_mode, states, actions)

    def _load(self, model: SimulatedModel) -> None:
        self._stepper = _Stepper(self.problem, model, self.num_envs)

    def _first(self, index: np.ndarray) -> np.ndarray:
        return self._stepper.first(self._uniform(index), index)

    def _checked(self, actions: ArrayLike) -> np.ndarray:
        return _as_pushes(self.problem, actions, (self.num_envs,), "actions")

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        return self._stepper.advance(self._state, action, self._uniform(np.arange(self.num_envs)))


class SimulatedEnv(ConfigurableEnv[SimulatedModel]):
    """The follower's side of a game: it observes s̄ = (s, a); the leader's actions are drawn inside.

    θ has one owner, `configure`; `theta=` and `reset(options={"theta": ...})` call it, and what they set stays in
    force until changed. A new θ takes effect at the next reset.

    Args:
      problem: the game. `state_space` and `action_space` are those of the environment, one number an action, or with
        `choices` an index of them; `network` leads; `start_many(uniform)`, with `start_size` uniform numbers a row,
        `advance_many(states, leader_actions, actions)` and `ends(states)` play many games side by side.
      theta: first θ; the problem's default if None.
      render_mode: "rgb_array", "human" (needs the extra `render`), or None.
    """

    vector_class = SimulatedVectorEnv
    problem: SimulatedProblem
    model_kind = SimulatedModel
    default_follower = None  # one has to learn

    def __init__(self, problem: SimulatedProblem, theta: Numbers | None = None, render_mode: str | None = None) -> None:
        check_problem(problem, *PARTS)
        self.observation_space, self.action_space = problem.state_space, problem.action_space
        super().__init__(problem, theta, render_mode)

    def _load(self, model: SimulatedModel) -> None:
        self._stepper = _Stepper(self.problem, model, 1)

    def _begin(self) -> np.ndarray:
        if self._fresh:
            self._block, self._fresh = np.empty((0, _draws(self.problem))), False
        return self._stepper.first(self._uniform(), np.zeros(1, int))[0]

    def _checked(self, action: ArrayLike) -> np.ndarray:
        return _as_pushes(self.problem, action, (), "action").reshape(1)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, float]]:
        arrived, reward, ended, info = self._stepper.advance(self._state[None], action, self._uniform())
        return arrived[0], float(reward[0]), bool(ended[0]), {key: float(value[0]) for key, value in info.items()}

    def _uniform(self) -> np.ndarray:
        """[1, draws]."""
        if not len(self._block):
            self._block = self.np_random.random((BLOCK, _draws(self.problem)))
        row, self._block = self._block[:1], self._block[1:]
        return row


def _draws(problem: SimulatedProblem) -> int:
    """Uniform numbers for a first state and an action of the leader's."""
    return problem.start_size + problem.network.sizes[-1]


def _as_pushes(problem: SimulatedProblem, actions: ArrayLike, shape: tuple[int, ...], name: str) -> np.ndarray:
    """One number per environment: the action itself, or what the chosen index stands for."""
    space = problem.action_space
    if not isinstance(space, gym.spaces.Discrete):
        return finite_numbers(actions, (*shape, *(space.shape or ())), name)[..., 0]
    array = np.asarray(actions)
    if array.dtype.kind not in "iu" or array.size != np.prod(shape) or array.min() < 0 or array.max() >= space.n:
        raise ValueError(f"`{name}` must be {np.prod(shape, dtype=int)} of 0 … {space.n - 1}, got {actions!r}")
    assert problem.choices is not None, "a Discrete space has choices"
    return problem.choices[array.reshape(shape)]
