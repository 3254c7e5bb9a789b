r"""Environments that somebody else wrote, with a leader's θ in both rewards.

With θ in the rewards alone, log p and log ρ0 have no gradient, and r_F(θ, c) and r_L(θ, c) as functions of components c
that a step logs are all that a hypergradient needs of the world (arXiv:2603.14867, Theorem 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike

from bilevel_envs.core.checks import check_count, finite_numbers
from bilevel_envs.core.env_base import ConfigurableEnv, ConfigurableVectorEnv
from bilevel_envs.core.mdp import Model, Numbers, Parameterization, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.problems import check_problem, check_theta_space
from bilevel_envs.core.transparent import shortest_limit
from bilevel_envs.worlds.declared.global_streams import GlobalStreams, StreamStates, put_back, same_streams, streams_now
from bilevel_envs.worlds.declared.inside import Inside, deep_copy, from_spec, made, same_trace
from bilevel_envs.worlds.declared.masks import gives_mask, with_mask
from bilevel_envs.worlds.declared.problem import Reward, RewardModel, RewardProblem, SetTheta, Step
from bilevel_envs.worlds.declared.spaces import Actions, check_actions, seen_space

TRIED = 10  # steps of an episode that a copy must repeat


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
        self.env = made(env)
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
        before = streams_now()
        self._inside = Inside(self.env, problem)
        if gives_mask(self._inside.reset(default, 0)[1], self.env.action_space, name):
            problem = replace(problem, masks_actions=True)
            self.observation_space = with_mask(self.observation_space, problem.discrete_actions)
            self._inside = Inside(self.env, problem)
        another = from_spec(self.env)
        self._idle = [] if another is None else [Inside(another, problem)]
        # What copies are deep ones of, before it is drawn; None where the spec tells all.
        self._pattern = deep_copy(self.env, name) if another is None else None
        super().__init__(problem)
        self.render_mode = self.env.render_mode
        self._try_a_step()
        self._try_a_copy(name, before)

    def _try_a_copy(self, name: str, before: StreamStates) -> None:
        """Takes copies from the spec, or deep ones, whichever repeat what the environment does with one seed.

        One that has drawn from a global random stream since `before` is given states of its own, as its copies are.
        """
        theta = self._theta
        told = self._inside.trace(theta, self.action_space, TRIED)
        if not same_streams(before, streams_now()):
            put_back(before)
            self._inside.streams = _streams()
            told = self._inside.trace(theta, self.action_space, TRIED)
        repeats = same_trace(told, self._inside.trace(theta, self.action_space, TRIED))
        if repeats and self.problem.sets is not None:
            first = self._inside.reset(_far(theta, self.theta_space), 0)[0]
            self.problem = replace(self.problem, moves_start=not np.array_equal(first, told[0]))
        while True:
            (copy,) = self.lent(1)
            alike = same_trace(told, self._own_streams(copy).trace(theta, self.action_space, TRIED))
            if alike or not repeats:
                return self.give_back([copy])
            copy.env.close()
            if self._pattern is not None:
                raise ValueError(
                    f"`env` must be one whose copies do the same with the same seed and actions; those of {name} do "
                    "not. Give what you set in it as keywords of its constructor, as in gymnasium.make(id, g=1.0), or "
                    "set it in the `reset` of a wrapper"
                )
            self._pattern = deep_copy(self.env, name)

    def _try_a_step(self) -> None:
        """Refuses components and rewards that do not fit a step, at one θ and at two side by side."""
        seen, _ = self._inside.reset(self._theta, 0)
        self.action_space.seed(0)
        _, components, *_ = self._inside.step(self._inside.drawn(self.action_space, seen))
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
        env = from_spec(self.env) if self._pattern is None else deep_copy(self._pattern, self.problem.env)
        assert env is not None, "its spec has told all before"
        return self._own_streams(Inside(env, self.problem, self._inside.size))

    def _own_streams(self, copy: Inside) -> Inside:
        """A copy with states of the global random streams of its own, where the environment draws from them."""
        if self._inside.streams is not None and copy.streams is None:
            copy.streams = _streams()
        return copy

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
        if self._pattern is not None:
            self._pattern.close()
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


def _far(theta: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    """Another θ, half of the way to the bound that is farther, or 1 further where there is none."""
    low, high = space.low - theta, space.high - theta
    ends = np.where(-low > high, low, high)
    return theta + np.where(np.isfinite(ends), ends / 2, np.sign(ends))


def _streams() -> GlobalStreams:
    """States of the global random streams that nobody else has."""
    return GlobalStreams(int(np.random.SeedSequence().generate_state(1)[0]))


def _middle(space: gym.spaces.Box) -> np.ndarray:
    """The middle of a box; 0 where an entry has no bounds."""
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    return np.where(bounded, (np.where(bounded, space.low, 0) + np.where(bounded, space.high, 0)) / 2, 0.0)
