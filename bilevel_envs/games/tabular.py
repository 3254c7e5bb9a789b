"""Finite games: from their tables follows all that two players, a follower and a leader need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_shape, keep_counts
from bilevel_envs.core.mdp import Parameterization, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Softmax, SoftmaxNetwork
from bilevel_envs.followers.planners.soft_value_iteration import SoftValueIteration
from bilevel_envs.games.game import Game, Path
from bilevel_envs.games.pairs import Action, State
from bilevel_envs.games.tables import GameTables, on_the_simplex
from bilevel_envs.rendering.drawing import graph_image
from bilevel_envs.worlds.tabular.model import TabularModel

PREFERENCES = Preferences(gamma_leader=0.9, gamma_follower=0.9, beta=0.1)


class TabularGame(Game):
    """A finite game whose θ is the leader's policy f(a | s), [S, A] with rows that sum to 1; uniform by default.

    To be written: `tables` and `preferences`.

    Raises:
      ValueError: by `check_theta`, if θ is no policy.
    """

    default_observation: ClassVar[str] = "vector"

    @property
    def tables(self) -> GameTables:
        """Where moves lead and what they pay."""
        raise NotImplementedError

    @property
    def labels(self) -> Sequence[str]:
        """A word for each state, in pictures; numbers by default."""
        return [str(state) for state in range(self.shape[0])]

    @property
    def positions(self) -> np.ndarray:
        """Where each state is in pictures, as fractions of them, [S, 2]; on an ellipse by default."""
        angle = 2 * np.pi * np.arange(self.shape[0]) / self.shape[0]
        return 0.5 + np.stack([0.4 * np.sin(angle), -0.35 * np.cos(angle)], 1)

    @property
    def stage_actions(self) -> int:
        """A, where the follower sees the leader's draw."""
        return self.shape[1] if self.sees_leader else 0

    # Spaces -----------------------------------------------------------------------------------------------------

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """S, A and B."""
        states, leader_actions, actions = self.tables.r_leader.shape
        return states, leader_actions, actions

    @cached_property
    def game_states(self) -> gym.Space:
        """The state's number."""
        return gym.spaces.Discrete(self.shape[0])

    @cached_property
    def leader_actions(self) -> gym.Space:
        """The action's number."""
        return gym.spaces.Discrete(self.shape[1])

    @cached_property
    def follower_actions(self) -> gym.Space:
        """The action's number."""
        return gym.spaces.Discrete(self.shape[2])

    # The follower's MDP -----------------------------------------------------------------------------------------

    @cached_property
    def theta_space(self) -> gym.spaces.Box:
        """Probabilities; see `check_theta`."""
        return gym.spaces.Box(0.0, 1.0, self.shape[:2], np.float64)

    @cached_property
    def default_theta(self) -> np.ndarray:
        """Every action alike."""
        return np.full(self.shape[:2], 1 / self.shape[1])

    def model(self, theta: Tensor) -> TabularModel:
        """The follower's MDP at the leader's policy θ, [R, S, A]."""
        check_shape(theta, self.theta_space.shape, "theta", "[state, leader action]")
        policy = on_the_simplex(theta)
        return self.tables.seen(policy) if self.sees_leader else self.tables.unseen(policy)

    def check_theta(self, theta: np.ndarray) -> None:
        """Refuses θ unless it lies in `theta_space` and its rows sum to 1."""
        super().check_theta(theta)
        total = theta.sum(-1)
        if (np.abs(total - 1) > 1e-6).any():
            at = tuple(int(i) for i in np.argwhere(np.abs(total - 1) > 1e-6)[0])
            raise ValueError(f"`theta` must be probabilities whose rows sum to 1; at {at} they sum to {total[at]:.6g}")

    def parameterization(self, runs: int, noise: Noise, name: str = "softmax") -> Parameterization:
        """θ by state: "softmax" of raw logits, or "mlp", a network."""
        check_choice(name, ("softmax", "mlp"), "policy")
        if name == "mlp":
            return SoftmaxNetwork(noise, *self.shape[:2])
        return Softmax(0.2 * noise.normal(*self.shape[:2]))

    @property
    def vector_space(self) -> gym.Space:
        """What the follower observes."""
        return self.seen_space

    def observe(self, state: State) -> State:
        """The pair (s, a) of an index s̄, or of many."""
        return np.stack(np.divmod(np.asarray(state), self.shape[1]), -1) if self.sees_leader else state

    def index(self, observation: State) -> np.ndarray:
        """The index s̄ of an observation (s, a), or of many: what policies and values take."""
        pair = np.asarray(observation)
        return self.shape[1] * pair[..., 0] + pair[..., 1] if self.sees_leader else pair

    def draw(self, state: int, theta: np.ndarray) -> np.ndarray:
        """The states, the possible moves, and where the follower stands."""
        return self._diagram(int(state) // (self.shape[1] if self.sees_leader else 1))

    # The game itself, for two players ---------------------------------------------------------------------------

    def first_state(self, rng: np.random.Generator) -> int:
        """As `initial` has it; drawn only if there is a choice."""
        return _drawn(self.tables.initial, rng)

    def advance(
        self, state: State, leader_action: Action, action: Action, rng: np.random.Generator | None = None
    ) -> tuple[int, float, float]:
        """The state that follows, r_L and r_F; `rng` draws only if there is a choice."""
        at = (int(state), int(leader_action), int(action))
        t = self.tables
        return _drawn(t.transition[at], rng), float(t.r_leader[at]), float(t.r_follower[at])

    def ends_after(self, state: State, leader_action: Action, action: Action, following: State) -> bool:
        """As `continues` has it."""
        return bool(self.tables.going_on[int(state), int(leader_action), int(action)] == 0)

    def default_follower(self) -> SoftValueIteration:
        """The exact one."""
        return SoftValueIteration()

    def draw_game(self, path: Path, state: State) -> np.ndarray:
        """The diagram with the last move highlighted."""
        return self._diagram(int(state), (int(path[-1][0]), int(state)) if path else None)

    def _diagram(self, state: int, moved: tuple[int, int] | None = None) -> np.ndarray:
        possible = (self.tables.transition > 0).any(2).any(1).numpy()
        edges = {(int(i), int(j)): 0.4 for i, j in np.argwhere(possible)}
        if moved is not None:
            edges[moved] = 1.0
        return graph_image(self.positions, list(self.labels), edges, state)


@dataclass(frozen=True, eq=False)
class FiniteGame(TabularGame):
    """A finite game given by its tables: tensors, arrays or lists of numbers.

    Attributes:
      transition: p(s' | s, a, b), [S, A, B, S].
      initial: ρ0(s), [S].
      r_leader: r_L(s, a, b), [S, A, B].
      r_follower: r_F(s, a, b), [S, A, B].
      continues: 0 where the game ends after the moves, else 1, [S, A, B]; None if it never ends.
      preferences: γ_L, γ_F and β; 0.9, 0.9 and 0.1 by default.
      sees_leader: whether the follower sees a before it moves.
      horizon: steps of an episode in PettingZoo's forms and in `LeaderEnv`.

    Raises:
      ValueError: if a table has the wrong shape, is not finite, or is no distribution.
    """

    transition: Tensor
    initial: Tensor
    r_leader: Tensor
    r_follower: Tensor
    continues: Tensor | None = None
    preferences: Preferences = PREFERENCES
    sees_leader: bool = True
    horizon: int = 100

    def __post_init__(self) -> None:
        check_choice(self.sees_leader, (True, False), "sees_leader")
        keep_counts(self, "horizon")
        for name in (field.name for field in fields(GameTables)):
            table = getattr(self, name)
            if table is not None:
                object.__setattr__(self, name, torch.tensor(np.asarray(table, np.float64)))  # its own copy
        _ = self.tables  # refuses bad ones

    @cached_property
    def tables(self) -> GameTables:
        """The tables."""
        return GameTables(self.transition, self.initial, self.r_leader, self.r_follower, self.continues)


def _drawn(probabilities: Tensor, rng: np.random.Generator | None) -> int:
    """An outcome; nothing is drawn where only one is possible."""
    possible = torch.nonzero(probabilities)[:, 0]
    if len(possible) == 1:
        return int(possible[0])
    if rng is None:
        raise ValueError("`rng` must be a generator: chance has a part in this move")
    below = probabilities[possible].cumsum(0)[:-1].numpy()  # the last one takes what is left
    return int(possible[int(np.searchsorted(below, rng.random(), side="right"))])
