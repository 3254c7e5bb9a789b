"""What a follower is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, Protocol, TypeAlias, TypeGuard, TypeVar

import gymnasium as gym
import numpy as np
from torch import Tensor

from bilevel_envs.core.autograd import with_gradients
from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import lacking
from bilevel_envs.core.mdp import ConfigurableMDP, Model, Preferences, kind_of

if TYPE_CHECKING:
    from typing_extensions import TypeIs
    from typing_extensions import TypeVar as TypeVarWithDefault

    P_co = TypeVarWithDefault("P_co", bound="Policy", covariant=True, default="Policy")
    V_co = TypeVarWithDefault("V_co", bound="ValueFunction", covariant=True, default="ValueFunction")
else:  # typing's own have no default before Python 3.13
    P_co, V_co = TypeVar("P_co", covariant=True), TypeVar("V_co", covariant=True)

M = TypeVar("M")
Points: TypeAlias = Tensor | np.ndarray  # states, actions or uniform numbers
MODELS = {"tabular": "TabularModel", "linear_quadratic": "LinearQuadraticModel", "declared": "SimulatedModel"}


class NotAvailableError(RuntimeError):
    """A leader asked its follower for what it cannot give."""


class UnsupportedModelError(TypeError):
    """Raised when a follower does not support this kind of world, whatever θ is."""


class FollowerError(RuntimeError):
    """Raised when a follower fails to train or returns an invalid response."""


@dataclass(frozen=True)
class Missing:
    """Stands for a part of a response that its follower cannot give: asking raises `NotAvailableError`.

    Attributes:
      reason: what is missing, why, and what to do instead.
    """

    kind: ClassVar[str] = "missing"

    reason: str

    def __call__(self, *_: object) -> NoReturn:
        raise NotAvailableError(self.reason)

    @property
    def values(self) -> NoReturn:
        """Raises."""
        raise NotAvailableError(self.reason)

    def gradient(self, *_: object) -> NoReturn:
        """Raises."""
        raise NotAvailableError(self.reason)


class Policy(Protocol):
    """How a follower acts; see `action_shape_of` for the shape of its actions."""

    def sample(self, state: Points, uniform: Points) -> Tensor:
        """Actions at states [R, ...] from `uniform` in [0, 1), shaped like the actions."""

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """log g(b | s), [R, ...]."""


class PolicyWithMoments(Policy, Protocol):
    """A policy of actions that are vectors, of which mean and covariance are known."""

    def moments(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [R, ..., m] and covariance [R, ..., m, m] of the action at states [R, ..., n]."""


class PolicyWithNodes(Policy, Protocol):
    """A policy under which expectations are weighted sums over some of its actions."""

    def action_nodes(self, state: Tensor) -> tuple[Tensor, Tensor] | None:
        """Actions [R, K, J, ...] and their weights at states [R, K, ...]; None where they would be too many."""


class ValueFunction(Protocol):
    """Q_F or V_F as a function: of states and actions, or of states."""

    def __call__(self, *at: Any) -> Tensor:
        """Values, [R, ...]."""


class DifferentiableValueFunction(ValueFunction, Protocol):
    """A value function of states that are vectors, with its gradient."""

    def gradient(self, x: Tensor, /) -> Tensor:
        """∇ at x [R, ..., n], shaped like x."""


def can_sample(policy: object) -> bool:
    """Whether an object is a policy, which is whether it has `sample`."""
    return not lacking(policy, ["sample"])


def has_moments(policy: Policy) -> TypeGuard[PolicyWithMoments]:
    """Whether mean and covariance of a policy's actions are known, which is whether it has `moments`."""
    return not lacking(policy, ["moments"])


def has_nodes(policy: Policy) -> TypeGuard[PolicyWithNodes]:
    """Whether expectations under a policy are sums over nodes, which is whether it has `action_nodes`."""
    return not lacking(policy, ["action_nodes"])


def action_shape_of(policy: Policy) -> tuple[int, ...]:
    """The shape of a policy's actions; () for those that are numbers, and where it declares none."""
    return getattr(policy, "action_shape", ())


