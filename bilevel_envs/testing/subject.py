"""An environment under test: admissible θ, and episodes of given actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import lacking
from bilevel_envs.core.follower import BestResponse, Capabilities
from bilevel_envs.core.foreign import Configurable, configurable
from bilevel_envs.core.mdp import ConfigurableMDP, Model, Parameterization, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.games.game import Game
from bilevel_envs.leader_env import game_of
from bilevel_envs.testing.report import Skipped
from bilevel_envs.wrapper import BilevelWrapper

WIDE = 20.0  # sides of a box beyond which numbers are drawn near 0 instead of from all of it
LONGEST = 100  # steps after which a sampled episode without a time limit is left
DRAWS = 3  # admissible θ of each sort
MOST_EXTREME = 8  # θ at the edge that are tried

Told: TypeAlias = tuple[object, float, bool, bool, Mapping[str, object]]  # what `step` returns


class Nobody:
    """Stands for the follower where only the environment is looked at."""

    beta: float | None = None
    capabilities = Capabilities()

    def best_response(self, model: Model, preferences: Preferences, init: BestResponse | None = None) -> BestResponse:
        """Never called."""
        raise Skipped("nobody answers here")


def held(env: gym.Env) -> BilevelWrapper:
    """The environment with a follower: its own if it is a `BilevelWrapper`, else nobody."""
    return env if isinstance(env, BilevelWrapper) else BilevelWrapper(env, Nobody())


@dataclass(frozen=True)
class Steps:
    """Steps of random actions at one θ; N steps in all, of E episodes.

    Attributes:
      observation, following: what was seen before and after each step.
      action: what was done.
      reward, leader_reward: what it paid, [N]; NaN where there is no leader's reward.
      terminated, truncated: bool [N].
      step: index within the episode, [N].
      first: what episodes began with.
      infos: what `info` said.
    """

    observation: list[object]
    action: list[object]
    following: list[object]
    reward: np.ndarray
    leader_reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    step: np.ndarray
    first: list[object]
    infos: list[Mapping[str, object]]


class Subject:
    """An environment under test.

    Args:
      env: with its wrappers, or a `BilevelWrapper`.
      seed: of all that is drawn.
      steps: how many are compared with the model.
    """

    def __init__(self, env: gym.Env, seed: int = 0, steps: int = 4_000) -> None:
        self.held, self.seed, self.count = held(env), seed, steps
        self.env = self.held.env
        self.inside: Configurable = configurable(self.env.unwrapped)
        self.problem: ConfigurableMDP = self.inside.problem
        self.limit = self.held.time_limit
        self.tells_theta = not lacking(self.env.unwrapped, ["theta"])
        self.thetas = Thetas(self.inside, seed)

    @property
    def name(self) -> str:
        """The id, or what the problem is called."""
        spec = self.env.spec
        return self.problem.title if spec is None else spec.id

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """With `with`: afterwards the environment has the θ that it had, as far as it tells."""
        before = np.array(self.inside.theta) if self.tells_theta else self.thetas.default
        try:
            yield
        finally:
            with suppress(Exception):  # of an environment that refuses its own θ, which has been told
                self.inside.configure(before)

    @cached_property
    def game(self) -> Game | None:
        """The game behind it, if it is one of two players."""
        try:
            return game_of(self.env)
        except TypeError:
            return None

    def another(self) -> gym.Env:
        """Another environment like it."""
        spec = self.env.spec
        return deepcopy(self.env.unwrapped) if spec is None else gym.make(spec, disable_env_checker=True)

    def actions(self, count: int, offset: int = 0) -> list[object]:
        """So many random actions, always the same ones."""
        return drawn(self.env.action_space, count, self.seed + offset)

    def episode(self, seed: int | None = None, steps: int = 50, theta: np.ndarray | None = None) -> list[object]:
        """What `reset` and `step` tell of one episode, `theta` among the options of `reset` if it is given."""
        options = None if theta is None else {"theta": theta}
        return played(self.env, self.actions(steps), self.seed if seed is None else seed, options)

    def model(self, theta: np.ndarray | Tensor) -> Model:
        """The model at θ."""
        return self.inside.model(theta)

    def stepped(self, theta: np.ndarray) -> Model:
        """The model that `step` simulates at θ, as far as one is known."""
        simulated = self.inside.simulator(theta)
        model = self.inside.model(theta) if simulated is None else simulated
        return model.detach()

    @cached_property
    def sample(self) -> Steps:
        """Steps at the first of the inner θ."""
        self.inside.configure(self.thetas.inner[0])
        return stepped(self.env, self.actions(self.count, offset=1), self.seed, self.limit or LONGEST)


def drawn(space: gym.Space, count: int, seed: int) -> list[object]:
    """Random actions: of a wide box near 0, else from all of the space."""
    space = deepcopy(space)
    if isinstance(space, gym.spaces.Box) and not (np.ptp([space.low, space.high], axis=0) <= WIDE).all():
        near = np.random.default_rng(seed).standard_normal((count, *space.shape))
        return list(np.clip(near, space.low, space.high).astype(space.dtype))
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def played(
    env: gym.Env, actions: Iterable[object], seed: int | None, options: Mapping[str, object] | None = None
) -> list[object]:
    """What `reset` and `step` tell of one episode, until it ends or the actions do."""
    observation, _ = env.reset(seed=seed, options=None if options is None else dict(options))
    told: list[object] = [deepcopy(observation)]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(deepcopy(action))
        told.append((deepcopy(observation), reward, terminated, truncated, info.get("leader_reward")))
        if terminated or truncated:
            break
    return told


def stepped(env: gym.Env, actions: Sequence[object], seed: int, longest: int) -> Steps:
    """Steps of the actions, episode after episode; each is left after `longest` steps if it has not ended."""
    rows: list[tuple[object, ...]] = []
    first: list[object] = []
    step, fresh = 0, True
    for action in actions:
        if fresh:
            observation, _ = env.reset(seed=None if rows else seed)
            observation, step, fresh = deepcopy(observation), 0, False
            first.append(observation)
        after, reward, terminated, truncated, info = env.step(deepcopy(action))
        after = deepcopy(after)
        paid = info.get("leader_reward", np.nan)
        rows.append((observation, action, after, reward, paid, terminated, truncated, step, info))
        observation, step = after, step + 1
        fresh = terminated or truncated or step >= longest
    seen, did, arrived, *numbers, infos = (list(column) for column in zip(*rows, strict=True))
    pays, leads, over, cut, index = map(np.array, numbers)
    return Steps(seen, did, arrived, pays.astype(float), leads.astype(float), over, cut, index, first, infos)


def same(one: object, other: object) -> bool:
    """Whether two observations, numbers, or lists and dicts of them are equal to the last bit; NaN equals NaN."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    a, b = np.asarray(one), np.asarray(other)
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f"))


