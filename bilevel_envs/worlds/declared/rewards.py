r"""Environments that somebody else wrote, with a leader's θ in both rewards.

With θ in the rewards alone, log p and log ρ0 have no gradient, and r_F(θ, c) and r_L(θ, c) as functions of components c
that a step logs are all that a hypergradient needs of the world (arXiv:2603.14867, Theorem 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias, TypedDict, Unpack

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.checks import check_count, check_shape, finite_numbers
from bilevel_envs.core.env_base import ConfigurableEnv, ConfigurableVectorEnv
from bilevel_envs.core.follower import Policy
from bilevel_envs.core.mdp import ConfigurableMDP, Model, Numbers, Parameterization, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import around
from bilevel_envs.core.problems import check_problem, check_theta_space
from bilevel_envs.core.transparent import shortest_limit
from bilevel_envs.worlds.declared.spaces import Actions, check_actions, seen_space

Reward: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # θ [..., *θ.shape] and c [..., C] to [...]
Step: TypeAlias = Callable[[Any, Any, Any, Any, Mapping[str, Any]], ArrayLike]
SetTheta: TypeAlias = Callable[[Any, np.ndarray], object]  # an environment and θ
STEP = ("observation", "reward", "terminated", "truncated", "info")


@dataclass(frozen=True)
class RewardModel:
    """The follower's MDP at one θ, of which both rewards are known as functions of θ, and nothing else.

    Attributes:
      theta: ``[R, *θ.shape]``.
      reward_follower, reward_leader: see `ConfigurableRewards`.
    """

    kind: ClassVar[str] = "declared"
    horizon: ClassVar[int | None] = None
    is_quadratic: ClassVar[bool] = False
    reads_components: ClassVar[bool] = True
    hides_moves: ClassVar[bool] = False
    theta: Tensor
    reward_follower: Reward
    reward_leader: Reward

    @property
    def runs(self) -> int:
        """R."""
        return len(self.theta)

    def detach(self) -> RewardModel:
        """The same model without gradients."""
        return replace(self, theta=self.theta.detach())

    def rewards(self, components: Tensor) -> tuple[Tensor, Tensor]:
        """r_F and r_L at components [R, ..., C], [R, ...].

        Raises:
          TypeError: if a reward is no tensor of real numbers.
          ValueError: if it has another shape, or is not finite.
        """
        between = (1,) * (components.ndim - 2)
        theta = self.theta.view(self.runs, *between, *self.theta.shape[1:])
        found = []
        for name, reward in (("r_follower", self.reward_follower), ("r_leader", self.reward_leader)):
            try:
                value = reward(theta, components.clone())  # which it may write into
            except Exception as error:
                raise ValueError(
                    f"`{name}(theta, components)` raised {type(error).__name__} ({error}) at θ {list(theta.shape)} and "
                    f"components {list(components.shape)}. Take torch's functions, not NumPy's, and index last axes: "
                    "theta[..., 0], components[..., 1]"
                ) from error
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"`{name}(theta, components)` must return a tensor of floating-point numbers, got {got}: make it "
                    "of θ and components by torch operations"
                )
            if value.shape != components.shape[:-1]:
                raise ValueError(
                    f"`{name}(theta, components)` must keep the leading axes of components and sum out the last: "
                    f"{list(components.shape[:-1])} from components {list(components.shape)} and θ "
                    f"{list(theta.shape)}, got {list(value.shape)}. Index last axes: theta[..., 0], components[..., 1]"
                )
            if not value.isfinite().all():
                first = (~value.isfinite()).nonzero()[0].tolist()
                raise ValueError(
                    f"`{name}(theta, components)` must be finite; it is {value[tuple(first)].item()} at θ = "
                    f"{self.theta[first[0]].tolist()} and components {components[tuple(first)].tolist()}: keep "
                    "logarithms, roots and quotients away from where they have no value, or narrow `theta_space`"
                )
            found.append(value)
        return found[0], found[1]

    def terms(self, rollout: Rollout, policy: Policy | None = None) -> Terms:
        """Both rewards at the visited steps; transitions and first states are free of θ.

        Args:
          rollout: the steps, with their `components`.
          policy: of no consequence here.

        Raises:
          ValueError: if the steps have no components.
        """
        if rollout.components is None:
            raise ValueError("`rollout` must come from the copies of a black box, which log components")
        r_follower, r_leader = self.rewards(rollout.components)
        return Terms(r_leader=r_leader, r_follower=r_follower, log_start=None, log_arrival=None)


@dataclass(frozen=True, kw_only=True)
class RewardProblem(ConfigurableMDP):
    """What `ConfigurableRewards` or `ConfigurableDynamics` was told; see there.

    Attributes:
      env: the environment, by its id or class.
      space: what θ may be.
      first: the default θ.
      wants: the preferences.
      r_follower, r_leader: the rewards.
      discrete_actions: how many there are; 0 for vectors.
      logs: how components are logged.
      start: makes the parameterisation; None for the usual one.
      sets: puts θ into an environment before each reset; None where θ is in the rewards alone.
    """

    simulates_its_model: ClassVar[bool] = False
    declared_by: ClassVar[str] = "ConfigurableRewards"
    env: str
    space: gym.spaces.Box
    first: np.ndarray
    wants: Preferences
    r_follower: Reward
    r_leader: Reward
    discrete_actions: int = 0
    logs: Sequence[str] | Step | None = None
    start: Callable[[int, Noise], Parameterization] | None = None
    sets: SetTheta | None = None

    @property
    def title(self) -> str:
        """The class that a user called, and the environment inside."""
        return f"{self.declared_by}({self.env})"

    @property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be."""
        return self.space

    @property
    def default_theta(self) -> np.ndarray:
        """The first θ."""
        return self.first

    @property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return self.wants

    def model(self, theta: Tensor) -> RewardModel:
        """Both rewards at θ ``[R, *θ.shape]``."""
        check_shape(theta, self.theta_space.shape, "theta")
        return RewardModel(theta, self.r_follower, self.r_leader)

    def parameterization(self, runs: int, noise: Noise) -> Parameterization:
        """θ = low + (high − low) · sigmoid(raw) where θ is bounded, else raw; begun at the default θ."""
        if self.start is not None:
            return self.start(runs, noise)
        made = around(self.default_theta, self.theta_space, runs)
        if made is None:
            raise ValueError(
                "`parameterization` must be given where some bounds of `theta_space` are finite and others not: "
                f"without one θ would leave it; got {self.theta_space}"
            )
        return made


