"""What every configurable environment has in common: θ and its owner, seeds, autoreset, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from importlib import import_module
from types import NoneType
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike
from torch import Tensor

from bilevel_envs.core.autograd import with_ordinary_tensors
from bilevel_envs.core.checks import check_choice, check_count
from bilevel_envs.core.mdp import (
    BestKnown,
    ConfigurableMDP,
    Model,
    Numbers,
    Parameterization,
    Preferences,
    recorded_best,
)
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.problems import check_model, completed, modelled, simulated

M = TypeVar("M", bound=Model)
BLOCK = 512  # steps' worth of uniform numbers drawn at a time


def as_theta(problem: ConfigurableMDP, theta: Numbers, with_runs: bool = True) -> np.ndarray:
    """θ as float64, refused with a ValueError unless it lies in the problem's space; `with_runs`: or of each run."""
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
    if array.ndim - len(wanted) not in ((0, 1) if with_runs else (0,)) or array.size == 0:
        runs = ", or a leading runs axis before it" if with_runs else ""
        stacked = array.ndim == len(wanted) + 1 and not with_runs
        hint = ": of several runs take one, such as `leader.theta[0]`" if stacked else ""
        raise ValueError(f"`theta` must have shape {list(wanted)}{runs}, got {list(array.shape)}{hint}")
    problem.check_theta(array)
    return array


def runs_first(problem: ConfigurableMDP, theta: Numbers) -> Tensor:
    """θ as a float64 tensor ``[R, *θ.shape]``, which keeps its gradient; checked as by `as_theta`."""
    checked = as_theta(problem, theta)
    tensor = theta.double() if isinstance(theta, Tensor) and theta.requires_grad else torch.tensor(checked)
    return tensor[None] if tensor.ndim == len(problem.theta_space.shape) else tensor


class Display(Protocol):
    """A window that shows pictures."""

    def show(self, frame: np.ndarray) -> None:
        """Shows one picture, uint8 [height, width, 3]."""

    def close(self) -> None:
        """Closes the window."""


