"""The pairs (s, b) of a large table that a learnt world tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """The states that were seen, and in each of them the actions that were taken, the others lumped together.

    What was never done in a state leads to the same: to the unknown, or to the mean of what is known. A softly optimal
    follower has the same V_F, and takes the others together as often, if their Q_F are lumped to β log Σ exp(Q_F / β).

    Attributes:
      state: the states kept, int [N].
      action: an action in each place of each of them, int [N, W].
      own: whether a place is that action's alone, bool [N, W]; the others of its row share the lump evenly.
      lumped: actions of each state that are in the lump, bool [N, B].
      states: S, how many the table has.
    """

    state: Tensor
    action: Tensor
    own: Tensor
    lumped: Tensor
    states: int

    @classmethod
    def whole(cls, states: int, actions: int) -> Part:
        """All of a table."""
        action = torch.arange(actions).expand(states, -1)
        own = torch.ones(states, actions, dtype=torch.bool)
        return cls(torch.arange(states), action, own, ~own, states)

    @classmethod
    def seen(cls, known: np.ndarray, reached: np.ndarray) -> Part:
        """Of what was visited, bool [S, B], and of the states that it leads to, bool [S]."""
        kept = np.flatnonzero(known.any(-1) | reached)
        taken = known[kept]
        number = taken.sum(-1)
        width = int((number + (number < taken.shape[1])).max(initial=1))
        action = np.argsort(~taken, axis=-1, kind="stable")[:, :width]
        own = np.arange(width) < number[:, None]
        tables = kept, action, own, ~taken
        state, actions, alone, lumped = (torch.from_numpy(table) for table in tables)
        return cls(state, actions, alone, lumped, len(known))

    @cached_property
    def is_whole(self) -> bool:
        """Whether nothing is left out or lumped."""
        return len(self.state) == self.states and not bool(self.lumped.any())

    def table(self, full: Tensor) -> Tensor:
        """The entries of a table [C, S, B], [C, N, W]; in the lump's places those of one of its actions."""
        return full if self.is_whole else full.flatten(1)[:, self.state[:, None] * full.shape[2] + self.action]

    def by_state(self, full: Tensor) -> Tensor:
        """The entries of a table [C, S], [C, N]."""
        return full if self.is_whole else full[:, self.state]

    def lumps(self, q: Tensor, beta: float) -> Tensor:
        """Q_F [C, S, B] with which a softly optimal follower has the same V_F, [C, N, W]."""
        if self.is_whole:
            return q
        scaled = (q[:, self.state] / beta).masked_fill(~self.lumped, -torch.inf)
        lump = beta * (scaled.logsumexp(-1, keepdim=True) - self._places.log())
        return torch.where(self.own, self.table(q), lump)

    def policy(self, probs: Tensor) -> Tensor:
        """g of a policy [S, B], [N, W]."""
        if self.is_whole:
            return probs
        kept = probs[self.state]
        lump = (kept * self.lumped).sum(-1, keepdim=True) / self._places
        return torch.where(self.own, kept.gather(1, self.action), lump)

    @cached_property
    def _places(self) -> Tensor:
        """How many places share the lump of each state, [N, 1]; 1 where there is none."""
        return (~self.own).sum(-1, keepdim=True).clamp(min=1).double()
