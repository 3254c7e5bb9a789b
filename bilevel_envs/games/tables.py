r"""Two players, one of whom moves first: a Markov game at a fixed leader's policy is the follower's own MDP.

The leader draws a from f_θ(a | s); the follower, who may see it, answers with b; both are paid and the state moves. Put
s̄ = (s, a): the follower faces an MDP whose arrival law p(s' | s, a, b) f_θ(a' | s') depends on θ through the leader's
policy alone. So whatever leads or solves a configurable MDP leads or solves a game (arXiv:2603.14867, Theorem 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_distribution, check_finite, check_shape
from bilevel_envs.worlds.tabular.model import TabularModel


class MarkovGame(Protocol):
    """What the two-player faces ask of a game."""

    @property
    def leader_actions(self) -> gym.Space:
        """The leader's actions."""

    @property
    def follower_actions(self) -> gym.Space:
        """The follower's actions."""

    @property
    def game_states(self) -> gym.Space:
        """What the leader sees."""

    @property
    def seen_space(self) -> gym.Space:
        """What the follower sees once the leader has moved."""

    @property
    def unseen_space(self) -> gym.Space:
        """What it is shown before."""

    @property
    def horizon(self) -> int:
        """Steps of an episode."""

    def first_state(self, rng: np.random.Generator) -> Any:
        """Where an episode begins."""

    def advance(self, state: Any, leader_action: Any, action: Any) -> tuple[Any, float, float]:
        """The state that follows, r_L and r_F."""

    def ends(self, state: Any) -> Any:
        """Whether the game is over in a state that a move led to."""

    def observe_follower(self, state: Any, leader_action: Any) -> Any:
        """What the follower sees once the leader has moved, in `seen_space`."""

    def not_drawn(self, state: Any) -> Any:
        """What the follower is shown before the leader has moved, in `unseen_space`."""

    def draw_game(self, path: list[tuple[Any, Any, Any]], state: Any) -> np.ndarray:
        """A picture of the moves (s, a, b) so far and the present state."""


@dataclass(frozen=True)
class GameTables:
    """A finite game.

    Attributes:
      transition: p(s' | s, a, b), [S, A, B, S].
      initial: ρ0(s), [S].
      r_leader: r_L(s, a, b), [S, A, B].
      r_follower: r_F(s, a, b), [S, A, B].

    Raises:
      ValueError: if a table has the wrong shape, is not finite, or is no distribution.
    """

    transition: Tensor
    initial: Tensor
    r_leader: Tensor
    r_follower: Tensor

    def __post_init__(self) -> None:
        check_shape(self.r_leader, self.transition.shape[:3], "r_leader", "[state, leader action, action]")
        check_shape(self.r_follower, self.transition.shape[:3], "r_follower", "[state, leader action, action]")
        check_shape(self.initial, self.transition.shape[:1], "initial", "[state]")
        check_distribution(self.transition, "transition", "[state, leader action, action, next state]")
        check_distribution(self.initial, "initial", "[state]")
        check_finite(self.r_leader, "r_leader")
        check_finite(self.r_follower, "r_follower")

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
        )

    def unseen(self, policy: Tensor) -> TabularModel:
        """The follower's MDP over s, where it does not see the draw and expects over it; `policy` is f, [R, S, A]."""
        return TabularModel(
            torch.einsum("rsa,sabt->rsbt", policy, self.transition),
            self.initial[None],
            torch.einsum("rsa,sab->rsb", policy, self.r_leader),
            torch.einsum("rsa,sab->rsb", policy, self.r_follower),
        )


def on_the_simplex(policy: Tensor) -> Tensor:
    """The same probabilities [..., A], with gradients that leave each row's sum alone: their mean is removed."""
    return policy - (policy.sum(-1, keepdim=True) - 1.0) / policy.shape[-1]
