"""Games whose states are vectors and whose players each move one number, stepped as arrays of games side by side."""

from __future__ import annotations

import numpy as np

from bilevel_envs.games.game import Game
from bilevel_envs.games.pairs import Action, State


class VectorGame(Game):
    """To be written: `start_size`, `start_many`, `advance_many`, and what `Game` asks beyond steps."""

    @property
    def start_size(self) -> int:
        """Uniform numbers that a first state takes."""
        raise NotImplementedError

    @property
    def choices(self) -> np.ndarray | None:
        """What the follower's action is an index of, [K]; by default None: the action is the number itself."""
        return None

    def start_many(self, uniform: np.ndarray) -> np.ndarray:
        """First states, [N, n], from uniform numbers [N, start_size]."""
        raise NotImplementedError

    def advance_many(
        self, state: np.ndarray, leader_action: np.ndarray, action: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states that follow [N, n], r_L and r_F [N], from states [N, n] and numbers [N]."""
        raise NotImplementedError

    def ends(self, state: State) -> np.ndarray:
        """Whether the game is over in states [..., n] that a step led to, bool [...]; by default never."""
        return np.zeros(np.shape(state)[:-1], bool)

    def first_state(self, rng: np.random.Generator) -> np.ndarray:
        """As drawn."""
        return self.start_many(rng.random((1, self.start_size)))[0]

    def advance(
        self, state: State, leader_action: Action, action: Action, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, float, float]:
        """The state that follows, r_L and r_F."""
        a, b = self.numbers(leader_action, action)
        following, r_leader, r_follower = self.advance_many(np.asarray(state)[None], np.array([a]), np.array([b]))
        return following[0], float(r_leader[0]), float(r_follower[0])

    def numbers(self, leader_action: Action, action: Action) -> tuple[float, float]:
        """Both actions as numbers."""
        a, b = (float(np.asarray(x).reshape(())) for x in (leader_action, action))
        return a, b if self.choices is None else float(self.choices[int(b)])
