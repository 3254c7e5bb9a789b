"""What a leader's critic is asked for, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.temporal_differences import Fit


@dataclass(frozen=True)
class CriticCapabilities:
    """What a critic says of itself by attributes of these names.

    Attributes:
      keeps: it keeps what earlier batches taught it.
      learns: it looks at the batches that it is fitted to.
      is_quadratic: `quadratic()` gives Q_L as a `Polynomial` or a `Quadratic` of (s, b).
      gives_gradient: `leader_gradient(policy)` gives ∇V_L as a function of states and steps.
      gives_action_values: `action_values(state, action, policy)` gives Q_L of states [R, K, ...] and any J actions of
        each [R, K, J, ...], [R, K, J, 1].
      takes_steps: it learns from single steps, whatever came before and after them.
      reads_action: its Q_L depends on the action.
      how: how its network is fitted; None for what is no network.
      has_rate: `critic_learning_rate` is a step size of its own.
    """

    keeps: bool = True
    learns: bool = True
    is_quadratic: bool = False
    gives_gradient: bool = False
    gives_action_values: bool = False
    takes_steps: bool = False
    reads_action: bool = True
    how: Fit | None = None
    has_rate: bool = False


def capabilities_of(critic: object) -> CriticCapabilities:
    """What a critic, or a class of critics, says of itself; the default where it says nothing."""
    names = fields(CriticCapabilities)
    declared: dict[str, Any] = {one.name: getattr(critic, one.name, one.default) for one in names}
    return CriticCapabilities(**declared)


class Critic(Protocol):
    """Estimates Q_L, the leader's return after a state and a follower's action.

    Q_L must be a function of (s, b) alone. What one step brought, r_L + γ_L V_L(s'), will not do in its place: it
    depends on the same next state as the ∇Q_F that it multiplies, and the estimate would be biased.

    A critic declares by class attributes what else it can do (`CriticCapabilities`). In linear-quadratic worlds one
    with `gives_gradient = True` has `leader_gradient(policy)`, and one with `is_quadratic = True` has `quadratic()`
    (see `gradient` and `guiding` of `BCHG`).

    Leaders fit copies of a critic to a part of each batch and let them judge the rest (`leaders.critics.cross_fit`):
    `valid` may have holes, or be False everywhere. A critic that keeps nothing from batch to batch says so by
    `keeps = False`, one that looks at no batch by `learns = False`. For tables the policy given is g among the pairs
    that were visited: 0 at all others, and in states where none was.
    """

    def fit(self, batch: Rollout, best: BestResponse[Any, Any], model: Any, noise: Noise) -> None:
        """Learns from a batch; `model` is there for critics that need no samples, None where it is not known."""

    def values(self, batch: Rollout, policy: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Q_L(s_k, b_k), V_L(s_k), V_L(next_state_k), [R, N, T] each."""

    def copies(self, count: int) -> Critic:
        """A critic for `count` times as many runs, copy j of run i at j·R + i, each as this one is now."""

    def state_dict(self) -> dict[str, object]:
        """What the critic has learnt, as tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
