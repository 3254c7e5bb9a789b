"""What a configurable decision problem is: the players' preferences, θ, and the follower's MDP at one θ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.checks import check_choice, check_finite, check_number, check_shape, finite_numbers, keep_numbers
from bilevel_envs.core.contexts import Contexts
from bilevel_envs.core.noise import Noise

Numbers: TypeAlias = ArrayLike | Tensor  # what θ may be given as


@dataclass(frozen=True)
class Preferences:
    """What the two players want; belongs to the problem, so it travels with the environment.

    Attributes:
      gamma_leader: γ_L in [0, 1), the leader's discount.
      gamma_follower: γ_F in [0, 1), the follower's discount.
      beta: β > 0, the follower's entropy coefficient, in units of its reward per nat.
    """

    gamma_leader: float
    gamma_follower: float
    beta: float

    def __post_init__(self) -> None:
        for name in ("gamma_leader", "gamma_follower"):
            remedy = "For a sum over episodes of some N steps without discounting, take 1 - 1 / N or a little more"
            keep_numbers(self, name, at_least=0, below=1, remedy=remedy)
        keep_numbers(self, "beta", above=0, remedy="β is the follower's entropy coefficient")


def kind_of(thing: object) -> str | None:
    """The kind of world that the class of a model, a policy or a value function declares; None where it declares none.

    Kinds are names of `bilevel_envs.worlds`; networks, which may be policies in several, declare none.
    """
    return getattr(type(thing), "kind", None)


class Model(Protocol):
    """The follower's MDP at one θ; differentiable in θ through `terms` alone."""

    @property
    def kind(self) -> str:
        """The name of its kind of world; an attribute of the class."""

    @property
    def runs(self) -> int:
        """R, or 1 where every run shares the model."""

    @property
    def horizon(self) -> int | None:
        """The leader's objective is a sum over so many steps; None for no end."""

    @property
    def is_quadratic(self) -> bool:
        """Whether the leader's reward is a quadratic of states and actions that are vectors."""

    def terms(self, rollout: Rollout, policy: Any = None) -> Terms:
        """The differentiable terms at the visited steps, with E_b[r_F] under `policy` if one is given."""

    def detach(self) -> Model:
        """The same model without gradients."""


class Parameterization(torch.nn.Module):
    """Raw numbers that an optimiser moves; `forward()` is θ, ``[R, *θ.shape]``, inside θ's space.

    Subclasses keep R independent runs: every parameter has R as its leading axis.
    """

    runs: int = 1
    stacks: ClassVar[bool] = False  # whether forward() takes parameters of any number of runs, whatever `runs` is
    reads_context: bool = False  # whether forward() takes the features of each run's context, [R, ...]

    def forward(self) -> Tensor:
        """θ, ``[R, *θ.shape]``; called with the features of contexts, [R, ...], where it `reads_context`."""
        raise NotImplementedError

    def regulariser(self) -> Tensor:
        """Φ_L, added to the leader's objective, [R] or a scalar."""
        return torch.zeros(())

    def vertices(self) -> Tensor | None:
        """Raw numbers of one run at extreme θ, [K, ...]; None where none are known."""
        return None

    def scattered(self, noise: Noise) -> Tensor | None:
        """Raw numbers of one run drawn far apart, one draw per stream, [K, ...]; None where first values will do."""
        return None

    def inverse(self, theta: Tensor) -> Tensor | None:
        """Raw numbers whose θ is `theta` ``[K, *θ.shape]``, or close to it, [K, ...]; None where unknown."""
        return None


PROVEN = ("closed form", "exact maximisation")
REPEATABLE = "multi-start of the exact gradient"  # by `leaders.exact.multi_start`
PROOFS = (*PROVEN, REPEATABLE, "best found")


