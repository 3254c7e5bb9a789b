"""What the guided control games share: a leader's network, one action for each player, arrays of games side by side."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from torch import Tensor

from bilevel_envs.core.checks import check_number, keep_counts
from bilevel_envs.core.mdp import ConfigurableMDP, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Free
from bilevel_envs.networks.leader_policies import GaussianTanhNetwork
from bilevel_envs.worlds.declared.model import SimulatedModel

HIDDEN = (64, 64)
HEAVIEST = 100.0  # bound of every weight, within which all densities are finite
HORIZON = 200


class GuidedGame(ConfigurableMDP):
    """A control task in which one player pushes and the other blows: all but the physics, the rewards and the picture.

    Games are stepped side by side, a row each; a state is what the leader observes of it.

    Attributes:
      wind: strength of the wind.
      flip: the leader pushes and the follower blows, and their rewards are swapped.
      discrete: None, or so many evenly spaced actions for the follower to choose from.
      beta: β.
      gamma_leader: γ_L.
      gamma_follower: γ_F.
      low: lower bounds of a state, [n].
      high: upper bounds, likewise.
      push_reach: the largest push.
      start_size: uniform numbers that a first state takes.
    """

    wind: float
    flip: bool
    discrete: int | None
    beta: float
    gamma_leader: float
    gamma_follower: float
    low: ClassVar[np.ndarray]
    high: ClassVar[np.ndarray]
    push_reach: ClassVar[float]
    start_size: ClassVar[int]
    horizon: ClassVar[int] = HORIZON

    # What a game provides ---------------------------------------------------------------------------------------

    def start_many(self, uniform: np.ndarray) -> np.ndarray:
        """First states, [N, n], from uniform numbers [N, start_size]."""
        raise NotImplementedError

    def blown(self, state: np.ndarray, push: np.ndarray, wind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states that follow, what is paid for control, and what for being where the guide wants it."""
        raise NotImplementedError

    def ends(self, state: np.ndarray) -> np.ndarray:
        """Whether the game is over in states [..., n] that a step led to, bool [...]."""
        raise NotImplementedError

    def picture(self, state: np.ndarray, push: float | None, wind: float | None) -> np.ndarray:
        """A state, and the actions that are known."""
        raise NotImplementedError

    # The follower's MDP -----------------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        """Refuses bad values of the arguments that all guided games have."""
        check_number(self.wind, "wind", at_least=0)
        if not isinstance(self.flip, bool):
            raise TypeError(f"`flip` must be True or False, got {self.flip!r}")
        if self.discrete is not None:
            keep_counts(self, "discrete", at_least=2)
        _ = self.preferences  # refuses bad ones

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    @cached_property
    def network(self) -> GaussianTanhNetwork:
        """f, the leader's policy."""
        return GaussianTanhNetwork((len(self.low), *HIDDEN, 1), self.reaches[0])

    @cached_property
    def theta_space(self) -> gym.spaces.Box:
        """Weights within ±100."""
        return gym.spaces.Box(-HEAVIEST, HEAVIEST, (self.network.count,), np.float64)

    @cached_property
    def default_theta(self) -> np.ndarray:
        """A fixed random start."""
        return self.network.start(Noise([0]))[0]

    def model(self, theta: Tensor) -> SimulatedModel:
        """The follower's world over s̄ = (s, a) at the weights θ [R, P] of the leader's network."""
        return SimulatedModel(self.network, theta)

    def parameterization(self, runs: int, noise: Noise) -> Free:
        """θ itself, started as `leader_networks` says."""
        return Free(self.network.start(noise))

    @property
    def reaches(self) -> tuple[float, float]:
        """The largest action of the leader and of the follower."""
        return (self.push_reach, 1.0) if self.flip else (1.0, self.push_reach)

    @cached_property
    def choices(self) -> np.ndarray | None:
        """What the follower chooses from, [K]; None for every number in its reach."""
        return None if self.discrete is None else np.linspace(-self.reaches[1], self.reaches[1], self.discrete)

    @cached_property
    def action_space(self) -> gym.Space:
        """The follower's actions."""
        reach = self.reaches[1]
        return gym.spaces.Box(-reach, reach, (1,)) if self.discrete is None else gym.spaces.Discrete(self.discrete)

    @cached_property
    def state_space(self) -> gym.spaces.Box:
        """s̄ = (s, a)."""
        reach = self.reaches[0]
        return gym.spaces.Box(np.append(self.low, -reach), np.append(self.high, reach), dtype=np.float64)

    def advance_many(
        self, state: np.ndarray, leader_action: np.ndarray, action: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states that follow [N, n], r_L and r_F [N], from states [N, n] and actions [N] cut to their reach."""
        a, b = (np.clip(x, -reach, reach) for x, reach in zip((leader_action, action), self.reaches, strict=True))
        push, wind = (a, b) if self.flip else (b, a)
        following, control, guidance = self.blown(state, push, self.wind * wind)
        return (following, control, guidance) if self.flip else (following, guidance, control)

    def draw(self, state: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """The state and the leader's action, which is drawn already."""
        a = float(state[-1])
        return self.picture(state[:-1], a, None) if self.flip else self.picture(state[:-1], None, a)

    # The game itself, for two players ---------------------------------------------------------------------------

    @property
    def leader_actions(self) -> gym.Space:
        """The leader's actions."""
        return gym.spaces.Box(-self.reaches[0], self.reaches[0], (1,))

    @property
    def follower_actions(self) -> gym.Space:
        """The follower's actions."""
        return self.action_space

    @property
    def game_states(self) -> gym.Space:
        """s."""
        return gym.spaces.Box(self.low, self.high, dtype=np.float64)

    @property
    def seen_space(self) -> gym.Space:
        """(s, a)."""
        return self.state_space

    @property
    def unseen_space(self) -> gym.Space:
        """(s, −∞)."""
        low = np.append(self.low, -np.inf)
        return gym.spaces.Box(low, np.append(self.high, np.inf), dtype=np.float64)

    def default_follower(self) -> None:
        """None: no follower solves this game; one has to learn."""

    def first_state(self, rng: np.random.Generator) -> np.ndarray:
        """As drawn."""
        return self.start_many(rng.random((1, self.start_size)))[0]

    def advance(self, state: np.ndarray, leader_action: Any, action: Any) -> tuple[np.ndarray, float, float]:
        """The state that follows, r_L and r_F."""
        a, b = self._numbers(leader_action, action)
        following, r_leader, r_follower = self.advance_many(state[None], np.array([a]), np.array([b]))
        return following[0], float(r_leader[0]), float(r_follower[0])

    def policy_state(self, state: np.ndarray, leader_action: Any) -> np.ndarray:
        """s̄ = (s, a), what the follower's policy takes."""
        return self.observe_follower(state, leader_action)

    def observe_follower(self, state: np.ndarray, leader_action: Any) -> np.ndarray:
        """(s, a)."""
        return np.append(state, float(np.asarray(leader_action).reshape(())))

    def not_drawn(self, state: np.ndarray) -> np.ndarray:
        """(s, −∞): the last entry marks that the leader has not moved yet."""
        return np.append(state, -np.inf)

    def draw_game(self, path: list[tuple[Any, Any, Any]], state: np.ndarray) -> np.ndarray:
        """The state, and the actions that led to it."""
        if not path:
            return self.picture(state, None, None)
        a, b = self._numbers(*path[-1][1:])
        return self.picture(state, a, b) if self.flip else self.picture(state, b, a)

    def _numbers(self, leader_action: Any, action: Any) -> tuple[float, float]:
        """Both actions, as pushes."""
        a, b = (float(np.asarray(x).reshape(())) for x in (leader_action, action))
        return a, b if self.choices is None else float(self.choices[int(b)])