class Inside:
    """One environment that somebody else wrote: observations as vectors, components of each step as numbers.

    Args:
      env: the environment.
      problem: how components are logged, and how θ is set.
      size: how many components there are; None for as many as the first step logs.
    """

    def __init__(self, env: gym.Env, problem: RewardProblem, size: int | None = None) -> None:
        self.env, self.components, self.sets, self.size = env, problem.logs, problem.sets, size
        self._name, self._actions = problem.env, Actions(env.action_space, problem.env)
        self._observation: Any = None

    def set_theta(self, theta: np.ndarray) -> None:
        """Puts θ into the environment, if it is to be there; what `configure` raises becomes a ValueError."""
        if self.sets is None:
            return
        try:
            self.sets(self.env, theta.copy())
        except Exception as error:
            raise ValueError(
                f"`configure` must set every θ of `theta_space` in the environment, but raised "
                f"{type(error).__name__} ({error}) at θ = {theta.tolist()}"
            ) from error

    def reset(
        self, theta: np.ndarray, seed: int | None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """A first observation at θ, flat, and what `info` says."""
        self.set_theta(theta)
        told = self._told("reset", self.env.reset(seed=seed, options=options), ("observation", "info"))
        self._observation, info = told
        return self._flat(self._observation, "reset"), dict(info)

    def step(self, action: Any) -> tuple[np.ndarray, np.ndarray, bool, bool, dict[str, Any]]:
        """The observation, flat, the components [C], whether the episode ends or is cut, and what `info` says."""
        before = deepcopy(self._observation)  # some environments write the next one into the same array
        told = self._told("step", self.env.step(self._actions.of(action)), STEP)
        self._observation, reward, terminated, truncated, info = told
        logged = self._logged(before, self._actions.of(action), reward, self._observation, info)
        flat = self._flat(self._observation, "step")
        return flat, logged, self._flag(terminated, "terminated"), self._flag(truncated, "truncated"), dict(info)

    def _flag(self, value: Any, name: str) -> bool:
        """Whether an episode ends or is cut."""
        if not isinstance(value, (bool, np.bool_, int)):
            raise ValueError(f"`env` must return a bool as `{name}` from `step`; {self._name} returned {value!r}")
        return bool(value)

    def _told(self, call: str, told: Any, wanted: tuple[str, ...]) -> Any:
        """What `reset` or `step` returned, if it is what Gymnasium's do."""
        count = len(told) if isinstance(told, tuple) else 1
        if count != len(wanted):
            raise ValueError(
                f"`env` must return ({', '.join(wanted)}) from `{call}`, as environments of Gymnasium do; "
                f"{self._name} returned {count} value{'s' * (count != 1)}: put a wrapper around it that returns these"
            )
        return told

    def _logged(self, before: Any, action: Any, reward: Any, after: Any, info: Mapping[str, Any]) -> np.ndarray:
        if self.components is None:
            found: ArrayLike = reward
        elif callable(self.components):
            try:
                found = self.components(before, action, reward, after, info)
            except Exception as error:
                raise ValueError(
                    "`components` must be a function (observation, action, reward, next observation, info), which "
                    f"raised {type(error).__name__} ({error}) at a step of {self._name}"
                ) from error
        else:
            missing = [name for name in self.components if name not in info]
            if missing:
                raise ValueError(
                    f"`components` must be entries of `info` at every step; {missing} are not among {sorted(info)}"
                )
            found = np.concatenate([np.asarray(info[name], float).ravel() for name in self.components])
        try:
            array = np.asarray(found, dtype=np.float64).ravel()
        except (TypeError, ValueError):
            array = np.full(1, np.nan)
        if not array.size or not np.isfinite(array).all():
            raise ValueError(f"`components` must give finite numbers at every step, got {found!r}")
        self.size = self.size or array.size
        if array.size != self.size:
            raise ValueError(
                f"`components` must give as many numbers at every step, {self.size} as at the first, got {array.size}, "
                f"{array.tolist()}: give 0 where one does not apply"
            )
        return array

    def _flat(self, observation: Any, call: str) -> np.ndarray:
        flat = np.asarray(gym.spaces.flatten(self.env.observation_space, observation), np.float64)
        wanted = gym.spaces.flatdim(self.env.observation_space)
        if flat.shape != (wanted,):
            raise ValueError(
                f"`env` must show what its observation space says; `{call}` of {self._name} returned {observation!r}, "
                f"of {flat.size} numbers instead of {wanted}: mend the environment, or its `observation_space`"
            )
        if not np.isfinite(flat).all():
            raise ValueError(
                f"`env` must show finite numbers, but `{call}` of {self._name} returned {observation}: end the episode "
                "before its numbers overflow, or put a wrapper around it that replaces what is missing"
            )
        return flat


class RewardsVectorEnv(ConfigurableVectorEnv[RewardModel]):
    """Many copies of an environment that somebody else wrote, stepped one after another; autoreset mode SAME_STEP.

    Sub-environment i, seeded s + i, reproduces a scalar one seeded s + i. `infos["components"]` [n, C] holds what the
    steps logged.

    Args:
      owner: whose copies they are; `close` gives them back to it.
      num_envs: how many copies.
      max_episode_steps: time limit beside the environment's own; None for none.
    """

    model_kind = RewardModel

    def __init__(self, owner: BlackBoxEnv, num_envs: int, max_episode_steps: int | None = None) -> None:
        self._owner, self._inside = owner, owner.lent(check_count(num_envs, "num_envs"))
        self._asked: list[int | None] = [None] * num_envs
        super().__init__(
            owner.problem, num_envs, None, max_episode_steps, None, owner.observation_space, owner.action_space
        )

    def _prepared(self, theta: np.ndarray) -> object:
        return self._owner.tried(theta.reshape(-1, *self.theta_space.shape))

    def _load(self, model: RewardModel) -> None:
        self._model = model
        self._theta_of = np.repeat(model.theta.numpy(), self.num_envs // model.runs, axis=0)

    def _seed(self, seeds: list[int | None], mask: np.ndarray) -> None:
        self._asked = [seed if asked else None for seed, asked in zip(seeds, mask, strict=True)]

    def _first(self, index: np.ndarray) -> np.ndarray:
        first = []
        for copy in index:
            first.append(self._inside[copy].reset(self._theta_of[copy], self._asked[copy])[0])
            self._asked[copy] = None
        return np.stack(first)

    def _checked(self, actions: ArrayLike) -> np.ndarray:
        return check_actions(actions, self.single_action_space, (self.num_envs,), "actions")

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        taken = [inside.step(one) for inside, one in zip(self._inside, action, strict=True)]
        state, components, terminated, self._cut, _ = map(np.array, zip(*taken, strict=True))
        each = torch.from_numpy(components).view(self._model.runs, -1, components.shape[-1])
        r_follower, r_leader = (reward.detach().reshape(-1).numpy() for reward in self._model.rewards(each))
        return state, r_follower, terminated, {"leader_reward": r_leader, "components": components}

    def close(self, **kwargs: Any) -> None:
        """Gives the copies back."""
        self._owner.give_back(self._inside)
        self._inside = []


class Options(TypedDict, total=False):
    """What need not be said of a black box; see `ConfigurableRewards`."""

    components: Sequence[str] | Step | None
    default_theta: ArrayLike | None
    parameterization: Callable[[int, Noise], Parameterization] | None


class BlackBoxEnv(ConfigurableEnv[RewardModel]):
    """An environment that somebody else wrote, with θ in its rewards, or in its inside, too.

    Args:
      env: see `ConfigurableRewards`.
      problem_kind: `RewardProblem`, or a class derived from it.
      theta_space, preferences: see there.
      rewards: r_F and r_L.
      sets: see `RewardProblem`.
      options: see there.
    """

    model_kind = RewardModel
    default_follower = None  # one has to learn
    problem: RewardProblem

    def __init__(
        self,
        env: str | gym.Env,
        problem_kind: type[RewardProblem],
        theta_space: gym.spaces.Box,
        rewards: tuple[Reward, Reward],
        preferences: Preferences,
        sets: SetTheta | None = None,
        **options: Unpack[Options],
    ) -> None:
        unknown = sorted(set(options) - Options.__optional_keys__)
        if unknown:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}")
        components, default_theta = options.get("components"), options.get("default_theta")
        components = _named(components)
        check_theta_space(theta_space, type(self).__name__)
        if theta_space.shape == ():
            raise ValueError(
                f"`theta_space` of {type(self).__name__} must have an axis, as shape (1,) has, got shape ()"
            )
        self.env = _made(env)
        default = (
            _middle(theta_space)
            if default_theta is None
            else finite_numbers(default_theta, theta_space.shape, "default_theta")
        )
        self.metadata = self.env.metadata
        name = type(self.env.unwrapped).__name__ if self.env.spec is None else self.env.spec.id
        self.observation_space = seen_space(self.env.observation_space, name)
        actions = self.action_space = Actions(self.env.action_space, name).space
        for role, reward in zip(("r_follower", "r_leader"), rewards, strict=True):
            if not callable(reward):
                raise TypeError(f"`{role}` must be a function of θ and components, got {reward!r}")
        if not callable(options.get("parameterization") or (lambda: None)):
            raise TypeError(
                "`parameterization` must be None or a function (runs, noise) that returns a module, got "
                f"{options['parameterization']!r}"
            )
        problem = problem_kind(
            env=name,
            space=theta_space,
            first=default,
            wants=preferences,
            r_follower=rewards[0],
            r_leader=rewards[1],
            logs=components,
            discrete_actions=int(actions.n) if isinstance(actions, gym.spaces.Discrete) else 0,
            start=options.get("parameterization"),
            sets=sets,
        )
        check_problem(problem)
        self._inside = Inside(self.env, problem)
        self._idle: list[Inside] = []
        super().__init__(problem)
        self.render_mode = self.env.render_mode
        self._try_a_step()

    def _try_a_step(self) -> None:
        """Refuses components and rewards that do not fit a step, at one θ and at two side by side."""
        self._inside.reset(self._theta, 0)
        self.action_space.seed(0)
        _, components, *_ = self._inside.step(self.action_space.sample())
        each = torch.from_numpy(components)[None, None]
        model = self.problem.model(torch.from_numpy(self._theta)[None].requires_grad_())
        rewards = model.rewards(each)
        other = self._theta + 0.01 * (_middle(self.theta_space) - self._theta)
        if (other == self._theta).all():  # the middle of a box, or 0 where there are no bounds
            ends = np.isfinite(self.theta_space.high)
            other = self._theta + 0.01 * (np.where(ends, self.theta_space.high, self._theta + 1) - self._theta)
        both = self.problem.model(torch.from_numpy(np.stack([self._theta, other]))).rewards(each.expand(2, 3, -1))
        alone = self.problem.model(torch.from_numpy(other)[None]).rewards(each)
        for name, first, second, stacked in zip(("r_follower", "r_leader"), rewards, alone, both, strict=True):
            wanted = torch.cat([first, second]).detach().expand(2, 3)
            if not torch.allclose(stacked.detach(), wanted, rtol=1e-6, atol=1e-12):
                raise ValueError(
                    f"`{name}(theta, components)` must be a reward of each θ by itself, where θ is stacked as [2, 1, "
                    f"{', '.join(map(str, self._theta.shape))}]: it gave {stacked.detach().tolist()} there and "
                    f"{wanted.tolist()} one by one. Make it of its arguments alone, and index last axes: "
                    "theta[..., 0], components[..., 1]"
                )
        if self.problem.sets is None and not any(reward.requires_grad for reward in rewards):
            raise ValueError("`r_follower` or `r_leader` must depend on θ through torch operations; neither does")

    @property
    def step_limit(self) -> int | None:
        """The time limit of the environment itself, by its spec or by the shortest TimeLimit around it."""
        spec = self.env.spec
        return shortest_limit(self.env, None if spec is None else spec.max_episode_steps)

    def lent(self, count: int) -> list[Inside]:
        """So many copies: those that were given back, and new ones."""
        taken, self._idle = self._idle[:count], self._idle[count:]
        return taken + [self.another() for _ in range(count - len(taken))]

    def another(self) -> Inside:
        """A new copy, whose owner is who asks."""
        return Inside(_copied(self.env), self.problem, self._inside.size)

    def give_back(self, copies: list[Inside]) -> None:
        """Keeps copies for the next who asks."""
        self._idle.extend(copies)

    def tried(self, theta: np.ndarray) -> Model:
        """The model at θ ``[R, *θ.shape]``, once each of them has been set in a copy."""
        if self.problem.sets is not None:
            (spare,) = self.lent(1)
            try:
                for one in theta:
                    spare.set_theta(one)
            finally:
                self.give_back([spare])
        return self.problem.model(torch.from_numpy(theta))

    def copies(self, count: int, max_episode_steps: int | None = None) -> RewardsVectorEnv:
        """So many copies in which a follower may learn."""
        return RewardsVectorEnv(self, count, max_episode_steps)

    def stepped_copies(self, count: int, max_episode_steps: int | None) -> RewardsVectorEnv:
        """So many copies from which leaders draw."""
        return RewardsVectorEnv(self, count, max_episode_steps)

    def _prepared(self, theta: np.ndarray) -> object:
        return self.tried(theta[None])

    def _load(self, model: RewardModel) -> None:
        self._model = model

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Numbers] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; `options={"theta": θ}` configures first, other options are the environment's."""
        gym.Env.reset(self, seed=seed)
        others = dict(options or {})
        if "theta" in others:
            self.configure(others.pop("theta"))
        self._load_pending()
        self._state, info = self._inside.reset(self._model.theta[0].numpy(), seed, others or None)
        self._over = False
        return self._state.copy(), info

    def step(self, action: ArrayLike) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step: r_F, and r_L as ``info["leader_reward"]``, beside ``info["components"]``."""
        if self._state is None or self._over:
            raise gym.error.ResetNeeded("call `reset` before `step`; the last episode is over or none has begun")
        check_actions(action, self.action_space, (), "action")
        self._state, components, terminated, truncated, info = self._inside.step(action)
        self._over = terminated or truncated
        each = torch.from_numpy(components)[None, None]
        r_follower, r_leader = (float(reward) for reward in self._model.rewards(each))
        info |= {"leader_reward": r_leader, "components": components}
        return self._state.copy(), r_follower, terminated, truncated, info

    def render(self) -> Any:
        """The environment's own picture."""
        return self.env.render()

    def close(self) -> None:
        """Closes the environment and its idle copies."""
        for inside in (*self._idle, self._inside):
            inside.env.close()
        self._idle = []