class BestKnown(float):
    """The best leader value known for a task; a float that says how it was found.

    Attributes:
      source: how the number was found, in words.
      proof: its kind: "closed form", "exact maximisation", "multi-start of the exact gradient" (which
        `leaders.exact.multi_start` repeats), or "best found".
      theta: θ at which the leader gets it, read-only; None where none is recorded.
    """

    source: str
    proof: str
    theta: np.ndarray | None

    def __new__(cls, value: float, source: str, proof: str = "best found", theta: ArrayLike | None = None) -> BestKnown:
        check_choice(proof, PROOFS, "proof")
        number = super().__new__(cls, check_number(value, "value"))
        number.source, number.proof, number.theta = source, proof, None
        if theta is not None:
            number.theta = finite_numbers(theta, np.shape(theta), "theta")
            number.theta.flags.writeable = False
        return number

    @property
    def exact(self) -> bool:
        """True for a proven optimum, False for a lower bound."""
        return self.proof in PROVEN

    def __repr__(self) -> str:
        return f"BestKnown({float(self):.9g}, {self.proof}: {self.source})"

    def __reduce__(self) -> tuple[object, ...]:
        return BestKnown, (float(self), self.source, self.proof, self.theta)


def recorded_best(problem: ConfigurableMDP, preferences: Preferences) -> BestKnown | None:
    """What a problem's hook `best_known` records.

    Raises:
      TypeError: if that is neither a `BestKnown` nor None.
      ValueError: if its θ has another shape than the problem's.
    """
    best, name = problem.best_known(preferences), type(problem).__name__
    if best is None:
        return None
    if not isinstance(best, BestKnown):
        raise TypeError(f"`best_known` of {name} must return BestKnown(value, source) or None, got {best!r}")
    if best.theta is not None and best.theta.shape != problem.theta_space.shape:
        raise ValueError(
            f"`best_known` of {name} must have a θ of shape {list(problem.theta_space.shape)}, "
            f"got {list(best.theta.shape)}"
        )
    return best


