r"""The world as a leader has seen it: counts of every transition so far, and what follows from them.

A leader that keeps its transitions can solve for its values instead of sweeping over the last batch, and can say how an
episode goes on behind the step at which a batch cuts it. Counts do not age where θ leaves the transitions alone. Where
θ moves them, a leader knows log p(s'|s, b; θ) at the transitions that it saw, because it differentiates it: their
probabilities are then those of the present θ, and the counts only say which transitions there are.

What was never seen says nothing. A pair (s, b) that was never visited, or led only to states that were never left, is
left out of the expectation under g, so that its benefit is 0; a state without any other pair is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bilevel_envs.core.batch import Rollout
from bilevel_envs.worlds.tabular.banded import Band, band_of
from bilevel_envs.worlds.tabular.kernels import count_transitions, known_moves, solutions
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy


@dataclass(frozen=True)
class KnownMoves:
    """The seen transitions at one θ under one policy, restricted to what is known; no gradients.

    Attributes:
      successor: states that each pair was seen to lead to, int [R, S, B, K]; 0 in free places.
      probability: of each of them, among those known, [R, S, B, K]; 0 in free places.
      going_on: the same, without the share that ends the episode, [R, S, B, K].
      policy: g(b | s) among the known pairs of a state, [R, S, B]; 0 in unknown states.
      known: which pairs are known, bool [R, S, B].
      band: a good order of states for linear algebra.
    """

    successor: np.ndarray
    probability: np.ndarray
    going_on: np.ndarray
    policy: np.ndarray
    known: np.ndarray
    band: Band

    def resolvent(self, gamma: float, y: np.ndarray, *, transpose: bool = False) -> np.ndarray:
        """(I − γΠ)⁻¹ y, or its transpose, which carries visits forward; y and the result are [R, S]."""
        band = self.band
        tables = self.policy, self.successor, self.going_on
        return solutions(*tables, gamma, band.position, band.width, y, transpose, band.border)

    def expected_next(self, v: np.ndarray) -> np.ndarray:
        """E[v(s') if the episode goes on | s, b], [R, S, B], for v [R, S]."""
        run = np.arange(len(v))[:, None, None, None]
        return (self.going_on * v[run, self.successor]).sum(-1)

    def sent(self, weight: np.ndarray) -> np.ndarray:
        """What weights on pairs [R, S, B] become in the states that follow while the episode goes on, [R, S]."""
        runs, states = weight.shape[:2]
        to = self.successor + states * np.arange(runs)[:, None, None, None]
        arriving = np.bincount(to.ravel(), (weight[..., None] * self.going_on).ravel(), minlength=runs * states)
        return arriving.reshape(runs, states)

    def action_values(self, reward: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Q [R, S, B] and V [R, S] of a reward [R|1, S, B]; Q is V at pairs that are not known, V 0 where none is."""
        reward = np.where(self.known, reward, 0.0)
        v = self.resolvent(gamma, (self.policy * reward).sum(-1))
        return np.where(self.known, reward + gamma * self.expected_next(v), v[..., None]), v


class EmpiricalModel:
    """Counts of all transitions so far, each run its own.

    Args:
      theta_moves: whether θ moves the transition probabilities; their present values are then taken from the model, at
        transitions that were seen.
    """

    def __init__(self, theta_moves: bool = False) -> None:
        self.theta_moves = theta_moves
        self.successor = np.zeros((0, 0, 0, 1), dtype=np.int64)
        self.visits = np.zeros((0, 0, 0, 1))
        self.endings = np.zeros((0, 0, 0, 1))

    def add(self, batch: Rollout, states: int, actions: int) -> None:
        """Counts the valid steps of a batch [R, N, T] of a world of so many states and actions."""
        shape = (len(batch.state), states, actions)
        if self.visits.shape[:3] not in ((0, 0, 0), shape):
            raise ValueError(
                f"the counts are those of {list(self.visits.shape[:3])} runs, states and actions, not of {list(shape)}"
            )
        if self.visits.shape[:3] != shape:
            self.successor = np.full((*shape, 1), -1)
            self.visits, self.endings = np.zeros((*shape, 1)), np.zeros((*shape, 1))
            self.__dict__.pop("band", None)
        self._count(batch, 1.0)
        if "band" in self.__dict__ and not self._fits(self.band):
            del self.__dict__["band"]

    def without(self, batch: Rollout) -> EmpiricalModel:
        """The same counts without those of the valid steps of a batch that was added."""
        other = EmpiricalModel(self.theta_moves)
        other.successor, other.visits, other.endings = self.successor, self.visits.copy(), self.endings.copy()
        other.__dict__["band"] = self.band
        other._count(batch, -1.0)
        return other

    @cached_property
    def band(self) -> Band:
        """A good order of states for linear algebra, of the transitions seen in any run."""
        return band_of(np.maximum(self.successor, 0), (self.successor >= 0).astype(float))

    def moves(self, model: TabularModel, policy: BoltzmannPolicy) -> KnownMoves:
        """What is known of the world at the θ of a model, under a policy g [R|1, S, B]."""
        transition = model.transition.detach().numpy() if self.theta_moves else np.zeros((1, 1, 1, 1))
        g = np.ascontiguousarray(policy.probs.numpy())
        return KnownMoves(
            *known_moves(self.successor, self.visits, self.endings, transition, self.theta_moves, g),
            self.band,
        )

    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of pairs (s, b) that were visited, and transitions for each of those, [R] each."""
        visits = self.visits.sum(-1).reshape(len(self.visits), -1)
        seen = (visits > 0).sum(1)
        return seen / max(1, visits.shape[1]), visits.sum(1) / np.maximum(seen, 1)

    def numbers(self, states: int, actions: int) -> int:
        """About how many numbers a run of a world of so many states and actions holds."""
        return 6 * states * actions * max(8, self.visits.shape[-1])

    def copies(self, count: int) -> EmpiricalModel:
        """The counts of `count` times as many runs, copy j of run i at j·R + i."""
        other = EmpiricalModel(self.theta_moves)
        for name in ("successor", "visits", "endings"):
            setattr(other, name, np.concatenate([getattr(self, name)] * count))
        if "band" in self.__dict__:
            other.__dict__["band"] = self.band
        return other

    def state_dict(self) -> dict[str, object]:
        """The counts, as tensors, and the order of states that was good for them."""
        counts = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("successor", "visits", "endings")}
        band = self.band
        return {
            **counts,
            "position": torch.from_numpy(band.position.copy()),
            "band": (int(band.width), int(band.border)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the counts back.

        Raises:
          ValueError: if they are no counts of transitions between a table's states.
        """
        successor, visits, endings, position = (
            state[name].numpy().copy() for name in ("successor", "visits", "endings", "position")
        )
        band = Band(position, *state["band"])
        _check_counts(successor, visits, endings, band)
        self.successor, self.visits, self.endings = successor, visits, endings
        self.__dict__.pop("band", None)
        if self._fits(band):
            self.__dict__["band"] = band

    def _fits(self, band: Band) -> bool:
        """Whether all transitions seen lie in a band or its border."""
        state = np.nonzero(self.successor >= 0)[1]
        here, there = band.position[state], band.position[self.successor[self.successor >= 0]]
        inner = len(band.position) - band.border
        return bool((np.abs(here - there) <= band.width)[(here < inner) & (there < inner)].all())

    def _count(self, batch: Rollout, amount: float) -> None:
        steps = [
            part.flatten(1).numpy()
            for part in (batch.state, batch.action, batch.next_state, batch.terminated, batch.valid)
        ]
        first = np.zeros(len(self.visits), dtype=np.int64)
        while True:
            if count_transitions(*steps, self.successor, self.visits, self.endings, first, amount):  # type: ignore
                return
            self._widen()

    def _widen(self) -> None:
        """Makes room for twice as many successors of each pair."""
        self.successor = np.concatenate([self.successor, np.full_like(self.successor, -1)], -1)
        self.visits = np.concatenate([self.visits, np.zeros_like(self.visits)], -1)
        self.endings = np.concatenate([self.endings, np.zeros_like(self.endings)], -1)


def _check_counts(successor: np.ndarray, visits: np.ndarray, endings: np.ndarray, band: Band) -> None:
    """Refuses what compiled loops could not index with, or what cannot be counts, with a ValueError."""
    states = successor.shape[1] if successor.ndim == 4 else 0
    kinds = successor.dtype == np.int64, visits.dtype == np.float64, endings.dtype == np.float64
    if not all(kinds) or not successor.shape == visits.shape == endings.shape or successor.ndim != 4:
        raise ValueError("saved counts must be tables [R, S, B, K] of one shape, int64, float64 and float64")
    if successor.shape[3] == 0 or (successor.size and (successor.min() < -1 or successor.max() >= states)):
        least, most = successor.min(initial=0), successor.max(initial=0)
        raise ValueError(f"saved counts must lead to states 0 … {states - 1}, got {least} … {most}")
    used = successor >= 0
    if (~used[..., :-1] & used[..., 1:]).any():
        raise ValueError("saved counts must list successors without gaps")
    if not (
        np.isfinite(visits).all() and (endings >= 0).all() and (endings <= visits).all() and (visits[~used] == 0).all()
    ):
        raise ValueError("saved counts must be finite, with 0 ≤ endings ≤ visits, and 0 where there is no successor")
    _check_band(band, states)


def _check_band(band: Band, states: int) -> None:
    """Refuses what is no order of the states, with a ValueError."""
    order = np.sort(band.position)
    if (
        len(order) != states
        or not (order == np.arange(states)).all()
        or band.width < 0
        or not 0 <= band.border <= states
    ):
        raise ValueError("the order of states saved with the counts must be a permutation of them")
