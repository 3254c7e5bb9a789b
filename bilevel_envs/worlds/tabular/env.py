"""A configurable table as a Gymnasium environment: one, or many stepped as arrays."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike

from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.env_base import BLOCK, ConfigurableEnv, ConfigurableVectorEnv, Face
from bilevel_envs.core.mdp import ConfigurableMDP, Numbers
from bilevel_envs.core.problems import check_model, check_problem, completed, simulated_at_first
from bilevel_envs.worlds.tabular.kernels.drawing import first_states, step_copies
from bilevel_envs.worlds.tabular.model import Stepping, TabularModel

OBSERVATIONS = ("index", "vector")
MOST_LISTED = 10_000  # states; rows of larger tables are not kept as Python lists
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
        model = cast(TabularModel, simulated_at_first(problem))
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
        self._which, self._reached = np.empty(self.num_envs, np.int64), np.empty(self.num_envs, np.int64)
        self._ended = _nothing_ended(self.num_envs)

    def step(self, actions: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every environment, in one compiled loop; those that end start anew in the same call."""
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `step`")
        action, n = self._checked(actions), self.num_envs
        observed = np.empty(n, np.int64) if self.copy else self._seen
        reward, terminated, truncated = np.empty(n), np.empty(n, bool), np.empty(n, bool)
        going, paid, step = np.empty(n, bool), np.empty(n), np.empty(n, np.int64)
        told = (observed, reward, terminated, truncated, going, paid, step)
        limit = NO_LIMIT if self.time_limit is None else self.time_limit
        last = (self._which, self._reached, *self._ended)
        ended = step_copies(action, limit, self._tables, self._streams, (self._state, self._step), told, last)
        if ended == NO_ACTION:
            raise ValueError(f"`actions` must lie in 0 … {self.actions - 1}, got {actions!r}")
        infos: dict[str, object] = {"leader_reward": paid, "step": step, "_leader_reward": going, "_step": going}
        if ended:
            infos |= self._final(ended)
        return self._observe(observed), reward, terminated, truncated, infos

    def _final(self, ended: int) -> dict[str, object]:
        """What Gymnasium tells of so many episodes that ended."""
        (where, paid, step), self._ended = self._ended, _nothing_ended(self.num_envs)
        observations, which = np.empty(self.num_envs, object), self._which[:ended]
        seen = self._observe(self._reached[:ended].copy())
        if self.observation == "index":
            observations[which] = seen
        else:  # NumPy would take vectors for a matrix
            for index, observation in zip(which, seen, strict=True):
                observations[index] = observation
        info = {"leader_reward": paid, "step": step, "_leader_reward": where, "_step": where}
        return {"final_obs": observations, "_final_obs": where, "final_info": info, "_final_info": where}

    def _checked(self, actions: ArrayLike) -> np.ndarray:
        """As int64 [n]; whether they are in range is seen by the loop."""
        action = np.asarray(actions)
        if action.shape != (self.num_envs,) or action.dtype.kind not in "iu":
            raise ValueError(f"`actions` must be whole numbers of shape [{self.num_envs}], got {actions!r}")
        return np.ascontiguousarray(action, np.int64)  # an uint64 too large becomes negative

    def _load(self, model: TabularModel) -> None:
        moves, starts = model.structure.stepping, model.structure.stepping.starts
        rewards = (model.r_follower.numpy(), model.r_leader.numpy())
        pairs = (x.reshape(len(x), -1, *x.shape[3:]) for x in (moves.successor, moves.cdf, *rewards, moves.ends))
        tables = (*pairs, starts.states, starts.cdf)
        self._tables = (*map(np.ascontiguousarray, tables), model.actions, model.runs)  # else another loop is compiled
        self._starts, self._share = starts, self.num_envs // model.runs

    def _first(self, index: np.ndarray) -> np.ndarray:
        return first_states(self._starts.states, self._starts.cdf, self._streams, index, self._share)

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
    def P(self) -> Mapping[int, dict[int, list[tuple[float, int, float, bool]]]]:
        """The simulator's table in toy-text form: P[s][b] = [(probability, s', r_F, terminated), ...]."""
        return _ToyText(self.simulator(self._theta))

    @property
    def initial_state_distrib(self) -> np.ndarray:
        """ρ0, [S]."""
        return self.simulator(self._theta).initial[0].numpy().copy()

    def _load(self, model: TabularModel) -> None:
        """Small tables as Python lists: several times faster than array look-ups, one state at a time."""
        moves = model.structure.stepping
        if self._loaded is not moves:
            self._moves, self._loaded = _Rows(moves.successor[0], moves.cdf[0]), moves
            starts = (moves.starts.states[0], moves.starts.cdf[0])
            self._first, self._first_cdf = (x.tolist() if len(x) <= MOST_LISTED else x for x in starts)
        self._outcomes = _Rows(model.r_follower[0].numpy(), model.r_leader[0].numpy(), moves.ends[0])

    def _begin(self) -> int:
        if self._fresh:
            self._uniforms: list[float] = []
            self._fresh = False
        return int(self._first[bisect_right(self._first_cdf, self._uniform())])

    def _checked(self, action: ArrayLike) -> int:
        if not self.action_space.contains(action) and not _is_index(action, self.actions):
            raise ValueError(f"`action` must lie in {self.action_space}, got {action!r}")
        return int(np.asarray(action).reshape(()))

    def _advance(self, action: int) -> tuple[int, float, bool, dict[str, float]]:
        state = self._state
        if self.states <= MOST_LISTED:
            reward, leader_reward, terminated = self._outcomes[state][action]
            successor, cdf = self._moves[state][action]
            arrived = successor[bisect_right(cdf, self._uniform())]
        else:
            reward, leader_reward, terminated = (table.item(state, action) for table in self._outcomes.tables)
            successor, cdf = self._moves.tables
            arrived = successor.item(state, action, bisect_right(cdf[state, action], self._uniform()))
        return arrived, reward, terminated, {"leader_reward": leader_reward}

    def _uniform(self) -> float:
        if not self._uniforms:
            self._uniforms = self.np_random.random(BLOCK)[::-1].tolist()
        return self._uniforms.pop()


