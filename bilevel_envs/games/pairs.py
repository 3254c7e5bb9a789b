"""What the follower sees: the pair s̄ = (s, a), two whole numbers in finite games, else one vector; or s alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import gymnasium as gym
import numpy as np

State = int | np.ndarray  # a number in finite games, else a vector
Action = int | np.ndarray  # likewise, of either player


class Pairs(Protocol):
    """Pairs of a state and an action of the leader's, as far as the follower sees them."""

    @property
    def drawn(self) -> gym.Space:
        """The space of (s, a)."""

    @property
    def undrawn(self) -> gym.Space:
        """The space of s before a is drawn, where a mark stands for a."""

    def pair(self, state: State, leader_action: Action) -> np.ndarray:
        """(s, a)."""

    def marked(self, state: State) -> np.ndarray:
        """s with the mark."""

    def policy_state(self, state: State, leader_action: Action) -> State:
        """The pair as policies of the follower take it."""


@dataclass(frozen=True)
class IndexPairs:
    """Two numbers; the mark is A; policies take s A + a.

    Attributes:
      states: S.
      leader_actions: A.
    """

    states: int
    leader_actions: int

    @property
    def drawn(self) -> gym.Space:
        """All (s, a)."""
        return gym.spaces.MultiDiscrete([self.states, self.leader_actions])

    @property
    def undrawn(self) -> gym.Space:
        """All (s, a), and (s, A)."""
        return gym.spaces.MultiDiscrete([self.states, self.leader_actions + 1])

    def pair(self, state: State, leader_action: Action) -> np.ndarray:
        """(s, a)."""
        return np.array([state, leader_action], dtype=np.int64)

    def marked(self, state: State) -> np.ndarray:
        """(s, A)."""
        return self.pair(state, self.leader_actions)

    def policy_state(self, state: State, leader_action: Action) -> int:
        """s A + a."""
        return self.leader_actions * int(state) + int(leader_action)


@dataclass(frozen=True)
class VectorPairs:
    """A vector of s and then a; the mark is −∞ in every entry of a; policies take the vector.

    Attributes:
      low: lower bounds of s and of a.
      high: upper bounds, likewise.
    """

    low: tuple[np.ndarray, np.ndarray]
    high: tuple[np.ndarray, np.ndarray]

    @property
    def drawn(self) -> gym.Space:
        """s and a within their bounds."""
        return gym.spaces.Box(np.append(*self.low), np.append(*self.high), dtype=np.float64)

    @property
    def undrawn(self) -> gym.Space:
        """s within its bounds, a anywhere."""
        anywhere = np.full(self.low[1].size, np.inf)
        return gym.spaces.Box(np.append(self.low[0], -anywhere), np.append(self.high[0], anywhere), dtype=np.float64)

    def pair(self, state: State, leader_action: Action) -> np.ndarray:
        """(s, a), one vector."""
        return np.append(state, leader_action).astype(np.float64)

    def marked(self, state: State) -> np.ndarray:
        """(s, −∞)."""
        return self.pair(state, np.full(self.low[1].size, -np.inf))

    def policy_state(self, state: State, leader_action: Action) -> np.ndarray:
        """(s, a), one vector."""
        return self.pair(state, leader_action)


@dataclass(frozen=True)
class StatesAlone:
    """What a follower sees who does not see a: s, before and after it is drawn.

    Attributes:
      states: the space of s.
    """

    states: gym.Space

    @property
    def drawn(self) -> gym.Space:
        """All s."""
        return self.states

    @property
    def undrawn(self) -> gym.Space:
        """All s."""
        return self.states

    def pair(self, state: State, leader_action: Action) -> np.ndarray:
        """s."""
        return np.asarray(state)

    def marked(self, state: State) -> np.ndarray:
        """s."""
        return np.asarray(state)

    def policy_state(self, state: State, leader_action: Action) -> State:
        """s."""
        return state


def pairs_of(states: gym.Space, leader_actions: gym.Space) -> Pairs:
    """How pairs are written in a game with these states and actions of the leader's, `Discrete` or `Box`."""
    if isinstance(states, gym.spaces.Discrete) and isinstance(leader_actions, gym.spaces.Discrete):
        return IndexPairs(int(states.n), int(leader_actions.n))
    (low, high), (least, most) = _bounds(states), _bounds(leader_actions)
    return VectorPairs((low, least), (high, most))


def _bounds(space: gym.Space) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper bounds of a space, as vectors."""
    if isinstance(space, gym.spaces.Discrete):
        return np.zeros(1), np.full(1, float(space.n - 1))
    if not isinstance(space, gym.spaces.Box):
        raise TypeError(f"a game's spaces must be Discrete or Box, got {space!r}")
    return np.ravel(space.low), np.ravel(space.high)
