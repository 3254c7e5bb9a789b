"""The taxed household as a Gymnasium environment with assets of any size: one, or many stepped as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike

from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.env_base import BLOCK, ConfigurableEnv, ConfigurableVectorEnv, Face
from bilevel_envs.core.mdp import ConfigurableMDP, Numbers
from bilevel_envs.core.problems import check_problem
from bilevel_envs.envs.tax_design import START_DEVIATION, TaxDesign
from bilevel_envs.worlds.linear_quadratic.model import truncated_normal
from bilevel_envs.worlds.tabular.model import TabularModel, closed_cdf

ACTIONS = ("multi", "flat", "totals")
DRAWS = 2  # uniform numbers that a step takes: for the noise and the bundle; at first for the assets and the type


class _TaxFace(Face[TabularModel]):
    """What the household sees and how it may speak."""

    model_kind = TabularModel
    actions: str
    observe_type: bool

    def _spaces(self, problem: TaxDesign, actions: str, observe_type: bool) -> tuple[gym.Space, gym.Space]:
        """Keeps the choices; returns the spaces of observations and actions."""
        check_problem(problem)
        check_choice(actions, ACTIONS, "actions")
        check_choice(observe_type, (False, True), "observe_type")
        self.actions, self.observe_type = actions, observe_type
        low, high = [-problem.limit], [problem.limit]
        if observe_type:
            low, high = low + [0.0] * problem.types, high + [1.0] * problem.types
        spaces: dict[str, gym.Space] = {
            "multi": gym.spaces.MultiDiscrete(list(problem.levels)),
            "flat": gym.spaces.Discrete(problem.hour_levels * len(problem.bundles)),
            "totals": gym.spaces.Discrete(problem.hour_levels * len(problem.totals)),
        }
        return gym.spaces.Box(np.array(low), np.array(high), dtype=np.float64), spaces[actions]

    def _prepared(self, theta: np.ndarray) -> tuple[Any, ...]:
        return self._in_place(theta)  # the table is not what `step` simulates, and is dear

    def _observe(self, state: np.ndarray) -> np.ndarray:
        """States [..., 2] hold assets and type."""
        if not self.observe_type:
            return state[..., :1]
        kinds = np.eye(cast(TaxDesign, self.problem).types)
        return np.concatenate([state[..., :1], kinds[state[..., 1].astype(int)]], -1)


class _Stepper:
    """Households at R rates θ, each for as many environments, in NumPy."""

    def __init__(
        self, problem: TaxDesign, count: int, actions: str, rates: torch.Tensor, context: np.ndarray | None = None
    ) -> None:
        self.problem, self.actions = problem, actions
        self.run, self.context = np.arange(count) // (count // len(rates)), context
        self.net_wage = (1 - rates[:, 0].numpy()) * problem.wage
        self.hours, self.bundles = problem.hours.numpy(), problem.bundles.numpy()
        at, lumped = rates[:, None, None], problem.lumped(rates)
        self.welfare = problem.welfare(problem.hours[:, None], problem.bundles, at).numpy()  # [R, hours, bundles]
        kinds = torch.arange(problem.types)[:, None]
        self.utility = problem.utility(problem.bundles, kinds, at).numpy()  # [R, types, bundles]
        self.lumped_reward = lumped.r_follower.numpy()  # [R, types, hours, totals]
        self.bundle_cdf = closed_cdf(lumped.share.numpy())  # [R, types, totals, bundles]
        self.type_cdf = closed_cdf(np.array(problem.probabilities, dtype=float))

    def first(self, uniform: np.ndarray, index: np.ndarray, context: int | None) -> np.ndarray:
        """First states of the environments `index` [K] from uniform numbers [K, 2], [K, 2].

        Their type is `context`; of None the one in force, or one drawn.
        """
        spread = START_DEVIATION
        assets = truncated_normal(np.zeros(1), np.array(spread), self.problem.limit, uniform[:, 0])
        if context is not None:
            kinds = np.full(len(uniform), context)
        elif self.context is not None:
            kinds = self.context[self.run[index]]
        else:
            kinds = (self.type_cdf <= uniform[:, 1:]).sum(1)
        return np.stack([assets, kinds], 1).astype(float)

    def advance(
        self, state: np.ndarray, action: np.ndarray, uniform: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Next states [count, 2], r_F [count], and what goes into `info`."""
        problem, run, assets, kind = self.problem, self.run, state[:, 0], state[:, 1].astype(int)
        if self.actions == "totals":
            hour, total = np.divmod(action, len(problem.totals))
            bundle = (self.bundle_cdf[run, kind, total] <= uniform[:, 1:]).sum(1)
            paid = self.lumped_reward[run, kind, hour, total]
        else:
            hour, bundle = np.divmod(action, len(self.bundles))
            paid = self.utility[run, kind, bundle] - problem.disutility * self.hours[hour] ** 2
        hours, spending = self.hours[hour], self.bundles[bundle]
        mean = np.clip(assets + self.net_wage[run] * hours - spending.sum(1), -problem.limit, problem.limit)
        arrived = truncated_normal(mean, np.array(problem.noise), problem.limit, uniform[:, 0])
        worth = torch.from_numpy(assets)
        welfare = self.welfare[run, hour, bundle] + problem.worth(worth, problem.leader_assets).numpy()
        reward = paid + problem.worth(worth, problem.follower_assets).numpy()
        info = {"leader_reward": welfare, "hours": hours, "spending": spending, "context": kind}
        return np.stack([arrived, state[:, 1]], 1), reward, info