@dataclass(frozen=True)
class BestResponse(Generic[P_co, V_co]):
    """The follower's response at a fixed θ: its policy, values and residual.

    Attributes:
      policy: g as the leader knows it, a `BoltzmannPolicy`, a `GaussianPolicy` or a network's: `sample`, `log_prob`,
        and `expect` where it has a closed form.
      q: Q_F, `q(state, action)`; a `Table`, a `Quadratic`, a network, or `Missing`.
      v: V_F; `v(state)`. β log g = Q_F − V_F.
      residual: the largest violation of the optimality equation, [R], in units of the follower's reward; NaN for a
        follower that solves no equation.
      optimal: True where the follower solved its problem to tolerance, so that `policy` is the soft optimum; leaders
        believe it, and take the value under `policy` for the `leader_value` of the history.
      solver_state: what the follower wants to find again in `init` next time, tensors by name; None for nothing.
      actual_policy: how the follower really acts, where `policy` is only what the leader believes; None where they
        agree.
      steps: environment steps that the response took, per run.
      optimality_gap: the optimum of the follower's soft return less that of its policy, [R]; None where that is not
        known.
      improvement: of a follower that learnt, its mean reward per step in the last quarter of the training less that in
        the quarter before, [R]; None for others.
      drift: of a follower that learnt, KL(g ‖ g of its response before) at states that it sees, [R]; None where there
        was none before.
    """

    policy: P_co
    q: V_co
    v: V_co
    residual: Tensor
    optimal: bool
    solver_state: dict[str, Tensor] | None = None
    actual_policy: P_co | None = None
    steps: int = 0
    optimality_gap: Tensor | None = None
    improvement: Tensor | None = None
    drift: Tensor | None = None

    @property
    def behavior_policy(self) -> P_co:
        """The policy that makes the trajectories."""
        return self.policy if self.actual_policy is None else self.actual_policy


@dataclass(frozen=True)
class Capabilities:
    """What a follower declares of itself, as its `capabilities`; see `capabilities_of` for those that declare nothing.

    Attributes:
      kinds: names of the kinds of world in which it can answer; None for all.
      gives_values: whether Q_F and V_F are to be had.
      learns: whether it has `respond`, for it needs the environment itself; otherwise it has `best_response`.
      optimal: whether it solves its problem to tolerance.
      saves: whether it has `state_dict` and `load_state_dict`.
      checks: whether it has `check(task)`, which refuses worlds before anything is spent on them.
      cuts_short: whether it has `cut_short`, the response after so many rounds; see `Truncated`.
    """

    kinds: tuple[str, ...] | None = None
    gives_values: bool = True
    learns: bool = False
    optimal: bool = False
    saves: bool = False
    checks: bool = False
    cuts_short: bool = False


@dataclass(frozen=True)
class CutShort:
    """How a planner is cut short; see `Truncated`.

    Attributes:
      rounds: of planning.
      carries: whether it goes on from where the last response ended.
      sweeps: backups per round, where a round has several.
      first: `first(runs, shape, calls)`: the tables [R, *shape] in which the response number `calls` begins, where it
        does not begin at 0.
    """

    rounds: int
    carries: bool
    sweeps: int
    first: Callable[[int, tuple[int, ...], int], Tensor]


class Follower(Protocol):
    """Returns its response to a model."""

    @property
    def beta(self) -> float | None:
        """Entropy coefficient that overrides the problem's own; None keeps the problem's."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; optional."""

    def best_response(
        self, model: Model, preferences: Preferences, init: BestResponse[Any, Any] | None = None
    ) -> BestResponse:
        """The response to `model`; `init` is an earlier response to begin from."""


