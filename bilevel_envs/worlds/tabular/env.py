"""A configurable table as a Gymnasium environment: one, or many stepped as arrays."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike

from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.env_base import BLOCK, ConfigurableEnv, ConfigurableVectorEnv, Face
from bilevel_envs.core.mdp import ConfigurableMDP, Numbers
from bilevel_envs.core.problems import check_model, check_problem, completed
from bilevel_envs.worlds.tabular.kernels import first_states, step_copies
from bilevel_envs.worlds.tabular.model import Stepping, TabularModel

OBSERVATIONS = ("index", "vector")
NO_LIMIT = 2**62
NO_ACTION = -1  # what `step_copies` returns instead of a count


class _TabularFace(Face[TabularModel]):
    """The tables' size and what the follower sees of a state."""

    model_kind = TabularModel

    def _look_at(self, problem: ConfigurableMDP, observation: str) -> gym.Space:
        """Sets the sizes; returns the space of observations."""
        check_problem(problem)
        problem = completed(problem)
        check_choice(observation, OBSERVATIONS, "observation")
        vectors = problem.vector_space
        if observation == "vector" and vectors is None:
            raise ValueError(f'`observation` must be "index" for {type(problem).__name__}, got "vector"')
        self.observation = observation
        model = cast(TabularModel, problem.simulator(torch.tensor(problem.default_theta, dtype=torch.float64)[None]))
        check_model(model, problem, "simulator", TabularModel)
        self.states, self.actions = model.states, model.actions
        return gym.spaces.Discrete(self.states) if observation == "index" or vectors is None else vectors

    def observations(self) -> np.ndarray:
        """What the follower sees in each state, [S] or [S, ...]."""
        return self._observe(np.arange(self.states))

    def _observe(self, state: Any) -> Any:
        return self.problem.observe(state) if self.observation == "vector" else state