class ConfigurableRewards(BlackBoxEnv):
    r"""Any Gymnasium environment, led through its rewards: r_F(θ, c) and r_L(θ, c) of components c that a step logs.

    The environment stays as it is, `env.unwrapped.env`, with its own wrappers, time limit and pictures; what the
    follower sees is its observation as a vector (`gymnasium.spaces.flatten`). A follower has to learn, as
    ``SB3Follower`` does; leaders draw from copies by `reset` and `step`.

    Args:
      env: the id of a registered environment, or an environment, as ``gym.make(id, render_mode="rgb_array")`` gives it;
        copies are made from its spec, or by `deepcopy` where that does not tell all.
      theta_space: what θ may be.
      r_follower: r_F(θ, c), made of torch operations: from θ ``[..., *θ.shape]`` and c [..., C] to [...].
      r_leader: r_L(θ, c), likewise.
      preferences: γ_L, γ_F and β.
      components: what c is: None for the environment's reward, a number or a vector as in MO-Gymnasium; names of
        entries of `info`; or a function (observation, action, reward, next observation, info) → C numbers.
      default_theta: first θ; None for the middle of `theta_space`, or 0 where it has no bounds.
      parameterization: function (runs, noise) → module, see `Parameterization`; None for `Box` between the bounds, or
        `Free`.

    Raises:
      TypeError: if `env` is no environment, or has actions that no follower takes.
      ValueError: if an argument does not fit a step that was tried, by name.
    """

    def __init__(
        self,
        env: str | gym.Env,
        theta_space: gym.spaces.Box,
        r_follower: Reward,
        r_leader: Reward,
        preferences: Preferences,
        components: Sequence[str] | Step | None = None,
        default_theta: ArrayLike | None = None,
        parameterization: Callable[[int, Noise], Parameterization] | None = None,
    ) -> None:
        super().__init__(
            env,
            RewardProblem,
            theta_space,
            (r_follower, r_leader),
            preferences,
            components=components,
            default_theta=default_theta,
            parameterization=parameterization,
        )


