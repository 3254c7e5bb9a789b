"""A configurable table as a Gymnasium environment: one, or many stepped as arrays."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from bilevel_envs._checks import check_choice, check_count
from bilevel_envs.model import BestKnown, ConfigurableMDP, Parameterization, Preferences
from bilevel_envs.noise import Noise
from bilevel_envs.tabular import TabularModel

BLOCK = 512  # uniform numbers drawn at a time
OBSERVATIONS = ("index", "vector")


def as_theta(problem: ConfigurableMDP, theta: Any) -> np.ndarray:
    """θ as float64 ``[..., *θ.shape]``, refused with a ValueError unless it lies in the problem's space."""
    if isinstance(theta, Tensor):
        theta = theta.detach().numpy()
    try:
        array = np.array(theta)
    except ValueError:  # ragged
        array = np.array(None)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"`theta` must be an array of real numbers, got {type(theta).__name__} of {array.dtype}")
    array = array.astype(np.float64)
    wanted = problem.theta_space.shape
    if array.ndim not in (len(wanted), len(wanted) + 1) or array.size == 0:
        raise ValueError(
            f"`theta` must have shape {list(wanted)}, or a leading runs axis before it, got {list(array.shape)}"
        )
    problem.check_theta(array)
    return array


class _TabularFace:
    """What the scalar and the vector form share: the problem, its tables and its spaces."""

    def __init__(self, problem: ConfigurableMDP, observation: str) -> None:
        check_choice(observation, OBSERVATIONS, "observation")
        if observation == "vector" and not hasattr(problem, "observe"):
            raise ValueError(f'`observation` must be "index" for {type(problem).__name__}, got "vector"')
        self.problem = problem
        self.observation = observation
        self._theta: np.ndarray
        model = cast(TabularModel, problem.simulator(torch.tensor(problem.default_theta)[None]))
        self.states, self.actions = model.states, model.actions

    @property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be."""
        return self.problem.theta_space

    @property
    def theta(self) -> np.ndarray:
        """The θ that was set last, a copy; `configure` changes it."""
        return self._theta.copy()

    @property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return self.problem.preferences

    @property
    def best_known(self) -> BestKnown | None:
        """The best leader value known, with its source."""
        return self.problem.best_known(self.preferences)

    def parameterization(self, runs: int = 1, seed: int = 0) -> Parameterization:
        """The default parameterisation of θ, freshly initialised; run i with the stream of seed + i."""
        return self.problem.parameterization(runs, Noise([seed + run for run in range(runs)]))

    def model(self, theta: Any) -> TabularModel:
        """The follower's MDP at θ, ``[*θ.shape]`` or ``[R, *θ.shape]``; a tensor with gradients keeps them."""
        return cast(TabularModel, self.problem.model(self._runs_first(theta)))

    def simulator(self, theta: Any) -> TabularModel:
        """The world that `step` simulates at θ."""
        return cast(TabularModel, self.problem.simulator(self._runs_first(theta)))

    def _runs_first(self, theta: Any) -> Tensor:
        checked = as_theta(self.problem, theta)
        followed = isinstance(theta, Tensor) and theta.requires_grad
        theta = theta.double() if followed else torch.tensor(checked)
        return theta[None] if theta.ndim == len(self.theta_space.shape) else theta

    def _state_space(self) -> gym.Space:
        if self.observation == "vector":
            return self.problem.vector_space  # type: ignore[attr-defined]
        return gym.spaces.Discrete(self.states)

    def _observe(self, state: Any) -> Any:
        return self.problem.observe(state) if self.observation == "vector" else state  # type: ignore[attr-defined]


