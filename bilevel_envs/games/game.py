r"""Two players, one of whom moves first: a Markov game at a fixed leader's policy is the follower's own MDP.

The leader draws a from f_θ(a | s); the follower, who may see it, answers with b; both are paid and the state moves. Put
s̄ = (s, a): the follower faces an MDP whose arrival law p(s' | s, a, b) f_θ(a' | s') depends on θ through the leader's
policy alone. So whatever leads or solves a configurable MDP leads or solves a game (arXiv:2603.14867, Theorem 2).
"""

from __future__ import annotations

from functools import cached_property

import gymnasium as gym
import numpy as np

from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.follower import Follower
from bilevel_envs.core.mdp import ConfigurableMDP
from bilevel_envs.games.pairs import Action, Pairs, State, StatesAlone, pairs_of

Path = list[tuple[State, Action, Action]]


class Game(ConfigurableMDP):
    """A Markov game of a leader and a follower, described once; four environments are made from it.

    `GameEnv(game)` and `ParallelGameEnv(game)` are PettingZoo's two forms, `LeaderEnv(game, follower)` is the leader's
    side in Gymnasium, and the follower's side is the environment that steps `game.model(θ)`: `TabularEnv(game)`,
    `LinearEnv(game)` or `SimulatedEnv(game)`.

    To be written: `leader_actions`, `follower_actions`, `game_states`, `first_state`, `advance`; and, as in every
    `ConfigurableMDP`, `theta_space`, `default_theta`, `preferences`, `model` and `parameterization`, where θ is the
    leader's policy. All else has a default. A `TabularGame` needs its tables alone.
    """

    # Spaces -----------------------------------------------------------------------------------------------------

    @property
    def leader_actions(self) -> gym.Space:
        """The leader's actions."""
        raise NotImplementedError

    @property
    def follower_actions(self) -> gym.Space:
        """The follower's actions."""
        raise NotImplementedError

    @property
    def game_states(self) -> gym.Space:
        """s, what the leader sees."""
        raise NotImplementedError

    @property
    def sees_leader(self) -> bool:
        """Whether the follower sees the leader's draw before it moves; by default it does."""
        return True

    @property
    def seen_space(self) -> gym.Space:
        """(s, a), what the follower sees once the leader has moved; s where it does not see a."""
        return self.pairs.drawn

    @property
    def unseen_space(self) -> gym.Space:
        """What the follower is shown before, see `not_drawn`; by default from the two spaces."""
        return self.pairs.undrawn

    @cached_property
    def pairs(self) -> Pairs:
        """How (s, a) is written; s alone where the follower does not see a."""
        return pairs_of(self.game_states, self.leader_actions) if self.sees_leader else StatesAlone(self.game_states)

    # An episode -------------------------------------------------------------------------------------------------

    @property
    def horizon(self) -> int:
        """Steps of an episode in the two-player forms and in `LeaderEnv`; 100 by default."""
        return 100

    def first_state(self, rng: np.random.Generator) -> State:
        """Where an episode begins."""
        raise NotImplementedError

    def advance(
        self, state: State, leader_action: Action, action: Action, rng: np.random.Generator | None = None
    ) -> tuple[State, float, float]:
        """The state that follows, r_L and r_F; `rng` draws where chance has a part."""
        raise NotImplementedError

    def ends(self, state: State) -> bool | np.ndarray:
        """Whether the game is over in a state that a move led to; by default never."""
        return False

    def ends_after(self, state: State, leader_action: Action, action: Action, following: State) -> bool:
        """Whether a move was the last one; by default, whether the game `ends` in the state that it led to."""
        return bool(self.ends(following))

    # What the follower sees -------------------------------------------------------------------------------------

    def observe_follower(self, state: State, leader_action: Action) -> np.ndarray:
        """(s, a) in `seen_space`, once the leader has moved; s where the follower does not see a."""
        return self.pairs.pair(state, leader_action)

    def not_drawn(self, state: State) -> np.ndarray:
        """What stands for (s, a) in `unseen_space` before the leader moves: a is A, or −∞ in vectors; or s alone."""
        return self.pairs.marked(state)

    def policy_state(self, state: State, leader_action: Action) -> State:
        """s̄ as the follower's policy takes it: s A + a in finite games, else the vector (s, a); or s alone."""
        return self.pairs.policy_state(state, leader_action)

    # The follower, and a picture --------------------------------------------------------------------------------

    def default_follower(self) -> Follower | None:
        """The exact follower; by default None: the game cannot be solved, and a follower has to learn."""
        return None

    def draw_game(self, path: Path, state: State) -> np.ndarray:
        """The moves (s, a, b) so far and the present state, uint8 [height, width, 3]; by default no picture."""
        raise NotImplementedError

    @property
    def has_picture(self) -> bool:
        """Whether `draw_game` is written."""
        return type(self).draw_game is not Game.draw_game


class Play:
    """One play of a game: its state, its path and its clock.

    Args:
      game: the game.
      horizon: steps before truncation.
      rng: draws the first state, and what else is left to chance.
    """

    def __init__(self, game: Game, horizon: int, rng: np.random.Generator) -> None:
        self.game, self.horizon, self.rng = game, horizon, rng
        self.state = game.first_state(rng)
        self.path: Path = []

    @property
    def step(self) -> int:
        """Moves made so far."""
        return len(self.path)

    def move(self, leader_action: Action, action: Action) -> tuple[float, float, bool, bool]:
        """Both move: r_L, r_F, whether the game is over, and whether the time is up."""
        before = self.state
        self.state, r_leader, r_follower = self.game.advance(before, leader_action, action, self.rng)
        self.path.append((before, leader_action, action))
        over = self.game.ends_after(before, leader_action, action, self.state)
        return r_leader, r_follower, over, self.step >= self.horizon

    def picture(self) -> np.ndarray:
        """The present state, and how it came about."""
        return self.game.draw_game(self.path, self.state)


def as_move(space: gym.Space, action: object) -> Action | None:
    """An action as an int or an array, whatever its dtype; None for what is no number or vector of the space."""
    array = np.asarray(action)
    if isinstance(space, gym.spaces.Discrete):
        whole = array.dtype.kind in "iu" and array.size == 1
        return int(array.reshape(())) if whole and 0 <= int(array.reshape(())) < space.n else None
    numbers = array.dtype.kind in "fiu" and array.shape == space.shape and np.isfinite(array).all()
    return array if numbers else None


def check_picture(game: Game, render_mode: str | None, modes: list[str]) -> None:
    """Refuses a mode that does not exist, and any mode for a game without a picture."""
    check_choice(render_mode, [None, *modes], "render_mode")
    if render_mode is not None and not game.has_picture:
        raise ValueError(f"`render_mode` must be None: {type(game).__name__} has no `draw_game`, got {render_mode!r}")
