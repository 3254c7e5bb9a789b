"""A kind of world as an object: what environments, followers and leaders ask, instead of telling models apart."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_finite
from bilevel_envs.core.follower import BestResponse, Policy
from bilevel_envs.core.mdp import Model, kind_of
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.responses import check_parts

WORLDS = {
    "tabular": "bilevel_envs.worlds.tabular.world",
    "linear_quadratic": "bilevel_envs.worlds.linear_quadratic.world",
    "declared": "bilevel_envs.worlds.declared.world",
}  # the module of each kind, which holds its `WORLD`


M = TypeVar("M", bound=Model)
P = TypeVar("P", bound=Policy)


class World(Generic[M, P]):
    """One kind of world, with defaults for vector states and a model that cannot be sampled.

    A kind of its own derives from this class and is named in `WORLDS`; its models declare that name as `kind`.

    Attributes:
      name: of the kind.
      environment: what steps problems of this kind, "MODULE:CLASS".
      default_follower: the exact follower's name; None where one has to learn.
      countable: whether states are the numbers of a table's rows.
      solved: whether a planner can solve its models.
    """

    name: ClassVar[str]
    environment: ClassVar[str]
    default_follower: ClassVar[str | None] = None
    countable: ClassVar[bool] = False

    @property
    def solved(self) -> bool:
        """Whether there is an exact follower."""
        return self.default_follower is not None

    def rollout(
        self,
        model: M,
        policy: P,
        noise: Noise,
        *,
        rows: int,
        horizon: int,
        time_limit: int | None,
        whole_episodes: bool,
    ) -> Rollout | None:
        """Trajectories drawn from the model alone; None where only `reset` and `step` give them.

        Args:
          model: the world, without gradients.
          policy: how the follower acts.
          noise: one stream per run.
          rows: N.
          horizon: T.
          time_limit: an episode is truncated after so many steps; None for no limit.
          whole_episodes: rows stop after their first episode instead of starting another.
        """
        return None

    def check_policy(self, policy: Policy, runs: int, model: M) -> None:
        """Refuses what is no policy of so many runs in a model; networks are taken as they are.

        Raises:
          TypeError: if it is one for another kind of world.
          ValueError: if it has another number of runs, states or actions, or is no distribution.
        """

    def check_observation(self, observation: np.ndarray, model: M) -> None:
        """Refuses with a ValueError observations [R, N, ...] that are no states of the model."""

    def check_batch(self, batch: Rollout, model: M) -> None:
        """Refuses with a ValueError a batch of an environment that lies outside its model."""
        check_finite(batch.r_leader, "leader_reward")
        check_finite(batch.r_follower, "reward")
        check_finite(batch.state, "observations")
        check_finite(batch.next_state, "observations that steps led to")

    def check_response(self, best: BestResponse, runs: int, model: M) -> None:
        """Refuses with a FollowerError what is no response of so many runs to a model, or is not finite."""
        check_parts(best, runs)

    def inputs(self, observations: Callable[[int], np.ndarray], model: M) -> Callable[[Tensor], Tensor]:
        """What networks read of states [R, ...], as a function of them.

        Args:
          observations: what the follower sees in each of so many states of a table.
          model: the world.
        """
        return lambda state: state.double()

    def knows_rewards(self, observations: Callable[[int], np.ndarray], model: M) -> bool:
        """Whether r_F at another θ can be computed from what the follower saw and did; arguments as of `inputs`."""
        return False

    def reads_components(self, model: M) -> bool:
        """Whether r_F is a function of components that steps log."""
        return False

    def stored_reward(self, model: M, run: int, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """r_F of a run at what the follower saw [K, E, ...] and did [K, E, ...], [K, E]; where `knows_rewards`.

        Where it `reads_components`, they stand in place of what was seen, [K, E, C].
        """
        raise NotImplementedError(f"rewards are not known in a {self.name} world")


def world_called(name: str) -> World[Any, Policy]:
    """The kind of a name in `WORLDS`."""
    return import_module(WORLDS[name]).WORLD


def world_of(model: Model) -> World[Any, Policy]:
    """The kind of world that a model is of.

    Raises:
      TypeError: if it is no model.
    """
    kind = kind_of(model)
    if kind not in WORLDS:
        got = repr(model) if model is None or isinstance(model, type) else type(model).__name__
        raise TypeError(f"`model` must be a TabularModel, a LinearQuadraticModel or a SimulatedModel, got {got}")
    return world_called(kind)
