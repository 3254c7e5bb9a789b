"""What the guided control games share: a leader's network, one action for each player, arrays of games side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import gymnasium as gym
import numpy as np
from torch import Tensor

from bilevel_envs.core.checks import keep_counts, keep_numbers
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Free
from bilevel_envs.games.game import Path
from bilevel_envs.games.pairs import State
from bilevel_envs.games.vector import VectorGame
from bilevel_envs.networks.leader_policies import GaussianTanhNetwork
from bilevel_envs.worlds.declared.model import SimulatedModel

HIDDEN = (64, 64)
HEAVIEST = 100.0  # bound of every weight, within which all densities are finite
HORIZON = 200


@dataclass(frozen=True, kw_only=True)
class GuidedGame(VectorGame):
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

    wind: float = 1.0
    flip: bool = False
    discrete: int | None = None
    beta: float = 0.005
    gamma_leader: float = 0.99
    gamma_follower: float = 0.99

    low: ClassVar[np.ndarray]
    high: ClassVar[np.ndarray]
    push_reach: ClassVar[float]
    start_size: ClassVar[int]
    horizon: ClassVar[int] = HORIZON

    # What a game provides ---------------------------------------------------------------------------------------

    def blown(self, state: np.ndarray, push: np.ndarray, wind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states that follow, what is paid for control, and what for being where the guide wants it."""
        raise NotImplementedError

    def picture(self, state: np.ndarray, push: float | None, wind: float | None) -> np.ndarray:
        """A state, and the actions that are known."""
        raise NotImplementedError

    # The follower's MDP -----------------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        """Refuses bad values of the arguments that all guided games have."""
        keep_numbers(self, "wind", at_least=0)
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

    def draw_game(self, path: Path, state: State) -> np.ndarray:
        """The state, and the actions that led to it."""
        if not path:
            return self.picture(np.asarray(state), None, None)
        a, b = self.numbers(*path[-1][1:])
        return self.picture(np.asarray(state), *((a, b) if self.flip else (b, a)))