@dataclass(frozen=True)
class FollowerTask:
    """What a follower that learns is given: its world at θ, as far as it may look into it.

    Attributes:
      theta: ``[R, *θ.shape]``.
      model: the environment's model at θ, without gradients.
      problem: the configurable MDP, whose `preferences` are the problem's own.
      preferences: γ_L, γ_F, and the follower's β.
      observation_space, action_space: the follower's.
      time_limit: steps after which an episode is truncated; None for no limit.
      copies: `copies(count, theta, max_episode_steps=None, run=None)`: so many copies of the environment at one θ,
        ``[*θ.shape]``, and in a run's context, as a vector environment with autoreset mode SAME_STEP.
      rollout: `rollout(theta, best, noise, rows=, horizon=, whole_episodes=False)`: trajectories of a response.
      observations: `observations(states)`: what the follower sees in each state of a table, [S] or [S, ...].
    """

    theta: np.ndarray
    model: Model
    problem: ConfigurableMDP
    preferences: Preferences
    observation_space: gym.Space
    action_space: gym.Space
    time_limit: int | None
    copies: Callable[..., gym.vector.VectorEnv]
    rollout: Callable[..., Rollout]
    observations: Callable[[int], np.ndarray]


class LearningFollower(Protocol):
    """A follower that needs the environment itself, and keeps what it has learnt.

    It may also have the methods of `CheckingFollower`, `ExplainingFollower` and `StatefulFollower`.
    """

    @property
    def beta(self) -> float | None:
        """Entropy coefficient that overrides the problem's own; None keeps the problem's."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; optional."""

    def respond(
        self,
        task: FollowerTask,
        theta: np.ndarray,
        model: Model,
        init: BestResponse[Any, Any] | None,
        learn: bool = True,
    ) -> BestResponse:
        """The response at θ.

        Args:
          task: copies of the environment to learn in, and what goes with them.
          theta: ``[R, *θ.shape]``.
          model: the environment's model at θ, without gradients.
          init: the last response.
          learn: False to answer with what has been learnt so far.
        """


class ExplainingFollower(Protocol):
    """A follower that says itself what stands for a value that it cannot give; see `missing_value`."""

    def missing(self, what: str) -> Missing:
        """What stands for a value, "Q_F" or "V_F"."""


class CheckingFollower(Protocol):
    """A follower that refuses worlds before anything is spent on them."""

    def check(self, task: FollowerTask) -> None:
        """Refuses with a ValueError a world that it cannot learn in, before anything is spent."""


class StatefulFollower(Protocol):
    """A follower that keeps what it has learnt."""

    def state_dict(self) -> dict[str, object]:
        """What has been learnt: tensors and numbers in dicts and lists."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts it back."""


def capabilities_of(follower: Any) -> Capabilities:
    """What a follower can do: what it declares, or what its methods say where it declares nothing."""
    absent = lacking(follower, ("capabilities", "gives_values", "respond", "state_dict", "check"))
    if "capabilities" not in absent and isinstance(follower.capabilities, Capabilities):
        return follower.capabilities
    return Capabilities(
        gives_values="gives_values" in absent or bool(follower.gives_values),
        learns="respond" not in absent,
        saves="state_dict" not in absent,
        checks="check" not in absent,
    )


def saves(follower: object) -> TypeGuard[StatefulFollower]:
    """Whether a follower keeps what it has learnt, which a leader's file then holds."""
    return capabilities_of(follower).saves


def own_beta(follower: Follower | LearningFollower) -> float | None:
    """The β that a follower has of its own; None where it has none, or says nothing of it."""
    return None if lacking(follower, ["beta"]) else follower.beta


def _explains(follower: object) -> TypeGuard[ExplainingFollower]:
    return not lacking(follower, ["missing"])


def _checks(follower: object) -> TypeGuard[CheckingFollower]:
    return capabilities_of(follower).checks


def missing_value(follower: object, what: str) -> Missing:
    """What stands for a value that a follower cannot give: by its own `missing`, or in general words without one."""
    if _explains(follower):
        return follower.missing(what)
    return Missing(
        f"{what} is not available from {type(follower).__name__}: wrap the follower, ObservedFollower(...), which "
        "estimates it from what it does"
    )


def is_follower(thing: object) -> TypeIs[Follower | LearningFollower]:
    """Whether an object can answer, by `best_response` or by `respond`; classes cannot."""
    return not isinstance(thing, type) and (not lacking(thing, ["best_response"]) or capabilities_of(thing).learns)


def check_compatible(follower: object, model: Model) -> None:
    """Refuses a follower that cannot answer in a model's kind of world.

    Raises:
      UnsupportedModelError: if it declares that it cannot.
    """
    kinds = capabilities_of(follower).kinds
    if kinds is not None and model.kind not in kinds:
        raise UnsupportedModelError(_unsuited([MODELS[kind] for kind in kinds], type(follower).__name__, model))