class Face(Generic[M]):
    """What the scalar and the vector form of an environment share: the problem, θ, what a follower sees."""

    problem: ConfigurableMDP
    model_kind: ClassVar[type]  # what the problem's models must be
    _theta: np.ndarray
    _in_force: np.ndarray | None = None  # contexts, int [] or [R]
    _running: np.ndarray | None = None  # those of the episodes that run
    _pending: tuple[object, np.ndarray | None] | None = None  # what the next reset loads, and its contexts

    @property
    def simulates_its_model(self) -> bool:
        """Whether `step` simulates `model(θ)`; otherwise it simulates `simulator(θ)`."""
        return self.problem.simulates_its_model

    @cached_property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be."""
        return deepcopy(self.problem.theta_space)  # its own: a space carries the generator that samples from it

    @property
    def theta(self) -> np.ndarray:
        """The θ that was set last, a copy; `configure` changes it."""
        return self._theta.copy()

    @property
    def context(self) -> np.ndarray | None:
        """The context in force, int [] or [R]; None where the problem has none, or draws one in every episode."""
        contexts = self.problem.contexts
        if self._in_force is None and contexts is not None and not contexts.within:
            return np.zeros((), np.int64)
        return self._in_force

    def enter(self, context: ArrayLike | None) -> None:
        """Puts a context in force, for models at once and for episodes from the next reset on.

        Args:
          context: the number of one, or one per run, [R]; None for the first, or for a draw in every episode where the
            world makes it.

        Raises:
          ValueError: if there is no such context.
        """
        self._in_force = None if context is None else self._checked_context(context)

    @contextmanager
    def in_context(self, context: ArrayLike | None) -> Iterator[None]:
        """With `with`: a context in force for models, afterwards again what was before; arguments as in `enter`."""
        kept = self._in_force
        self.enter(context)
        try:
            yield
        finally:
            self._in_force = kept

    def _checked_context(self, context: ArrayLike) -> np.ndarray:
        if self.problem.contexts is None:
            raise ValueError(f"`context` must be None: {self.problem.title} has no `contexts`, got {context!r}")
        return self.problem.contexts.checked(context)

    @property
    def step_limit(self) -> int | None:
        """A time limit that the environment has of its own, inside; None without."""
        return None

    @property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return self.problem.preferences

    @property
    def best_known(self) -> BestKnown | None:
        """The best leader value known, with its source."""
        return recorded_best(self.problem, self.preferences)

    def parameterization(self, runs: int = 1, seed: int = 0) -> Parameterization | None:
        """The default parameterisation of θ, freshly initialised; run i with the stream of seed + i."""
        return self.problem.parameterization(runs, Noise([seed + run for run in range(runs)]))

    @with_ordinary_tensors
    def model(self, theta: Numbers) -> M:
        """The follower's MDP at θ, ``[*θ.shape]`` or ``[R, *θ.shape]``; a tensor with gradients keeps them."""
        return self._of_kind(modelled(self.problem, self.problem.model, *self._in_place(theta)), "model")

    @with_ordinary_tensors
    def simulator(self, theta: Numbers) -> M:
        """The world that `step` simulates at θ."""
        return self._of_kind(simulated(self.problem, *self._in_place(theta)), "simulator")

    def _in_place(self, theta: Numbers) -> tuple[Any, ...]:
        """θ ``[R, *θ.shape]``, and each run's context where one is in force."""
        first, context = runs_first(self.problem, theta), self.context
        if context is None:
            return (first,)
        context = np.atleast_1d(context)
        if len(first) % len(context):
            raise ValueError(
                f"`theta` must have one leading entry per context in force ({len(context)}), or a multiple, "
                f"got {list(first.shape)}"
            )
        return first, np.tile(context, len(first) // len(context))

    def _of_kind(self, model: object, method: str) -> M:
        """A model that this environment steps; refuses others with a TypeError."""
        check_model(model, self.problem, method, self.model_kind)
        return cast(M, model)  # an object of `model_kind`

    def _prepared(self, theta: np.ndarray) -> object:
        """What `_load` takes at a θ that has been checked."""
        return self.simulator(theta)

    def _load_next(self, theta: np.ndarray, context: ArrayLike | None) -> None:
        """Makes ready what the next reset loads; what fails leaves the old θ and the old context."""
        with self.in_context(self._in_force if context is None else context):
            entered, pending = self._in_force, (self._prepared(theta), self.context)
        self._theta, self._pending, self._in_force = theta, pending, entered

    def _load_pending(self) -> None:
        """Loads what `configure` made ready, if anything, and a context entered since."""
        loads = self._running if self._pending is None else self._pending[1]
        if not _same(loads, self.context):
            self._load_next(self._theta, None)
        if self._pending is not None:
            model, self._running = self._pending
            self._load(model)
            self._pending = None

    def _load(self, model: Any) -> None:
        """Makes ready to step in a model."""
        raise NotImplementedError

    def _observe(self, state: Any) -> Any:
        """What the follower sees of a state."""
        return state

    def _picture(self, state: object, theta: np.ndarray, run: int = 0) -> np.ndarray:
        """The problem's picture of a state, in the context of a run's episodes."""
        contexts, context = self.problem.contexts, self._running
        assert self.problem.draw is not None, "a render_mode is refused for problems without `draw`"
        if contexts is None or contexts.within or context is None:
            return self.problem.draw(state, theta)
        return self.problem.draw(state, theta, int(context.flat[run % context.size]))


class ConfigurableEnv(Face[M], gym.Env):
    """The follower's side of a configurable MDP: observations are states, actions are the follower's.

    θ has one owner, `configure`; `theta=` and `reset(options={"theta": ...})` call it, and what they set stays in
    force until changed. A new θ takes effect at the next reset. Subclasses load a model, begin and advance.

    Args:
      problem: the configurable MDP.
      theta: first θ; the problem's default if None.
      render_mode: "rgb_array", "human" (needs the extra `render`), or None.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own form)
    vector_class: ClassVar[Callable[..., ConfigurableVectorEnv]]  # the same environment, stepped as arrays
    face: ClassVar[tuple[str, ...]] = ()  # arguments that are the environment's own, not the problem's
    default_follower: ClassVar[str | None] = "soft_value_iteration"  # the exact one; None where one has to learn

    def __init__(self, problem: ConfigurableMDP, theta: Numbers | None = None, render_mode: str | None = None) -> None:
        problem = completed(problem)
        check_render_mode(render_mode, self.metadata["render_modes"], problem)
        self.problem, self.render_mode = problem, render_mode
        self.observation_space, self.action_space = map(deepcopy, (self.observation_space, self.action_space))
        self._window: Display | None = None
        self._state: Any = None
        self._shown: object = None  # of pictures
        self._fresh = True  # the next reset begins a new block of random numbers
        self.configure(problem.default_theta if theta is None else theta)

    # What a subclass provides ---------------------------------------------------------------------------------

    def _load(self, model: Any) -> None:
        """Makes ready to step in a model."""
        raise NotImplementedError

    def _begin(self) -> object:
        """A first state."""
        raise NotImplementedError

    def _checked(self, action: ArrayLike) -> object:
        """The action in the form that `_advance` takes; a ValueError for what is none."""
        raise NotImplementedError

    def _advance(self, action: Any) -> tuple[object, float, bool, Mapping[str, object]]:
        """The state that follows, r_F, whether the episode ends, and what goes into `info`."""
        raise NotImplementedError

    # What a user calls ----------------------------------------------------------------------------------------

    def copies(self, count: int, max_episode_steps: int | None = None) -> ConfigurableVectorEnv:
        """So many copies in which a follower may learn, stepped as arrays."""
        return self.vector_class(self.problem, count, max_episode_steps=max_episode_steps)

    def stepped_copies(self, count: int, max_episode_steps: int | None) -> ConfigurableVectorEnv:
        """So many copies that show states as models number them, from which leaders draw by steps."""
        return self.vector_class(self.problem, count, max_episode_steps=max_episode_steps)

    def close_copies(self) -> None:
        """Closes copies that are kept for later; by default there are none."""

    def observations(self) -> np.ndarray | None:
        """What the follower sees in each state of a table, [S] or [S, ...]; None for the state's number."""
        return None

    def configure(self, theta: Numbers, context: ArrayLike | None = None) -> None:
        """Sets θ, in force from the next reset on.

        Args:
          theta: ``[*θ.shape]``.
          context: the number of the context to `enter`; None for the one in force.

        Raises:
          ValueError: if θ has the wrong shape or lies outside `theta_space`; the old θ then stays.
        """
        array = as_theta(self.problem, theta, with_runs=False)
        self._load_next(array, context)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Numbers] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; `options={"theta": θ, "context": k}`, one of them or both, configures first."""
        super().reset(seed=seed)
        check_options(options, contextual=self.problem.contexts is not None)
        if options and options.keys() & {"theta", "context"}:
            self.configure(options.get("theta", self._theta), cast(ArrayLike | None, options.get("context")))
        self._load_pending()
        self._fresh = self._fresh or seed is not None
        self._shown = self._state = self._begin()
        self._step, self._over = 0, False
        self._show()
        return self._observe(self._state), {} if self._running is None else {"context": int(self._running.flat[0])}

    def step(self, action: ArrayLike) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; the rewards are those of the state in which it begins."""
        if self._state is None or self._over:
            raise gym.error.ResetNeeded("call `reset` before `step`; the last episode is over or none has begun")
        before = self._state
        self._state, reward, self._over, info = self._advance(self._checked(action))
        self._shown = before if self._over and self.problem.last_step_stays else self._state
        info = {**info, "step": self._step}
        self._step += 1
        self._show()
        return self._observe(self._state), reward, self._over, False, info

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

    def _frame(self) -> np.ndarray:
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `render`")
        return self._picture(self._shown, self._theta)

    def _show(self) -> None:
        if self.render_mode == "human":
            if self._window is None:
                self._window = import_module("bilevel_envs.rendering.window").Window(self.metadata["render_fps"])
            self._window.show(self._frame())