class TabularEnv(_TabularFace, gym.Env):
    """The follower's side of a configurable table: observations are states, actions are the follower's.

    θ has one owner, `configure`; `theta=` and `reset(options={"theta": ...})` call it, and what they set stays in
    force until changed. A new θ takes effect at the next reset.

    Args:
      problem: the configurable MDP.
      theta: first θ; the problem's default if None.
      observation: "index" for the state's number, or "vector" where the problem has one.
      render_mode: "rgb_array", "human" (needs the extra `render`), or None.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        problem: ConfigurableMDP,
        theta: Any = None,
        observation: str = "index",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(problem, observation)
        check_render_mode(render_mode, self.metadata["render_modes"], problem)
        self.render_mode = render_mode
        self.observation_space = self._state_space()
        self.action_space = gym.spaces.Discrete(self.actions)
        self._window: Any = None
        self._state: int | None = None
        self.configure(problem.default_theta if theta is None else theta)

    def configure(self, theta: Any) -> None:
        """Sets θ, in force from the next reset on.

        Args:
          theta: ``[*θ.shape]``.

        Raises:
          ValueError: if θ has the wrong shape or lies outside `theta_space`; the old θ then stays.
        """
        array = as_theta(self.problem, theta)
        if array.shape != self.theta_space.shape:
            raise ValueError(f"`theta` must have shape {list(self.theta_space.shape)}, got {list(array.shape)}")
        self._theta = array
        self._pending: TabularModel | None = self.simulator(array)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts an episode; `options={"theta": θ}` configures first."""
        super().reset(seed=seed)
        check_options(options)
        if options and "theta" in options:
            self.configure(options["theta"])
        if self._pending is not None:
            self._load(self._pending)
            self._pending = None
        if seed is not None or not hasattr(self, "_uniforms"):
            self._uniforms: list[float] = []
        self._state = bisect_right(self._start_cdf, self._uniform())
        self._step, self._over = 0, False
        self._show()
        return self._observe(self._state), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; the rewards are those of the state in which it begins."""
        if self._state is None or self._over:
            raise gym.error.ResetNeeded("call `reset` before `step`; the last episode is over or none has begun")
        if not self.action_space.contains(action) and not _is_index(action, self.actions):
            raise ValueError(f"`action` must lie in {self.action_space}, got {action!r}")
        state, action = self._state, int(np.asarray(action).reshape(()))
        reward, leader_reward, terminated = self._outcome[state][action]
        arrived = self._successor[state][action][bisect_right(self._cdf[state][action], self._uniform())]
        info = {"leader_reward": leader_reward, "step": self._step}
        self._step += 1
        self._state, self._over = arrived, terminated
        self._show()
        return self._observe(arrived), reward, terminated, False, info

    def render(self) -> np.ndarray | None:
        """The present state as a picture, uint8 [height, width, 3]; None in mode "human", which draws by itself."""
        if self.render_mode is None:
            gym.logger.warn('no picture: make the environment with render_mode="rgb_array" or "human"')
            return None
        return self._frame() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

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
        if getattr(self, "_loaded", None) is not tables:
            self._successor, self._cdf, self._loaded = (
                tables.successor[0].tolist(),
                tables.cdf[0].tolist(),
                tables,
            )
        columns = (model.r_follower[0], model.r_leader[0], model.continues[0] == 0)
        rows = [column.tolist() for column in columns]
        self._outcome = [list(zip(*state, strict=True)) for state in zip(*rows, strict=True)]

    def _uniform(self) -> float:
        if not self._uniforms:
            self._uniforms = self.np_random.random(BLOCK)[::-1].tolist()
        return self._uniforms.pop()

    def _frame(self) -> np.ndarray:
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `render`")
        return self.problem.draw(self._state, self._theta)  # type: ignore[attr-defined]

    def _show(self) -> None:
        if self.render_mode == "human":
            if self._window is None:
                self._window = import_module("bilevel_envs.window").Window(self.metadata["render_fps"])
            self._window.show(self._frame())


class TabularVectorEnv(_TabularFace, gym.vector.VectorEnv):
    """Many copies of a configurable table, stepped as arrays; autoreset mode SAME_STEP.

    Environment i, seeded with s + i, lives the same life as a scalar environment seeded with s + i.

    Args:
      problem: the configurable MDP.
      num_envs: how many copies.
      theta: first θ, see `configure`; the problem's default if None.
      observation: "index" or "vector".
      max_episode_steps: time limit; None for none.
      render_mode: "rgb_array" or None.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        problem: ConfigurableMDP,
        num_envs: int = 1,
        theta: Any = None,
        observation: str = "index",
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(problem, observation)
        check_render_mode(render_mode, self.metadata["render_modes"], problem)
        self.num_envs = check_count(num_envs, "num_envs")
        self.time_limit = None if max_episode_steps is None else check_count(max_episode_steps, "max_episode_steps")
        self.render_mode = render_mode
        self.single_observation_space = self._state_space()
        self.single_action_space = gym.spaces.Discrete(self.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = []
        self.configure(problem.default_theta if theta is None else theta)

    def configure(self, theta: Any) -> None:
        """Sets θ, in force from the next reset of all environments on.

        Args:
          theta: ``[*θ.shape]`` for all, or ``[R, *θ.shape]`` with R dividing `num_envs`: environment i then obeys
            θ[i // (num_envs / R)].

        Raises:
          ValueError: if θ does not fit or lies outside `theta_space`; the old θ then stays.
        """
        array = as_theta(self.problem, theta)
        extra = array.shape[: array.ndim - len(self.theta_space.shape)]
        if len(extra) > 1 or (extra and (extra[0] == 0 or self.num_envs % extra[0])):
            raise ValueError(
                f"`theta` must have shape {list(self.theta_space.shape)}, or one more leading axis that divides "
                f"num_envs = {self.num_envs}; got {list(array.shape)}"
            )
        self._theta = array
        self._pending: TabularModel | None = self.simulator(array)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in every environment, or in those of `options["reset_mask"]`."""
        check_options(options, vector=True)
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ValueError(f"`reset_mask` must be bool [{self.num_envs}] with a True, got {mask!r}")
        if "theta" in options:
            self.configure(options["theta"])
        seeds: list[int | None]
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"`seed` must give one seed per environment ({self.num_envs}), got {len(seeds)}")
        if not mask.all() and not hasattr(self, "_state"):
            raise gym.error.ResetNeeded("reset all environments once before resetting some by `reset_mask`")
        self._seed(seeds, mask)
        if self._pending is not None and mask.all():
            self._load(self._pending)
            self._pending = None
        if mask.all():
            self._state, self._step = np.zeros(self.num_envs, int), np.zeros(self.num_envs, int)
        self._begin(np.flatnonzero(mask))
        return self._observe(self._state.copy()), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every environment; those that end start anew in the same call."""
        if not hasattr(self, "_state"):
            raise gym.error.ResetNeeded("call `reset` before `step`")
        action = np.asarray(actions)
        if action.shape != (self.num_envs,) or action.dtype.kind not in "iu":
            raise ValueError(f"`actions` must be whole numbers of shape [{self.num_envs}], got {actions!r}")
        if action.min() < 0 or action.max() >= self.actions:
            raise ValueError(f"`actions` must lie in 0 … {self.actions - 1}, got {actions!r}")
        pair = (self._offset + self._state) * self.actions + action
        move = (self._moves_at + self._state) * self.actions + action
        uniform = self._uniform(np.arange(self.num_envs))
        arrived = self._successor[move, (self._cdf[move] <= uniform[:, None]).sum(1)]
        reward, leader_reward, terminated = self._r_follower[pair], self._r_leader[pair], self._ends[pair]
        self._step += 1
        truncated = np.zeros(self.num_envs, bool) if self.time_limit is None else self._step >= self.time_limit
        ended = terminated | truncated
        everyone = np.ones(self.num_envs, bool)
        infos: dict[str, Any] = {
            "leader_reward": leader_reward,
            "_leader_reward": everyone,
            "step": self._step - 1,
            "_step": everyone,
        }
        self._state = arrived
        if ended.any():
            final = np.empty(self.num_envs, object)
            reached = self._observe(arrived)
            for index in np.flatnonzero(ended):
                final[index] = reached[index]
            infos = {
                key: value & ~ended if key[0] == "_" else np.where(ended, 0, value) for key, value in infos.items()
            }
            infos["final_obs"], infos["_final_obs"] = final, ended
            infos["final_info"] = {
                "leader_reward": np.where(ended, leader_reward, 0.0),
                "_leader_reward": ended,
                "step": np.where(ended, self._step - 1, 0),
                "_step": ended,
            }
            infos["_final_info"] = ended
            self._state = arrived.copy()
            self._begin(np.flatnonzero(ended))
        return self._observe(self._state.copy()), reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture per environment."""
        if self.render_mode is None:
            gym.logger.warn('no picture: make the environments with render_mode="rgb_array"')
            return None
        if not hasattr(self, "_state"):
            raise gym.error.ResetNeeded("call `reset` before `render`")
        thetas = self._theta.reshape(-1, *self.theta_space.shape)
        share = self.num_envs // len(thetas)
        draw = self.problem.draw  # type: ignore[attr-defined]
        return tuple(draw(int(state), thetas[index // share]) for index, state in enumerate(self._state))

    def _load(self, model: TabularModel) -> None:
        tables = model.structure.stepping
        states = np.arange(self.num_envs) // (self.num_envs // model.runs) * model.states
        self._offset = states if model.runs > 1 else 0
        self._moves_at = states if tables.cdf.shape[0] > 1 else 0
        self._cdf = tables.cdf.reshape(-1, tables.cdf.shape[-1])
        self._successor = tables.successor.reshape(self._cdf.shape)
        self._start_cdf = np.broadcast_to(tables.start_cdf, (model.runs, model.states))
        flat = (model.runs, model.states, model.actions)
        self._r_follower = model.r_follower.expand(flat).reshape(-1).numpy()
        self._r_leader = model.r_leader.expand(flat).reshape(-1).numpy()
        self._ends = (model.continues.expand(flat).reshape(-1) == 0).numpy()
        self._run = np.arange(self.num_envs) // (self.num_envs // model.runs)

    def _begin(self, index: np.ndarray) -> None:
        """Puts the environments `index` at the start of an episode."""
        cdf = self._start_cdf[self._run[index]]
        self._state[index] = (cdf <= self._uniform(index)[:, None]).sum(1)
        self._step[index] = 0

    def _seed(self, seeds: list[int | None], mask: np.ndarray) -> None:
        if not self._generators:
            self._generators = [np.random.default_rng() for _ in seeds]
            self._block = np.empty((self.num_envs, BLOCK))
            self._read = np.full(self.num_envs, BLOCK)
        for index, seed in enumerate(seeds):
            if seed is not None and mask[index]:
                self._generators[index] = gym.utils.seeding.np_random(seed)[0]
                self._read[index] = BLOCK
        self._np_random, self._np_random_seed = self._generators[0], seeds[0]

    def _uniform(self, index: np.ndarray) -> np.ndarray:
        """The next uniform number of each environment in `index`, from its own stream."""
        for empty in index[self._read[index] == BLOCK]:
            self._generators[empty].random(out=self._block[empty])
            self._read[empty] = 0
        uniform = self._block[index, self._read[index]]
        self._read[index] += 1
        return uniform


def check_options(options: Mapping[str, Any] | None, vector: bool = False) -> None:
    """Refuses reset options that nobody reads."""
    known = {"theta", "reset_mask"} if vector else {"theta"}
    unknown = set(options or {}) - known
    if unknown:
        raise ValueError(f"`options` may hold {sorted(known)}, got {sorted(unknown)}")


def check_render_mode(render_mode: str | None, modes: list[str], problem: ConfigurableMDP) -> None:
    """Refuses a mode that does not exist, and any mode for a problem without `draw`."""
    check_choice(render_mode, [None, *modes], "render_mode")
    if render_mode is not None and not hasattr(problem, "draw"):
        raise ValueError(f"`render_mode` must be None: {type(problem).__name__} has no `draw`, got {render_mode!r}")


def _is_index(action: Any, count: int) -> bool:
    """Whether an action is a whole number in range, also as a 0-d or one-entry array as policies give it."""
    array = np.asarray(action)
    return array.dtype.kind in "iu" and array.size == 1 and 0 <= int(array.reshape(())) < count


def _problem(path: str, kwargs: dict[str, Any]) -> ConfigurableMDP:
    module, name = path.split(":")
    cls = getattr(import_module(module), name)
    allowed = [f.name for f in fields(cls) if f.init]
    unknown = sorted(set(kwargs) - set(allowed))
    if unknown:
        face = ["theta", "observation", "render_mode"]
        raise TypeError(f"{name} has no argument {', '.join(map(repr, unknown))}; it takes {', '.join(allowed + face)}")
    return cls(**kwargs)


def make_env(
    problem: str,
    theta: Any = None,
    observation: str = "index",
    render_mode: str | None = None,
    **kwargs: Any,
) -> TabularEnv:
    """Entry point of the scalar ids; `kwargs` go to the problem's class."""
    return TabularEnv(_problem(problem, kwargs), theta, observation, render_mode)


def make_vector_env(
    problem: str,
    num_envs: int = 1,
    theta: Any = None,
    observation: str = "index",
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    **kwargs: Any,
) -> TabularVectorEnv:
    """Entry point of `gymnasium.make_vec`; `kwargs` go to the problem's class."""
    return TabularVectorEnv(_problem(problem, kwargs), num_envs, theta, observation, max_episode_steps, render_mode)
