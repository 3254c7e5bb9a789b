"""The tables of a finite game, and the follower's MDP that they make at a leader's policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_envs.core.checks import check_distribution, check_finite, check_shape
from bilevel_envs.worlds.tabular.model import TabularModel


@dataclass(frozen=True)
class GameTables:
    """A finite game.

    Attributes:
      transition: p(s' | s, a, b), [S, A, B, S].
      initial: ρ0(s), [S].
      r_leader: r_L(s, a, b), [S, A, B].
      r_follower: r_F(s, a, b), [S, A, B].
      continues: 0 where the game ends after the moves, else 1, [S, A, B]; None for 1 everywhere.

    Raises:
      ValueError: if a table has the wrong shape, is not finite, or is no distribution.
    """

    transition: Tensor
    initial: Tensor
    r_leader: Tensor
    r_follower: Tensor
    continues: Tensor | None = None

    def __post_init__(self) -> None:
        got = list(self.transition.shape)
        if len(got) != 4:
            raise ValueError(f"`transition` must be [state, leader action, action, next state], got shape {got}")
        states = self.transition.shape[:1]
        check_shape(self.transition, states, "transition", "[state, leader action, action, next state]")
        check_shape(self.r_leader, self.transition.shape[:3], "r_leader", "[state, leader action, action]")
        check_shape(self.r_follower, self.transition.shape[:3], "r_follower", "[state, leader action, action]")
        check_shape(self.initial, self.transition.shape[:1], "initial", "[state]")
        check_distribution(self.transition, "transition", "[state, leader action, action, next state]")
        check_distribution(self.initial, "initial", "[state]")
        check_finite(self.r_leader, "r_leader")
        check_finite(self.r_follower, "r_follower")
        going_on = self.going_on
        check_shape(going_on, self.transition.shape[:3], "continues", "[state, leader action, action]")
        if ((going_on != 0) & (going_on != 1)).any():
            raise ValueError("`continues` must be 0 or 1: whether the game goes on after the moves")

    @property
    def going_on(self) -> Tensor:
        """`continues`, written out."""
        return torch.ones_like(self.r_leader) if self.continues is None else self.continues

    def seen(self, policy: Tensor) -> TabularModel:
        """The follower's MDP over s̄ = s · A + a, where it sees the leader's draw; `policy` is f, [R, S, A]."""
        states, leader_actions, actions, _ = self.transition.shape
        pairs = states * leader_actions
        transition = torch.einsum("sabt,rtc->rsabtc", self.transition, policy)
        return TabularModel(
            transition.reshape(-1, pairs, actions, pairs),
            (self.initial[:, None] * policy).reshape(-1, pairs),
            self.r_leader.reshape(1, pairs, actions),
            self.r_follower.reshape(1, pairs, actions),
            self.going_on.reshape(1, pairs, actions),
        )

    def unseen(self, policy: Tensor) -> TabularModel:
        """The follower's MDP over s, where it does not see the draw and expects over it; `policy` is f, [R, S, A].

        Raises:
          ValueError: if the end of the game depends on what the follower does not see.
        """
        if (self.going_on != self.going_on[:, :1]).any():
            raise ValueError("`continues` must not depend on the leader's action where the follower does not see it")
        return TabularModel(
            torch.einsum("rsa,sabt->rsbt", policy, self.transition),
            self.initial[None],
            torch.einsum("rsa,sab->rsb", policy, self.r_leader),
            torch.einsum("rsa,sab->rsb", policy, self.r_follower),
            self.going_on[None, :, 0],
        )


def on_the_simplex(policy: Tensor) -> Tensor:
    """The same probabilities [..., A], with gradients that leave each row's sum alone: their mean is removed."""
    return policy - (policy.sum(-1, keepdim=True) - 1.0) / policy.shape[-1]