class ConfigurableVectorEnv(Face[M], gym.vector.VectorEnv):
    """Many copies of a configurable MDP, stepped as arrays; autoreset mode SAME_STEP.

    Sub-environment i, seeded s + i, reproduces a scalar environment seeded s + i.

    Args:
      problem: the configurable MDP.
      num_envs: how many copies.
      theta: first θ, see `configure`; the problem's default if None.
      max_episode_steps: time limit; None for none.
      render_mode: "rgb_array" or None.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    draws = 1  # uniform numbers that a step takes

    def __init__(
        self,
        problem: ConfigurableMDP,
        num_envs: int,
        theta: Numbers | None,
        max_episode_steps: int | None,
        render_mode: str | None,
        observation_space: gym.Space,
        action_space: gym.Space,
    ) -> None:
        problem = completed(problem)
        check_render_mode(render_mode, self.metadata["render_modes"], problem)
        self.problem, self.render_mode = problem, render_mode
        self.num_envs = check_count(num_envs, "num_envs")
        self.time_limit = None if max_episode_steps is None else check_count(max_episode_steps, "max_episode_steps")
        self.single_observation_space, self.single_action_space = map(deepcopy, (observation_space, action_space))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators: list[np.random.Generator] = []
        self._state: Any = None
        self._cut = np.zeros(self.num_envs, bool)  # episodes that the last step cut without a time limit of ours
        self.configure(problem.default_theta if theta is None else theta)

    # What a subclass provides ---------------------------------------------------------------------------------

    def _load(self, model: Any) -> None:
        """Makes ready to step in a model, or in R of them, each for num_envs / R environments side by side."""
        raise NotImplementedError

    def _first(self, index: np.ndarray) -> np.ndarray:
        """First states of the environments `index`."""
        raise NotImplementedError

    def _checked(self, actions: ArrayLike) -> np.ndarray:
        """The actions as an array; a ValueError for what are none."""
        raise NotImplementedError

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """States that follow, r_F, whether episodes end, and what goes into `info`."""
        raise NotImplementedError

    # What a user calls ----------------------------------------------------------------------------------------

    def configure(self, theta: Numbers, context: ArrayLike | None = None) -> None:
        """Sets θ, in force from the next reset of all environments on.

        Args:
          theta: ``[*θ.shape]`` for all, or ``[R, *θ.shape]`` with R dividing `num_envs`: environment i then obeys
            θ[i // (num_envs / R)].
          context: the number of the context to `enter`, or one for each of the R; None for what is in force.

        Raises:
          ValueError: if θ does not fit or lies outside `theta_space`; the old θ then stays.
        """
        array = as_theta(self.problem, theta)
        contexts = self._in_force if context is None else self._checked_context(context)
        if contexts is not None and contexts.size > 1 and array.shape == self.theta_space.shape:
            array = np.repeat(array[None], contexts.size, axis=0)  # one θ in each of them
        extra = array.shape[: array.ndim - len(self.theta_space.shape)]
        if len(extra) > 1 or (extra and (extra[0] == 0 or self.num_envs % extra[0])):
            raise ValueError(
                f"`theta` must have shape {list(self.theta_space.shape)}, or one more leading axis that divides "
                f"num_envs = {self.num_envs}; got {list(array.shape)}"
            )
        self._load_next(array, context)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Numbers] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in every environment, or in those of `options["reset_mask"]`."""
        check_options(options, vector=True, contextual=self.problem.contexts is not None)
        options = dict(options or {})
        mask = self._mask(cast(ArrayLike | None, options.pop("reset_mask", None)))
        if options:
            self.configure(options.get("theta", self._theta), cast(ArrayLike | None, options.get("context")))
        seeds = self._seeds(seed)
        if not mask.all() and self._state is None:
            raise gym.error.ResetNeeded("reset all environments once before resetting some by `reset_mask`")
        self._seed(seeds, mask)
        if mask.all():
            self._load_pending()
            self._state, self._step = self._first(np.flatnonzero(mask)), np.zeros(self.num_envs, int)
        else:
            self._begin(np.flatnonzero(mask))
        if self._running is None:
            return self._shown(), {}
        each = np.repeat(self._running, self.num_envs // self._running.size)
        return self._shown(), {"context": each, "_context": np.ones(self.num_envs, bool)}

    def step(self, actions: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every environment; those that end start anew in the same call."""
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `step`")
        arrived, reward, terminated, info = self._advance(self._checked(actions))
        info["step"] = self._step
        self._step = self._step + 1
        truncated = self._cut if self.time_limit is None else self._cut | (self._step >= self.time_limit)
        ended = terminated | truncated
        infos: dict[str, object] = _infos(info, ~ended)
        self._state = arrived
        if ended.any():
            final = np.empty(self.num_envs, object)
            reached = self._observe(arrived)
            for index in np.flatnonzero(ended):
                final[index] = reached[index]
            infos |= {"final_obs": final, "_final_obs": ended}
            infos |= {"final_info": _infos(info, ended), "_final_info": ended}
            self._state = arrived.copy()
            self._begin(np.flatnonzero(ended))
        return self._shown(), reward, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture per environment."""
        if self.render_mode is None:
            gym.logger.warn('no picture: make the environments with render_mode="rgb_array"')
            return None
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `render`")
        thetas = self._theta.reshape(-1, *self.theta_space.shape)
        share = self.num_envs // len(thetas)
        return tuple(
            self._picture(state, thetas[index // share], index // share) for index, state in enumerate(self._state)
        )

    def _mask(self, mask: ArrayLike | None) -> np.ndarray:
        """Which environments are reset, bool [num_envs]; all without a mask."""
        array = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask)
        if array.shape != (self.num_envs,) or array.dtype != bool or not array.any():
            raise ValueError(f"`reset_mask` must be bool [{self.num_envs}] with a True, got {array!r}")
        return array

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        """The seed of each environment: seed + i from one number."""
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + index for index in range(self.num_envs)]
        seeds = [int(one) if isinstance(one, np.integer) else one for one in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"`seed` must give one seed per environment ({self.num_envs}), got {len(seeds)}")
        return seeds

    def _shown(self) -> np.ndarray:
        """What is seen of the present states."""
        return self._observe(self._state.copy())

    def _begin(self, index: np.ndarray) -> None:
        """Puts the environments `index` at the start of an episode."""
        self._state[index] = self._first(index)
        self._step[index] = 0

    def _seed(self, seeds: list[int | None], mask: np.ndarray) -> None:
        if not self._generators:
            self._generators = [np.random.default_rng() for _ in seeds]
            self._block = np.empty((self.num_envs, BLOCK, self.draws))
            self._read = np.full(self.num_envs, BLOCK)
        for index, seed in enumerate(seeds):
            if seed is not None and mask[index]:
                self._generators[index] = gym.utils.seeding.np_random(seed)[0]
                self._read[index] = BLOCK
        self._np_random, self._np_random_seed = self._generators[0], seeds[0]

    def _uniform(self, index: np.ndarray) -> np.ndarray:
        """The next uniform numbers of each environment in `index`, from its own stream, [len(index), draws]."""
        for empty in index[self._read[index] == BLOCK]:
            self._generators[empty].random(out=self._block[empty])
            self._read[empty] = 0
        uniform = self._block[index, self._read[index]]
        self._read[index] += 1
        return uniform


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two choices of contexts are one."""
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _infos(info: dict[str, np.ndarray], where: np.ndarray) -> dict[str, object]:
    """Gymnasium's vector form: values where they apply, 0 elsewhere, and a mask each."""
    values = {key: np.where(where.reshape(-1, *[1] * (np.ndim(value) - 1)), value, 0) for key, value in info.items()}
    return values | {f"_{key}": where for key in info}


def check_options(options: Mapping[str, Numbers] | None, vector: bool = False, contextual: bool = False) -> None:
    """Refuses reset options that are not read."""
    if not isinstance(options, (Mapping, NoneType)):
        raise TypeError(f"`options` must be a table such as {{'theta': θ}}, got {type(options).__name__}")
    known = {"theta"} | ({"reset_mask"} if vector else set()) | ({"context"} if contextual else set())
    unknown = set(options or {}) - known
    if unknown:
        raise ValueError(f"`options` may hold {sorted(known)}, got {sorted(unknown, key=str)}")


def check_render_mode(render_mode: str | None, modes: list[str], problem: ConfigurableMDP) -> None:
    """Refuses a mode that does not exist, and any mode for a problem without `draw`."""
    check_choice(render_mode, [None, *modes], "render_mode")
    if render_mode is not None and problem.draw is None:
        raise ValueError(f"`render_mode` must be None: {problem.title} has no `draw`, got {render_mode!r}")