def first_difference(one: Sequence[object], other: Sequence[object]) -> str:
    """Where two episodes part, in words."""
    for k, (a, b) in enumerate(zip(one, other, strict=False)):
        if same(a, b):
            continue
        if k == 0:
            return f"the first observation is {short(a)} in one and {short(b)} in the other"
        names = ("observation", "reward", "terminated", "truncated", 'info["leader_reward"]')
        parts = zip(names, _parts(a), _parts(b), strict=False)
        name, left, right = next((part for part in parts if not same(part[1], part[2])), ("what is told", a, b))
        return f"at step {k - 1} {name} is {short(left)} in one and {short(right)} in the other"
    return f"one ends after {len(one) - 1} steps, the other after {len(other) - 1}"


def _parts(told: object) -> tuple[object, ...]:
    return told if isinstance(told, tuple) else (told,)


def short(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, np.ndarray):
        value = value.round(6).tolist() if value.dtype.kind == "f" else value.tolist()
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Thetas:
    """Admissible θ of an environment.

    Args:
      inside: the environment.
      seed: of what is drawn.
    """

    def __init__(self, inside: Configurable, seed: int) -> None:
        self.space, self.problem, self.seed = inside.theta_space, inside.problem, seed

    @property
    def default(self) -> np.ndarray:
        """The default θ."""
        return np.asarray(self.problem.default_theta, dtype=np.float64)

    @property
    def boxed(self) -> bool:
        """Whether θ is free within its bounds: whether `check_theta` is the usual one."""
        return type(self.problem).check_theta is ConfigurableMDP.check_theta

    @property
    def narrow(self) -> bool:
        """Whether all of the space can be drawn from."""
        return bool((np.ptp([self.space.low, self.space.high], axis=0) <= WIDE).all())

    @cached_property
    def inner(self) -> list[np.ndarray]:
        """θ inside the space, the farthest from the default first; far apart where the space is narrow."""
        found = self._scattered() if self.narrow else []
        if self.boxed and self.narrow:
            rng = np.random.default_rng(self.seed)
            share = rng.uniform(0.1, 0.9, (DRAWS, *self.space.shape))
            found += list(self.space.low + share * (self.space.high - self.space.low))
        found = self._admissible(found) or self._admissible(self.starts())
        if not found:  # unbounded, and without a parameterisation
            rng = np.random.default_rng(self.seed)
            near = self.default + rng.standard_normal((DRAWS, *self.space.shape))
            found = [self._pulled(theta) for theta in np.clip(near, self.space.low, self.space.high)]
        off = [float(np.median(np.abs(theta - self.default))) for theta in found]
        others = [found[k] for k in np.argsort(off)[::-1] if not same(found[k], self.default)]
        return others or [self.default]

    @cached_property
    def extreme(self) -> list[np.ndarray]:
        """θ at the edge of the space."""
        found = []
        if self.boxed and self.space.is_bounded():
            found = [self.space.low.astype(float), self.space.high.astype(float)]
        raw = self._raw("vertices")
        return found + ([] if raw is None else self._admissible(self._at(raw[:MOST_EXTREME])))

    def _pulled(self, theta: np.ndarray) -> np.ndarray:
        """θ, or as much of the way to it from the default as `check_theta` allows, halved again and again."""
        for share in 0.5 ** np.arange(20):
            nearer = self.default + share * (theta - self.default)
            if self._admissible([nearer]):
                return nearer
        return self.default

    def _admissible(self, thetas: list[np.ndarray]) -> list[np.ndarray]:
        """Those that the problem's `check_theta` allows: a parameterisation may reach beyond."""
        found = []
        for theta in thetas:
            with suppress(ValueError):
                self.problem.check_theta(theta)
                found.append(theta)
        return found

    def starts(self) -> list[np.ndarray]:
        """First values of the parameterisation, in the first context where it reads contexts; none without one."""
        module = self._module(DRAWS)
        return [] if module is None else self._forward(module, DRAWS)

    def _forward(self, module: Parameterization, runs: int) -> list[np.ndarray]:
        """θ of each run."""
        contexts = self.problem.contexts
        features = () if contexts is None or not _reads(module) else (contexts.seen(np.zeros(runs, int)),)
        with torch.no_grad():
            return list(module(*features).double().numpy())

    def _scattered(self) -> list[np.ndarray]:
        noise = Noise([[self.seed, draw] for draw in range(DRAWS)])
        raw = self._raw("scattered", noise)
        return [] if raw is None else self._at(raw)

    def _raw(self, hook: str, *arguments: Noise) -> Tensor | None:
        """What a hook of the parameterisation gives."""
        module = self._module(1)
        if module is None or lacking(module, [hook]):
            return None
        return module.vertices() if hook == "vertices" else module.scattered(*arguments)

    def _at(self, raw: Tensor) -> list[np.ndarray]:
        """θ at raw numbers [K, ...] of a parameterisation with one parameter; none where it has others."""
        module = self._module(len(raw))
        leaves = [] if module is None else list(module.parameters())
        if module is None or len(leaves) != 1 or leaves[0].shape != raw.shape:
            return []
        with torch.no_grad():
            leaves[0].copy_(raw)
        return self._forward(module, len(raw))

    def _module(self, runs: int) -> Parameterization | None:
        """The parameterisation; None where there is none."""
        return self.problem.parameterization(runs, Noise([[self.seed, run] for run in range(runs)]))


def _reads(module: torch.nn.Module) -> bool:
    """Whether a parameterisation reads contexts."""
    return not lacking(module, ["reads_context"]) and bool(module.reads_context)