class TaxVectorEnv(_TaxFace, ConfigurableVectorEnv[TabularModel]):
    """Many taxed households, stepped as arrays; autoreset mode SAME_STEP.

    Sub-environment i, seeded s + i, reproduces a scalar environment seeded s + i. The type asked for
    by `reset(options={"context": k})` is that of the episodes that begin with this call, not of later ones;
    `infos["context"]` is the type of the running episode.

    Args:
      problem: the tax world.
      num_envs: how many copies.
      theta: first θ, see `configure`; the problem's default if None.
      actions: "multi", "flat" or "totals".
      observe_type: whether observations tell the household's type.
      max_episode_steps: time limit; None for none.
      render_mode: "rgb_array" or None.
    """

    draws = DRAWS

    def __init__(
        self,
        problem: ConfigurableMDP,
        num_envs: int = 1,
        theta: Numbers | None = None,
        actions: str = "multi",
        observe_type: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        spaces = self._spaces(cast(TaxDesign, problem), actions, observe_type)
        self._context: int | None = None
        super().__init__(problem, num_envs, theta, max_episode_steps, render_mode, *spaces)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Numbers] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts episodes; `options` may also hold "context", the type of the households that begin."""
        self._context, options = _without_context(options, cast(TaxDesign, self.problem))
        try:
            observation, infos = super().reset(seed=seed, options=options)
        finally:
            self._context = None
        return observation, infos | self._present()

    def step(self, actions: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every household."""
        observation, reward, terminated, truncated, infos = super().step(actions)
        return observation, reward, terminated, truncated, infos | self._present()

    def _present(self) -> dict[str, np.ndarray]:
        return {"context": self._state[:, 1].astype(int), "_context": np.ones(self.num_envs, bool)}

    def _load(self, place: tuple[Any, ...]) -> None:
        self._stepper = _Stepper(cast(TaxDesign, self.problem), self.num_envs, self.actions, *place)

    def _first(self, index: np.ndarray) -> np.ndarray:
        return self._stepper.first(self._uniform(index), index, self._context)

    def _checked(self, actions: ArrayLike) -> np.ndarray:
        return _as_actions(actions, self.single_action_space, (self.num_envs,), "actions")

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        arrived, reward, info = self._stepper.advance(self._state, action, self._uniform(np.arange(self.num_envs)))
        return arrived, reward, np.zeros(self.num_envs, bool), info


