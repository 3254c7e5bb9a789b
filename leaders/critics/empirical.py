"""Q_L of the world as all transitions so far describe it, solved."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse
from leaders.critics.empirical_model import EmpiricalModel, KnownMoves


class Empirical:
    """Solves Q_L = r_L + γ_L E[V_L(s')], V_L = E_b[Q_L], in the empirical model (`empirical_model`).

    The leader's own r_L at the present θ and the follower's g are known; transitions are counted, all that were ever
    seen. A pair that was never visited has V_L(s) for its Q_L, so that its benefit is 0.

    Args:
      gamma: γ_L.
      theta_moves: whether θ moves the transitions; see `EmpiricalModel`.
    """

    keeps: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def __init__(self, gamma: float, theta_moves: bool = False) -> None:
        self.gamma = gamma
        self.seen = EmpiricalModel(theta_moves)
        self._at: tuple[TabularModel, BoltzmannPolicy] | None = None

    def fit(self, batch: Rollout, best: TabularResponse, model: TabularModel, noise: Noise) -> None:
        """Counts the batch; values are solved for when they are asked for, at the model's θ."""
        self.seen.add(batch, model.states, model.actions)
        self._at = model, best.policy
        for name in ("moves", "tables", "reachable"):
            self.__dict__.pop(name, None)

    def without(self, batch: Rollout) -> Empirical:
        """The critic as the last fit would have left it without the valid steps of a batch that was part of it."""
        other = Empirical(self.gamma, self.seen.theta_moves)
        other.seen, other._at = self.seen.without(batch), self._at
        return other

    @cached_property
    def moves(self) -> KnownMoves:
        """The transitions seen, at the θ and under the g of the last fit."""
        assert self._at is not None, "fit first"
        return self.seen.moves(*self._at)

    @property
    def reward(self) -> np.ndarray:
        """r_L at the θ of the last fit in the states seen, [R|1, V, B]."""
        assert self._at is not None, "fit first"
        return self.seen.places.gathered(self._at[0].r_leader.detach()).numpy()

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Q_L [R, V, B] and V_L [R, V] in the states seen."""
        return self.moves.action_values(self.reward, self.gamma)

    @cached_property
    def reachable(self) -> BoltzmannPolicy:
        """g among the known pairs of each state."""
        return BoltzmannPolicy(self.seen.places.spread(torch.from_numpy(self.moves.policy)).log())

    def knows(self, state: Tensor, *action: Tensor) -> Tensor:
        """Whether states, or pairs of states and actions, are known; all [R, N, T]."""
        known = torch.from_numpy(self.moves.known)
        return self.seen.places.look_up(known if action else known.any(-1), state, *action)

    def values(self, batch: Rollout, policy: BoltzmannPolicy) -> tuple[Tensor, Tensor, Tensor]:
        """Look-ups."""
        q, v = (torch.from_numpy(table) for table in self.tables)
        at = self.seen.places.look_up
        return at(q, batch.state, batch.action), at(v, batch.state), at(v, batch.next_state)

    def copies(self, count: int) -> Empirical:
        """With the counts as they are now."""
        other = Empirical(self.gamma, self.seen.theta_moves)
        other.seen = self.seen.copies(count)
        return other

    def state_dict(self) -> dict[str, object]:
        """The counts."""
        return self.seen.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the counts back; values are solved for at the next fit."""
        self.seen.load_state_dict(state)
