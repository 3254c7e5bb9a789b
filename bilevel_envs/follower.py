"""What a follower is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from bilevel_envs.model import Model, Preferences


@dataclass(frozen=True)
class BestResponse:
    """How the follower lives at one θ.

    Attributes:
      policy: g, a `BoltzmannPolicy` or `GaussianPolicy`: `sample`, `log_prob`, `expect`.
      q: Q_F, `q(state, action)`; a `Table` or `Quadratic`.
      v: V_F; `v(state)`. β log g = Q_F − V_F.
      residual: largest violation of the follower's optimality equation, [R], in units of its reward.
      optimal: True where the follower solved its problem to tolerance, so that `policy` is the soft optimum.
      memory: what the follower wants to find again in `start` next time, tensors by name; None for nothing.
    """

    policy: Any
    q: Any
    v: Any
    residual: Tensor
    optimal: bool
    memory: dict[str, Tensor] | None = None


class Follower(Protocol):
    """Answers a model with its way of living in it.

    Attributes:
      beta: entropy coefficient that overrides the problem's own; None keeps the problem's.
    """

    beta: float | None

    def best_response(self, model: Model, preferences: Preferences, start: BestResponse | None = None) -> BestResponse:
        """The response to `model`; `start` is an earlier response to begin from."""


def check_given(follower: Any, world: str) -> None:
    """Refuses None where a world can only be learnt."""
    if follower is None:
        raise ValueError(
            f"`follower` must be given: nobody knows tables or matrices of {world} that could be solved. "
            'Take one that learns, such as SB3Follower("SAC")'
        )