class TabularVectorEnv(_TabularFace, ConfigurableVectorEnv[TabularModel]):
    """Many copies of a configurable table, stepped as arrays; autoreset mode SAME_STEP.

    Sub-environment i, seeded s + i, reproduces a scalar environment seeded s + i.

    Args:
      problem: the configurable MDP.
      num_envs: how many copies.
      theta: first θ, see `configure`; the problem's default if None.
      observation: "index" or "vector".
      max_episode_steps: time limit; None for none.
      render_mode: "rgb_array" or None.
      copy: whether `reset` and `step` return a copy of the observations; with False, the next call writes its own
        numbers of states into the array that the last one returned.
    """

    def __init__(
        self,
        problem: ConfigurableMDP,
        num_envs: int = 1,
        theta: Numbers | None = None,
        observation: str = "index",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        copy: bool = True,
    ) -> None:
        space = self._look_at(problem, observation)
        actions = gym.spaces.Discrete(self.actions)
        self.copy = copy
        super().__init__(problem, num_envs, theta, max_episode_steps, render_mode, space, actions)
        self._seen = np.empty(self.num_envs, np.int64)
        self._streams = np.empty((self.num_envs, 4), np.uint64)
        whole, real = [np.empty(self.num_envs, kind) for kind in (np.int64,) * 3], np.empty(self.num_envs)
        self._last = (*whole[:2], real, whole[2])  # index, state, r_L and step of the episodes that end with a step

    def step(self, actions: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every environment, in one compiled loop; those that end start anew in the same call."""
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `step`")
        action, n = self._checked(actions), self.num_envs
        observed = np.empty(n, np.int64) if self.copy else self._seen
        reward, terminated, truncated = np.empty(n), np.empty(n, bool), np.empty(n, bool)
        paid, step, on = np.empty(n), np.empty(n, np.int64), np.empty(n, bool)
        told = (observed, reward, terminated, truncated, paid, step, on)
        limit = NO_LIMIT if self.time_limit is None else self.time_limit
        ended = step_copies(action, limit, self._tables, self._streams, (self._state, self._step), told, self._last)
        if ended == NO_ACTION:
            raise ValueError(f"`actions` must lie in 0 … {self.actions - 1}, got {actions!r}")
        infos: dict[str, object] = {"leader_reward": paid, "step": step, "_leader_reward": on, "_step": on}
        if ended:
            infos |= self._final(*(part[:ended] for part in self._last), where=~on)
        return self._observe(observed), reward, terminated, truncated, infos

    def _final(
        self, index: np.ndarray, reached: np.ndarray, paid: np.ndarray, step: np.ndarray, where: np.ndarray
    ) -> dict[str, object]:
        """What Gymnasium tells of the episodes that ended, those of the environments `index`."""
        observations, last_paid, last_step = (
            np.empty(len(where), object),
            np.zeros(len(where)),
            np.zeros_like(self._step),
        )
        seen = list(self._observe(reached.copy()))
        if self.observation == "index":
            observations[index] = seen
        else:
            for one, observation in zip(index, seen, strict=True):
                observations[one] = observation
        last_paid[index], last_step[index] = paid, step
        info = {"leader_reward": last_paid, "step": last_step, "_leader_reward": where, "_step": where}
        return {"final_obs": observations, "_final_obs": where, "final_info": info, "_final_info": where}

    def _checked(self, actions: ArrayLike) -> np.ndarray:
        """As int64 [n]; whether they are in range is seen by the loop."""
        action = np.asarray(actions)
        if action.shape != (self.num_envs,) or action.dtype.kind not in "iu":
            raise ValueError(f"`actions` must be whole numbers of shape [{self.num_envs}], got {actions!r}")
        return np.ascontiguousarray(action, np.int64)  # an uint64 too large becomes negative

    def _load(self, model: TabularModel) -> None:
        moves, rewards = model.structure.stepping, (model.r_follower, model.r_leader)
        r_follower, r_leader = (np.ascontiguousarray(reward.numpy()) for reward in rewards)
        first = (moves.starts.states, moves.starts.cdf)
        self._tables = (moves.successor, moves.cdf, r_follower, r_leader, moves.ends, *first, model.runs)

    def _first(self, index: np.ndarray) -> np.ndarray:
        *_, states, cdf, runs = self._tables
        return first_states(states, cdf, self._streams, index, self.num_envs // runs)

    def _seed(self, seeds: list[int | None], mask: np.ndarray) -> None:
        """Streams as the compiled loops move them: the numbers are those of a generator with the same seed."""
        unseeded = self._state is None
        for index, seed in enumerate(seeds):
            if unseeded or (seed is not None and mask[index]):
                generator, _ = gym.utils.seeding.np_random(seed)
                self._streams[index] = _stream(cast(np.random.PCG64, generator.bit_generator))
                if index == 0:  # a stream of its own for whoever asks for `np_random`
                    self._np_random = np.random.Generator(cast(np.random.PCG64, generator.bit_generator).jumped())
        self._np_random_seed = seeds[0]

    def _shown(self) -> np.ndarray:
        self._seen[:] = self._state
        return self._observe(self._seen.copy() if self.copy else self._seen)


class TabularEnv(_TabularFace, ConfigurableEnv[TabularModel]):
    """The follower's side of a configurable table: observations are states, actions are the follower's.

    θ has one owner, `configure`; `theta=` and `reset(options={"theta": ...})` call it, and what they set stays in
    force until changed. A new θ takes effect at the next reset.

    Args:
      problem: the configurable MDP.
      theta: first θ; the problem's default if None.
      observation: "index" for the state's number, or "vector" where the problem has one.
      render_mode: "rgb_array", "human" (needs the extra `render`), or None.
    """

    vector_class = TabularVectorEnv
    face: ClassVar[tuple[str, ...]] = ("observation",)

    def copies(self, count: int, max_episode_steps: int | None = None) -> TabularVectorEnv:
        """So many copies in which a follower may learn, stepped as arrays."""
        return TabularVectorEnv(self.problem, count, observation=self.observation, max_episode_steps=max_episode_steps)

    def __init__(
        self,
        problem: ConfigurableMDP,
        theta: Numbers | None = None,
        observation: str = "index",
        render_mode: str | None = None,
    ) -> None:
        self.observation_space = self._look_at(problem, observation)
        self.action_space = gym.spaces.Discrete(self.actions)
        self._loaded: Stepping | None = None
        super().__init__(problem, theta, render_mode)

    # Both tables are those of the θ set last, which is in force from the next reset on.

    @property
    def P(self) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
        """The simulator's table in toy-text form: P[s][b] = [(probability, s', r_F, terminated), ...]."""
        return self._table[0]

    @property
    def initial_state_distrib(self) -> np.ndarray:
        """ρ0, [S]."""
        return self._table[1]

    @property
    def _table(self) -> tuple[dict, np.ndarray]:
        model = self.simulator(self._theta)
        transition, reward = model.transition[0].numpy(), model.r_follower[0].numpy()
        ends = model.continues[0].numpy() == 0
        table = {
            s: {
                b: [
                    (float(transition[s, b, t]), int(t), float(reward[s, b]), bool(ends[s, b]))
                    for t in np.flatnonzero(transition[s, b])
                ]
                for b in range(self.actions)
            }
            for s in range(self.states)
        }
        return table, model.initial[0].numpy().copy()

    def _load(self, model: TabularModel) -> None:
        """Stepping tables as Python lists: several times faster than array look-ups, one state at a time."""
        tables = model.structure.stepping
        self._start_cdf = tables.start_cdf[0].tolist()
        if self._loaded is not tables:
            self._successor, self._cdf, self._loaded = (
                tables.successor[0].tolist(),
                tables.cdf[0].tolist(),
                tables,
            )
        columns = (model.r_follower[0], model.r_leader[0], model.continues[0] == 0)
        rows = [column.tolist() for column in columns]
        self._outcome = [list(zip(*state, strict=True)) for state in zip(*rows, strict=True)]

    def _begin(self) -> int:
        if self._fresh:
            self._uniforms: list[float] = []
            self._fresh = False
        return bisect_right(self._start_cdf, self._uniform())

    def _checked(self, action: ArrayLike) -> int:
        if not self.action_space.contains(action) and not _is_index(action, self.actions):
            raise ValueError(f"`action` must lie in {self.action_space}, got {action!r}")
        return int(np.asarray(action).reshape(()))

    def _advance(self, action: int) -> tuple[int, float, bool, dict[str, float]]:
        state = self._state
        reward, leader_reward, terminated = self._outcome[state][action]
        arrived = self._successor[state][action][bisect_right(self._cdf[state][action], self._uniform())]
        return arrived, reward, terminated, {"leader_reward": leader_reward}

    def _uniform(self) -> float:
        if not self._uniforms:
            self._uniforms = self.np_random.random(BLOCK)[::-1].tolist()
        return self._uniforms.pop()


def _stream(generator: np.random.PCG64) -> tuple[int, ...]:
    """The state of a generator as `kernels.next_uniform` takes it."""
    state = cast(dict, generator.state)["state"]
    return tuple(half for number in (state["state"], state["inc"]) for half in divmod(number, 2**64))


def _is_index(action: ArrayLike, count: int) -> bool:
    """Whether an action is a whole number in range, also as a 0-d or one-entry array as policies give it."""
    array = np.asarray(action)
    return array.dtype.kind in "iu" and array.size == 1 and 0 <= int(array.reshape(())) < count