class ConfigurableMDP(Protocol):
    """What an environment's author writes: a space for θ, a default, preferences, and `model(theta)`.

    All else are hooks with defaults, listed here: environments and leaders ask for no others. Worlds of vectors, and
    games without a model, also need the spaces and functions that their environment lists.
    """

    @property
    def theta_space(self) -> gym.spaces.Box:
        """What θ may be, in the environment's own units."""

    @property
    def default_theta(self) -> np.ndarray:
        """θ in force until `configure` is called, shaped like `theta_space`."""

    @property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""

    def model(self, theta: Tensor) -> Model:
        """The follower's MDP at θ ``[R, *θ.shape]``, differentiable in θ: what planners and `exact` use.

        A problem with `contexts` writes `model(theta, context)`, whose second argument are each run's, int [R].
        """

    @property
    def simulates_its_model(self) -> bool:
        """Whether `step` simulates `model(θ)`; a task with a `simulator` of its own does not, unless it says so."""
        return type(self).simulator is ConfigurableMDP.simulator

    @property
    def on_grid(self) -> bool:
        """Whether `model(θ)` is a table on a grid of states, which `step` does not keep to."""
        return False

    def simulator(self, theta: Tensor) -> Model:
        """The world that `step` simulates, arguments as in `model`; differs from it only where a task says so."""
        return self.model(theta)

    @property
    def contexts(self) -> Contexts | None:
        """Maps, goals or kinds of followers, one of which is drawn before the leader decides; None without any."""
        return None

    def check_theta(self, theta: np.ndarray) -> None:
        """Refuses θ ``[..., *θ.shape]`` with a ValueError unless every entry lies in `theta_space`."""
        space = self.theta_space
        check_shape(theta, space.shape, "theta")
        check_finite(theta, "theta")
        slack = 1e-6  # rounding of a float32 parameterisation that touches the boundary
        outside = (theta < space.low - slack) | (theta > space.high + slack)
        if outside.any():
            at = tuple(int(i) for i in np.argwhere(outside)[0])
            inner = at[theta.ndim - len(space.shape) :]
            raise ValueError(
                f"`theta` must lie in theta_space; at {at} it is {theta[at]:.6g}, "
                f"outside [{space.low[inner]:.6g}, {space.high[inner]:.6g}]"
            )

    # The leader's side ----------------------------------------------------------------------------------------

    def parameterization(self, runs: int, noise: Noise) -> Parameterization | None:
        """The task's default parameterisation of θ, freshly initialised for `runs` runs.

        By default a sigmoid between the bounds of `theta_space`, or θ itself where it has none, begun at the default θ;
        None, for none, where only some bounds are finite.
        """
        from bilevel_envs.core.parameterizations import around

        return around(self.default_theta, self.theta_space, runs)

    def best_known(self, preferences: Preferences) -> BestKnown | None:
        """The best leader value known under `preferences`; None where none is recorded."""
        return None

    @property
    def advised(self) -> Mapping[str, object]:
        """Default arguments of leaders in this environment, by name."""
        return {}

    @property
    def blocks(self) -> Mapping[str, slice] | None:
        """Named parts of θ with a learning rate of their own in the published settings; None for one rate."""
        return None

    @property
    def parts(self) -> Callable[[Tensor], Mapping[str, Model]] | None:
        """`parts(theta)`: models whose values add up to the model's, by name; None where the return has no parts."""
        return None

    @property
    def discrete_actions(self) -> int:
        """How many actions a critic reads one-hot at states that are vectors; 0 where it reads actions as numbers."""
        return 0

    @property
    def masks_actions(self) -> bool:
        """Whether the last `discrete_actions` entries of an observation say which actions are possible, 1 or 0."""
        return False

    @property
    def stage_actions(self) -> int:
        """A, the leader's actions in a finite game whose follower sees them; 0 elsewhere."""
        return 0

    @property
    def leader_actions(self) -> gym.Space | None:
        """The leader's actions in a game of two players; None elsewhere."""
        return None

    # The environment ------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What messages call the problem: its class, unless that says nothing to a user."""
        return type(self).__name__

    @property
    def environment(self) -> str | None:
        """The environment that steps it, "MODULE:CLASS"; None for the one that goes with its model's kind."""
        return None

    @property
    def vector_space(self) -> gym.Space | None:
        """The space of `observe`, for `observation="vector"`; None where a state of a table is its number alone."""
        return None

    @property
    def default_observation(self) -> str:
        """What `make` shows of a table's state by default: "index" or "vector"."""
        return "index"

    def observe(self, state: Any) -> Any:
        """The vectors that stand for a table's states, in `vector_space`."""
        return state

    def index(self, observation: Any) -> Any:
        """The numbers of the states that `observe` shows: what policies and values of a table take."""
        return np.asarray(observation)

    def components(self, state: np.ndarray, action: np.ndarray, theta: np.ndarray) -> Mapping[str, np.ndarray]:
        """What else a linear-quadratic environment puts into `info`, from states, actions and each one's θ, by name."""
        return {}

    # Pictures -------------------------------------------------------------------------------------------------

    @property
    def draw(self) -> Callable[..., np.ndarray] | None:
        """`draw(state, theta)`: a picture, uint8 [height, width, 3]; None for a problem without one.

        A problem every model of which is of one context writes `draw(state, theta, context)`.
        """
        return None

    @property
    def last_step_stays(self) -> bool:
        """Whether the step that ends an episode is taken at its last state, which pictures then go on showing."""
        return False

    @property
    def draw_visits(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        """`draw_visits(visits, theta)`: a picture of discounted visits of pairs, [S, B]; None without one."""
        return None

    @property
    def grid(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """`grid(values)`: a number per state laid out on a map, NaN where no state is; None without a map."""
        return None

    @property
    def landmarks(self) -> Mapping[str, tuple[int, int]]:
        """(row, column) of places on the map of `grid`, by letter."""
        return {}