class _Rows(dict[int, list[tuple]]):
    """Rows of tables [S, B, ...] as Python lists, made when a state is first visited: one tuple per action."""

    def __init__(self, *tables: np.ndarray) -> None:
        super().__init__()
        self.tables = tables

    def __missing__(self, state: int) -> list[tuple]:
        row = self[state] = list(zip(*(table[state].tolist() for table in self.tables), strict=True))
        return row


class _ToyText(Mapping[int, dict[int, list[tuple[float, int, float, bool]]]]):
    """A model in toy-text form, the row of a state made when it is asked for."""

    def __init__(self, model: TabularModel) -> None:
        moves = model.structure.stepping
        self._states = model.states
        self._rows = _Rows(moves.successor[0], moves.probability[0], model.r_follower[0].numpy(), moves.ends[0])

    def __getitem__(self, state: int) -> dict[int, list[tuple[float, int, float, bool]]]:
        if state not in range(self._states):
            raise KeyError(state)
        return {
            action: [(p, s, reward, end) for s, p in sorted(zip(successor, probability, strict=True)) if p > 0]
            for action, (successor, probability, reward, end) in enumerate(self._rows[int(state)])
        }

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._states))

    def __len__(self) -> int:
        return self._states


def _nothing_ended(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Room for which episodes a step ends, their r_L and their step."""
    return np.zeros(n, bool), np.zeros(n), np.zeros(n, np.int64)


def _stream(generator: np.random.PCG64) -> tuple[int, ...]:
    """The state of a generator as `kernels.next_uniform` takes it."""
    state = cast(dict, generator.state)["state"]
    return tuple(half for number in (state["state"], state["inc"]) for half in divmod(number, 2**64))


def _is_index(action: ArrayLike, count: int) -> bool:
    """Whether an action is a whole number in range, also as a 0-d or one-entry array as policies give it."""
    array = np.asarray(action)
    return array.dtype.kind in "iu" and array.size == 1 and 0 <= int(array.reshape(())) < count