def check_worth(follower: object, task: FollowerTask) -> None:
    """Lets a follower that learns, or the one that is watched, refuse a world before anything is spent on it.

    Args:
      follower: who may refuse.
      task: its world at θ.
    """
    if _checks(follower):
        follower.check(task)


@with_gradients
def response_of(
    follower: Follower | LearningFollower,
    task: FollowerTask,
    init: BestResponse | None = None,
    learn: bool = True,
) -> BestResponse:
    """The response of a planning or a learning follower.

    Args:
      follower: who answers.
      task: its world at θ; `preferences` with the problem's β are replaced by those with its own.
      init: an earlier response.
      learn: False to answer with what has been learnt so far.
    """
    if _learns(follower):
        return follower.respond(task, task.theta, task.model, init, learn)
    return follower.best_response(task.model, task.preferences, init)


def _learns(follower: Follower | LearningFollower) -> TypeIs[LearningFollower]:
    """Whether it has `respond`; otherwise it has `best_response`."""
    return capabilities_of(follower).learns


def task_of_another(task: FollowerTask, follower: Follower | LearningFollower) -> FollowerTask:
    """The same task for a follower inside another: with its own β, or the problem's, not with the outer one's."""
    preferences, beta = task.problem.preferences, own_beta(follower)
    return replace(task, preferences=preferences if beta is None else replace(preferences, beta=beta))


def check_planner(follower: object, name: str = "follower") -> None:
    """Refuses what cannot plan: classes, names, and followers that learn."""
    if not is_follower(follower) or capabilities_of(follower).learns:
        raise TypeError(
            f"`{name}` must be a planner, an object with `best_response` such as SoftValueIteration(), got {follower!r}"
        )


def check_model(model: object, kind: type[M], planner: str) -> M:
    """Returns the world; refuses one that a planner cannot plan in.

    Args:
      model: the world.
      kind: what it must be.
      planner: the planner's class.

    Raises:
      UnsupportedModelError: if it is of another kind.
    """
    if not isinstance(model, kind):
        raise UnsupportedModelError(_unsuited([kind.__name__], planner, model))
    return model


def _unsuited(wanted: Sequence[str], follower: str, model: object) -> str:
    """The message for a world of another kind than a follower answers in."""
    suited = {"tabular": "SoftValueIteration()", "linear_quadratic": "Riccati()"}
    learns = 'one that learns: SB3Follower("SoftDQN") for discrete actions, SB3Follower("SAC") for vectors'
    remedy = suited.get(kind_of(model) or "", learns)
    return (
        f"`model` must be a {' or a '.join(wanted)} for {follower} to plan in, got {type(model).__name__}; `follower` "
        f"must be one that suits it: {remedy}"
    )


def check_given(follower: object, world: str) -> None:
    """Refuses None where a world can only be learnt."""
    if follower is None:
        raise ValueError(
            f"`follower` must be given: {world} offers neither tables nor matrices to solve. "
            'Take one that learns: SB3Follower("SoftDQN") for discrete actions, SB3Follower("SAC") for vectors'
        )


def tiled_part(part: Any, copies: int) -> Any:
    """A policy or a value function for `copies` times as many runs, copy j of run i at j·R + i.

    By its own `tiled(copies)`; without one it is taken for a dataclass of tensors that lead with runs.
    """
    if part is None or kind_of(part) == "missing":
        return part
    if not lacking(part, ["tiled"]):
        return part.tiled(copies)
    tensors = {field.name: getattr(part, field.name) for field in fields(part)}
    return replace(
        part,
        **{
            name: table if table.shape[0] == 1 else table.repeat(copies, *[1] * (table.ndim - 1))
            for name, table in tensors.items()
        },
    )


def tiled(best: BestResponse, copies: int) -> BestResponse:
    """The response of `copies` times as many runs, copy j of run i at j·R + i."""
    parts = {name: tiled_part(getattr(best, name), copies) for name in ("policy", "q", "v", "actual_policy")}
    return replace(best, **parts, solver_state=None)