def _named(components: Any) -> tuple[str, ...] | Step | None:
    """How components are logged, a single name as a list of one."""
    if components is None or callable(components):
        return components
    names = (components,) if isinstance(components, str) else components
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            "`components` must be None (the environment's reward), names of entries of `info`, at least one, or a "
            f"function (observation, action, reward, next observation, info), got {components!r}"
        )
    return tuple(names)


def _made(env: str | gym.Env) -> gym.Env:
    """The environment of an id, or as given."""
    if isinstance(env, str):
        return gym.make(env, disable_env_checker=True)
    if not isinstance(env, gym.Env):
        raise TypeError(f"`env` must be a gymnasium.Env or the id of one, got {type(env).__name__}")
    return env


def _copied(env: gym.Env) -> gym.Env:
    """Another one like it, made from its spec; a deep copy where the spec does not tell all."""
    if env.spec is not None:
        try:
            drawn = {} if env.render_mode is None else {"render_mode": None}  # which not every constructor takes
            return gym.make(env.spec, disable_env_checker=True, **drawn)
        except (ValueError, gym.error.Error):  # wrappers that do not record their arguments
            pass
    return deepcopy(env)


def _middle(space: gym.spaces.Box) -> np.ndarray:
    """The middle of a box; 0 where an entry has no bounds."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    return np.where(bounded, (np.where(bounded, space.low, 0) + np.where(bounded, space.high, 0)) / 2, 0.0)