class TaxEnv(_TaxFace, ConfigurableEnv[TabularModel]):
    """The follower's side of the tax world: a household that sees its assets.

    `step` simulates assets of any size, while `model(theta)` is a table on a grid of them; that is why leaders draw
    their trajectories from the table. θ has one owner, `configure`; a new θ takes effect at the next reset.

    Args:
      problem: the tax world.
      theta: first θ; the problem's default if None.
      actions: "multi" for the levels of hours and of each good, "flat" for the same as one number, "totals" for the
        table's actions, (hours, total).
      observe_type: whether observations tell the household's type.
      render_mode: "rgb_array", "human" (needs the extra `render`), or None.
    """

    vector_class = TaxVectorEnv

    def copies(self, count: int, max_episode_steps: int | None = None) -> TaxVectorEnv:
        """So many copies in which a household may learn: it knows its type, and chooses hours and total spending."""
        return TaxVectorEnv(
            self.problem, count, actions="totals", observe_type=True, max_episode_steps=max_episode_steps
        )

    def observations(self) -> np.ndarray:
        """What it sees there in each state of the table, [S, 1 + types]."""
        return cast(TaxDesign, self.problem).observations()

    face: ClassVar[tuple[str, ...]] = ("actions", "observe_type")

    def __init__(
        self,
        problem: ConfigurableMDP,
        theta: Numbers | None = None,
        actions: str = "multi",
        observe_type: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space, self.action_space = self._spaces(cast(TaxDesign, problem), actions, observe_type)
        self._context: int | None = None
        super().__init__(problem, theta, render_mode)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Numbers] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; `options` may hold "theta", and "context", the type of this episode's household."""
        self._context, options = _without_context(options, cast(TaxDesign, self.problem))
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "context": int(self._state[1])}

    def _load(self, place: tuple[Any, ...]) -> None:
        self._stepper = _Stepper(cast(TaxDesign, self.problem), 1, self.actions, *place)

    def _begin(self) -> np.ndarray:
        if self._fresh:
            self._block, self._fresh = np.empty((0, DRAWS)), False
        state = self._stepper.first(self._uniform(), np.zeros(1, int), self._context)[0]
        self._assets, self._acts = [state[0]], [np.zeros(len(self.theta))]
        return state

    def _checked(self, action: ArrayLike) -> np.ndarray:
        return _as_actions(action, self.action_space, (), "action")

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, Mapping[str, object]]:
        arrived, reward, info = self._stepper.advance(self._state[None], action.reshape(1), self._uniform())
        self._assets.append(arrived[0, 0])
        self._acts.append(np.append(info["hours"], info["spending"]))
        info = {key: value[0] if value.shape[1:] else value[0].item() for key, value in info.items()}
        return arrived[0], float(reward[0]), False, info

    def _uniform(self) -> np.ndarray:
        """[1, draws]."""
        if not len(self._block):
            self._block = self.np_random.random((BLOCK, DRAWS))
        row, self._block = self._block[:1], self._block[1:]
        return row

    def _frame(self) -> np.ndarray:
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `render`")
        return cast(TaxDesign, self.problem).draw(np.array(self._assets), self._theta, self._acts[-1])


def _as_actions(actions: ArrayLike, space: gym.Space, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Row-major numbers of actions, int `shape`; a ValueError for what are none."""
    array = np.asarray(actions)
    levels = space.nvec if isinstance(space, gym.spaces.MultiDiscrete) else np.array(cast(gym.spaces.Discrete, space).n)
    wanted = (*shape, *levels.shape)
    if array.dtype.kind in "iu" and array.size == np.prod(wanted) and not levels.shape:
        array = array.reshape(wanted)  # policies also give one number as an array
    if array.dtype.kind not in "iu" or array.shape != wanted or (array < 0).any() or (array >= levels).any():
        raise ValueError(f"`{name}` must lie in {space}, {list(wanted)} whole numbers; got {actions!r}")
    array = array.astype(np.int64)
    return np.ravel_multi_index(tuple(np.moveaxis(array, -1, 0)), tuple(levels)) if levels.shape else array


def _without_context(
    options: Mapping[str, Numbers] | None, problem: TaxDesign
) -> tuple[int | None, Mapping[str, Numbers] | None]:
    """The type asked for, and the other options."""
    if not options or "context" not in options:
        return None, options
    check_choice(options["context"], range(problem.types), 'options["context"]')
    return int(cast(int, options["context"])), {key: value for key, value in options.items() if key != "context"}
