"""The constants that a guiding weight reads: both players' values at the visited steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse, FollowerError


class GivesValues(Protocol):
    """What an estimator asks a critic, or several of them."""

    def values(self, batch: Rollout, policy: Any) -> tuple[Tensor, ...]:
        """Q_L(s_k, b_k), V_L(s_k), V_L(next_state_k), [R, N, T] each."""


@dataclass(frozen=True)
class Values:
    """Both players' values at the visited steps, [R, N, T] each; values of a next state are 0 after the end.

    Attributes:
      q_leader: Q_L(s_k, b_k).
      v_leader: V_L(s_k) = E_b[Q_L(s_k, b)].
      v_leader_next: V_L(next_state_k).
      q_follower: Q_F(s_k, b_k).
      v_follower_next: V_F(next_state_k).
      fold: which part of the batch a step belongs to, int [R, N, T], where each was judged by a critic fitted to the
        others: means over visits are then taken within a part. None where there is one part.
    """

    q_leader: Tensor
    v_leader: Tensor
    v_leader_next: Tensor
    q_follower: Tensor
    v_follower_next: Tensor
    fold: Tensor | None = None

    @property
    def benefit(self) -> Tensor:
        """B_L = Q_L − V_L (arXiv:2603.14867, Theorem 1), [R, N, T]."""
        return self.q_leader - self.v_leader


def _given(value: object, batch: Rollout, name: str) -> Tensor:
    """What a follower's value function gives, refused unless it is a number for each step."""
    if not isinstance(value, Tensor) or value.shape != batch.r_follower.shape:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise FollowerError(f"its {name} must give a tensor of shape {list(batch.r_follower.shape)}, got {got}")
    return value


def evaluate(
    critic: GivesValues, best: BestResponse, batch: Rollout, follower: bool = True, fold: Tensor | None = None
) -> Values:
    """Looks both players' values up at the visited steps; the follower's are 0 where they are not asked for."""
    goes_on = (batch.valid & ~batch.terminated).to(batch.r_leader.dtype)
    q_leader, v_leader, v_leader_next = critic.values(batch, best.policy)
    nothing = torch.zeros_like(batch.r_follower)
    v_follower_next = _given(best.v(batch.next_state), batch, "v") if follower else nothing
    return Values(
        q_leader=q_leader,
        v_leader=v_leader,
        v_leader_next=v_leader_next * goes_on,
        q_follower=_given(best.q(batch.state, batch.action), batch, "q") if follower else nothing,
        v_follower_next=torch.where(goes_on > 0, v_follower_next, 0.0),
        fold=fold,
    )
