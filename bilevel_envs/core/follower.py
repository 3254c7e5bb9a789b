"""What a follower is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from torch import Tensor

from bilevel_envs.core.autograd import with_gradients
from bilevel_envs.core.mdp import Model, Preferences, kind_of

M = TypeVar("M")


class NotAvailableError(RuntimeError):
    """A leader asked its follower for what it cannot give."""


class UnsupportedModelError(TypeError):
    """A follower cannot live in this kind of world, whatever θ is."""


class FollowerError(RuntimeError):
    """A follower's training failed, or what came of it is no way of living."""


@dataclass(frozen=True)
class Missing:
    """Stands for a part of a response that its follower cannot give: asking raises `NotAvailableError`.

    Attributes:
      reason: what is missing, why, and what to do instead.
    """

    kind: ClassVar[str] = "missing"

    reason: str

    def __call__(self, *_: Any) -> NoReturn:
        raise NotAvailableError(self.reason)

    @property
    def values(self) -> NoReturn:
        """Raises."""
        raise NotAvailableError(self.reason)

    def gradient(self, *_: Any) -> NoReturn:
        """Raises."""
        raise NotAvailableError(self.reason)


class Policy(Protocol):
    """How a follower acts; see `action_shape_of` for the shape of its actions."""

    def sample(self, state: Any, uniform: Any) -> Tensor:
        """Actions at states [R, ...] from `uniform` in [0, 1), shaped like the actions."""

    def log_prob(self, state: Any, action: Any) -> Tensor:
        """log g(b | s), [R, ...]."""


def can_sample(policy: object) -> bool:
    """Whether an object is a policy, which is whether it has `sample`."""
    return hasattr(policy, "sample")


def action_shape_of(policy: Policy) -> tuple[int, ...]:
    """The shape of a policy's actions; () for those that are numbers, and where it declares none."""
    return getattr(policy, "action_shape", ())


@dataclass(frozen=True)
class BestResponse:
    """How the follower lives at one θ.

    Attributes:
      policy: g as the leader knows it, a `BoltzmannPolicy`, a `GaussianPolicy` or a network's: `sample`, `log_prob`,
        and `expect` where it has a closed form.
      q: Q_F, `q(state, action)`; a `Table`, a `Quadratic`, a network, or `Missing`.
      v: V_F; `v(state)`. β log g = Q_F − V_F.
      residual: how far the response is from the soft optimum, [R], in units of the follower's reward: the largest
        violation of the optimality equation for planners; see each learning follower for what it reports.
      optimal: True where the follower solved its problem to tolerance, so that `policy` is the soft optimum; leaders
        believe it, and take the value under `policy` for the `leader_value` of the history.
      solver_state: what the follower wants to find again in `start` next time, tensors by name; None for nothing.
      actual_policy: how the follower really acts, where `policy` is only what the leader believes; None where they
        agree.
      steps: environment steps that the response took, per run.
    """

    policy: Any
    q: Any
    v: Any
    residual: Tensor
    optimal: bool
    solver_state: dict[str, Tensor] | None = None
    actual_policy: Any = None
    steps: int = 0

    @property
    def behavior_policy(self) -> Any:
        """The policy that makes the trajectories."""
        return self.policy if self.actual_policy is None else self.actual_policy


class Follower(Protocol):
    """Answers a model with its way of living in it."""

    @property
    def beta(self) -> float | None:
        """Entropy coefficient that overrides the problem's own; None keeps the problem's."""

    def best_response(self, model: Model, preferences: Preferences, start: BestResponse | None = None) -> BestResponse:
        """The response to `model`; `start` is an earlier response to begin from."""


class LearningFollower(Protocol):
    """A follower that needs the environment itself, and keeps what it has learnt."""

    @property
    def beta(self) -> float | None:
        """Entropy coefficient that overrides the problem's own; None keeps the problem's."""

    def respond(
        self, env: Any, theta: Any, model: Model, start: BestResponse | None, learn: bool = True
    ) -> BestResponse:
        """The response at θ.

        Args:
          env: the `BilevelWrapper`, from whose environment copies may be made.
          theta: ``[R, *θ.shape]``.
          model: the environment's model at θ, without gradients.
          start: the last response.
          learn: False to answer with what has been learnt so far.
        """

    def state_dict(self) -> dict[str, Any]:
        """What has been learnt: tensors and numbers in dicts and lists."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts it back."""


@with_gradients
def response_of(
    follower: Any, env: Any, theta: Any, model: Model, start: BestResponse | None, learn: bool = True
) -> BestResponse:
    """The response of a planning or a learning follower; arguments as in `LearningFollower.respond`."""
    if hasattr(follower, "respond"):
        return follower.respond(env, theta, model, start, learn)
    preferences = env.preferences if follower is env.follower else env.problem.preferences
    return follower.best_response(model, preferences, start)


def check_planner(follower: Any, name: str = "follower") -> None:
    """Refuses what cannot plan: classes, names, and followers that learn."""
    if isinstance(follower, type) or not hasattr(follower, "best_response"):
        raise TypeError(
            f"`{name}` must be a planner, an object with `best_response` such as SoftValueIteration(), got {follower!r}"
        )


def check_model(model: Any, kind: type[M], planner: str) -> M:
    """Returns the world; refuses one that a planner cannot plan in.

    Args:
      model: the world.
      kind: what it must be.
      planner: the planner's class.

    Raises:
      UnsupportedModelError: if it is of another kind.
    """
    if not isinstance(model, kind):
        suited = {"TabularModel": "SoftValueIteration()", "LinearQuadraticModel": "Riccati()"}
        remedy = suited.get(type(model).__name__, 'one that learns, such as SB3Follower("SAC")')
        raise UnsupportedModelError(
            f"`model` must be a {kind.__name__} for {planner} to plan in, got {type(model).__name__}; "
            f"`follower` must be one that suits it: {remedy}"
        )
    return model


def check_given(follower: Any, world: str) -> None:
    """Refuses None where a world can only be learnt."""
    if follower is None:
        raise ValueError(
            f"`follower` must be given: nobody knows tables or matrices of {world} that could be solved. "
            'Take one that learns, such as SB3Follower("SAC")'
        )


def tiled_part(part: Any, copies: int) -> Any:
    """A policy or a value function for `copies` times as many runs, copy j of run i at j·R + i.

    By its own `tiled(copies)`; without one it is taken for a dataclass of tensors that lead with runs.
    """
    if part is None or kind_of(part) == "missing":
        return part
    if hasattr(part, "tiled"):
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
