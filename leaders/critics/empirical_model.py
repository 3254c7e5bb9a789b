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
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.worlds.tabular.banded import Band, band_of
from bilevel_envs.worlds.tabular.kernels.counts import count_transitions, known_moves
from bilevel_envs.worlds.tabular.kernels.systems import solutions
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.pattern import pattern_of
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.tabular.policy_system import PolicySystems
from bilevel_envs.worlds.tabular.transitions import LARGEST_DIRECT, look_up


class Places:
    """Numbers 0 … V − 1 of the states that were seen, in the order in which they were; all runs share them.

    In small tables every state has its own number from the start.

    Args:
      states: S.
      state: the state in each place, int [V]; None where every state is in its own.
    """

    def __init__(self, states: int, state: np.ndarray | None = None) -> None:
        self.everywhere = state is None
        self.state = np.arange(states) if state is None else state
        self._place = np.full(states, -1)
        self._place[self.state] = np.arange(len(self.state))

    def __len__(self) -> int:
        return len(self.state)

    def with_states(self, seen: np.ndarray) -> Places:
        """With more states."""
        if self.everywhere:
            return self
        new = np.unique(seen[self._place[seen] < 0])
        return Places(len(self._place), np.concatenate([self.state, new])) if len(new) else self

    def of(self, state: Tensor) -> Tensor:
        """Places of states; −1 where a state has none."""
        return state if self.everywhere else torch.from_numpy(self._place)[state]

    def gathered(self, table: Tensor) -> Tensor:
        """The entries of a table [R|1, S, ...] in their places, [R|1, V, ...]."""
        return table if self.everywhere else table[:, torch.from_numpy(self.state)]

    def spread(self, table: Tensor) -> Tensor:
        """A table [R, V, ...] over all states, [R, S, ...]; 0 where a state has no place."""
        if self.everywhere:
            return table
        whole = table.new_zeros(len(table), len(self._place), *table.shape[2:])
        whole[:, torch.from_numpy(self.state)] = table
        return whole

    def look_up(self, table: Tensor, state: Tensor, *action: Tensor) -> Tensor:
        """Entries of a table [R, V, ...] at a batch's states (and actions), [R, N, T]; 0 where a state has no place."""
        if self.everywhere:
            return look_up(table, state, *action)
        place = self.of(state)
        return torch.where(place < 0, torch.zeros((), dtype=table.dtype), look_up(table, place.clamp(min=0), *action))


@dataclass(frozen=True)
class KnownMoves:
    """The seen transitions at one θ under one policy, restricted to what is known; no gradients.

    States are counted by their `places`; V is their number.

    Attributes:
      successor: places that each pair was seen to lead to, int [R, V, B, K]; 0 in free places of the list.
      probability: of each of them, among those known, [R, V, B, K]; 0 in free places.
      going_on: the same, without the share that ends the episode, [R, V, B, K].
      policy: g(b | s) among the known pairs of a state, [R, V, B]; 0 in unknown states.
      known: which pairs are known, bool [R, V, B].
      band: a good order of states for linear algebra; None where they are too many for elimination.
    """

    successor: np.ndarray
    probability: np.ndarray
    going_on: np.ndarray
    policy: np.ndarray
    known: np.ndarray
    band: Band | None

    def resolvent(self, gamma: float, y: np.ndarray, *, transpose: bool = False) -> np.ndarray:
        """(I − γΠ)⁻¹ y, or its transpose, which carries visits forward; y and the result are [R, V]."""
        band = self.band
        if band is None:
            return np.concatenate(
                [own.solutions(y[r : r + 1], transpose) for r, own in enumerate(self._systems(gamma))]
            )
        tables = self.policy, self.successor, self.going_on
        return solutions(*tables, gamma, band.position, band.width, y, transpose, band.border)

    def _systems(self, gamma: float) -> list[PolicySystems]:
        """The systems of each run, whose factors every right-hand side shares."""
        if gamma not in self._factors:
            every = np.ones((1, *self.policy.shape[1:]), bool)
            self._factors[gamma] = [
                PolicySystems(g[None], (to, p[None], every), gamma, pattern_of(to, p[None], every))
                for g, to, p in zip(self.policy, self.successor.astype(np.int32), self.going_on, strict=True)
            ]
        return self._factors[gamma]

    @cached_property
    def _factors(self) -> dict[float, list[PolicySystems]]:
        return {}

    def expected_next(self, v: np.ndarray) -> np.ndarray:
        """E[v(s') if the episode goes on | s, b], [R, V, B], for v [R, V]."""
        run = np.arange(len(v))[:, None, None, None]
        return (self.going_on * v[run, self.successor]).sum(-1)

    def sent(self, weight: np.ndarray) -> np.ndarray:
        """What weights on pairs [R, V, B] become in the states that follow while the episode goes on, [R, V]."""
        runs, states = weight.shape[:2]
        to = self.successor + states * np.arange(runs)[:, None, None, None]
        arriving = np.bincount(to.ravel(), (weight[..., None] * self.going_on).ravel(), minlength=runs * states)
        return arriving.reshape(runs, states)

    def action_values(self, reward: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """Q [R, V, B] and V [R, V] of a reward [R|1, V, B]; Q is V at pairs that are not known, V 0 where none is."""
        reward = np.where(self.known, reward, 0.0)
        v = self.resolvent(gamma, (self.policy * reward).sum(-1))
        return np.where(self.known, reward + gamma * self.expected_next(v), v[..., None]), v


def pairs_where(wanted: np.ndarray) -> np.ndarray:
    """Numbers v · B + b of the pairs with a wanted entry [R, V, B, K], [R, N]; others fill the lists of other runs."""
    pairs = wanted.any(-1).reshape(len(wanted), -1)
    return np.argsort(~pairs, axis=1, kind="stable")[:, : pairs.sum(1).max(initial=0)]


def of_pairs(table: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """The rows of a table [R, V, B, K] at pairs [R, N] by their numbers, [R, N, K]."""
    return np.take_along_axis(table.reshape(len(table), -1, table.shape[-1]), pair[..., None], 1)


def moves_of_pairs(successor: np.ndarray, pair: np.ndarray, places: Places) -> tuple[Tensor, Tensor, Tensor]:
    """State, action and next state of each entry of a table of places [R, V, B, K] at pairs [R, N], [R, N, K] each."""
    following = torch.from_numpy(places.state[of_pairs(successor, pair)])
    place, action = np.divmod(pair, successor.shape[2])
    own, taken = (torch.from_numpy(x)[..., None].expand(following.shape) for x in (places.state[place], action))
    return own, taken, following


class EmpiricalModel:
    """Counts of all transitions so far, each run its own.

    Large tables are counted where they were seen alone: states by their `places`, of which there are V.

    Args:
      theta_moves: whether θ moves the transition probabilities; their present values are then taken from the model, at
        transitions that were seen.
      everywhere: give every state a place, however many there are.
    """

    def __init__(self, theta_moves: bool = False, everywhere: bool = False) -> None:
        self.theta_moves, self.everywhere = theta_moves, everywhere
        self.places = Places(0)
        self.successor = np.zeros((0, 0, 0, 1), dtype=np.int64)
        self.visits = np.zeros((0, 0, 0, 1))
        self.endings = np.zeros((0, 0, 0, 1))
        self.size = (0, 0, 0)

    def add(self, batch: Rollout, states: int, actions: int) -> None:
        """Counts the valid steps of a batch [R, N, T] of a world of so many states and actions."""
        size = (len(batch.state), states, actions)
        if self.size not in ((0, 0, 0), size):
            raise ValueError(f"the counts are those of {list(self.size)} runs, states and actions, not of {list(size)}")
        if self.size != size:
            self.size = size
            whole = self.everywhere or states <= LARGEST_DIRECT
            self.places = Places(states, None if whole else np.zeros(0, np.int64))
            shape = (len(batch.state), len(self.places), actions, 1)
            self.successor = np.full(shape, -1)
            self.visits, self.endings = np.zeros(shape), np.zeros(shape)
            self.__dict__.pop("band", None)
        self._make_room(batch)
        self._count(batch, 1.0)
        if "band" in self.__dict__ and not self._fits(self.band):
            del self.__dict__["band"]

    def without(self, batch: Rollout) -> EmpiricalModel:
        """The same counts without those of the valid steps of a batch that was added."""
        other = self._empty()
        other.successor, other.visits, other.endings = self.successor, self.visits.copy(), self.endings.copy()
        other.__dict__["band"] = self.band
        other._count(batch, -1.0)
        return other

    @cached_property
    def band(self) -> Band | None:
        """A good order of states for linear algebra, of the transitions seen in any run."""
        if len(self.places) > LARGEST_DIRECT and not self.everywhere:
            return None
        return band_of(np.maximum(self.successor, 0), (self.successor >= 0).astype(float))

    def moves(self, model: TabularModel, policy: BoltzmannPolicy) -> KnownMoves:
        """What is known of the world at the θ of a model, under a policy g [R|1, S, B]."""
        present = self.visits
        if self.theta_moves:
            pair = pairs_where(self.successor >= 0)
            steps = moves_of_pairs(np.maximum(self.successor, 0), pair, self.places)
            present = np.zeros(self.visits.shape)
            rows = present.reshape(len(present), -1, present.shape[-1])
            np.put_along_axis(rows, pair[..., None], model.detach().moves.of(*steps).numpy(), 1)
        g = np.ascontiguousarray(self.places.gathered(policy.probs).numpy())
        return KnownMoves(
            *known_moves(self.successor, self.visits, self.endings, present, self.theta_moves, g),
            self.band,
        )

    def coverage(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of pairs (s, b) that were visited, and transitions for each of those, [R] each."""
        visits = self.visits.sum(-1).reshape(len(self.visits), -1)
        seen = (visits > 0).sum(1)
        return seen / max(1, self.size[1] * self.size[2]), visits.sum(1) / np.maximum(seen, 1)

    def numbers(self, states: int, actions: int) -> int:
        """About how many numbers a run of a world of so many states and actions holds."""
        whole = self.everywhere or states <= LARGEST_DIRECT
        return 6 * (states if whole else len(self.places)) * actions * max(8, self.visits.shape[-1])

    def copies(self, count: int) -> EmpiricalModel:
        """The counts of `count` times as many runs, copy j of run i at j·R + i."""
        other = self._empty()
        other.size = (count * self.size[0], *self.size[1:])
        for name in ("successor", "visits", "endings"):
            setattr(other, name, np.concatenate([getattr(self, name)] * count))
        if "band" in self.__dict__:
            other.__dict__["band"] = self.band
        return other

    def _empty(self) -> EmpiricalModel:
        """Another one of the same world, with the same places."""
        other = EmpiricalModel(self.theta_moves, self.everywhere)
        other.size, other.places = self.size, self.places
        return other

    def state_dict(self) -> dict[str, object]:
        """The counts, as tensors, and the order of states that was good for them."""
        counts = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("successor", "visits", "endings")}
        band, places = self.band, self.places
        return {
            **counts,
            "size": self.size,
            "places": None if places.everywhere else torch.from_numpy(places.state.copy()),
            "position": None if band is None else torch.from_numpy(band.position.copy()),
            "band": None if band is None else (int(band.width), int(band.border)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the counts back.

        Raises:
          ValueError: if they are no counts of transitions between a table's states.
        """
        successor, visits, endings = (state[name].numpy().copy() for name in ("successor", "visits", "endings"))
        size, places = tuple(state["size"]), state["places"]
        band = None if state["band"] is None else Band(state["position"].numpy().copy(), *state["band"])
        _check_counts(successor, visits, endings, band)
        self.places = Places(size[1], None if places is None else _checked_places(places.numpy().copy(), size[1]))
        if successor.shape[:3] != (size[0], len(self.places), size[2]):
            raise ValueError(f"saved counts of shape {list(successor.shape)} are none of {list(size)}")
        self.size = size
        self.successor, self.visits, self.endings = successor, visits, endings
        self.__dict__.pop("band", None)
        if self._fits(band):
            self.__dict__["band"] = band

    def _fits(self, band: Band | None) -> bool:
        """Whether all transitions seen lie in a band or its border; without one, whether there are too many states."""
        if band is None:
            return len(self.places) > LARGEST_DIRECT and not self.everywhere
        if len(band.position) != len(self.places):
            return False
        state = np.nonzero(self.successor >= 0)[1]
        here, there = band.position[state], band.position[self.successor[self.successor >= 0]]
        inner = len(band.position) - band.border
        return bool((np.abs(here - there) <= band.width)[(here < inner) & (there < inner)].all())

    def _make_room(self, batch: Rollout) -> None:
        """Gives states that a batch saw for the first time their places."""
        seen = torch.cat([batch.state[batch.valid], batch.next_state[batch.valid]]).numpy()
        places = self.places.with_states(seen)
        more = len(places) - self.visits.shape[1]
        if more:
            wider = ((0, 0), (0, more), (0, 0), (0, 0))
            self.successor = np.pad(self.successor, wider, constant_values=-1)
            self.visits, self.endings = np.pad(self.visits, wider), np.pad(self.endings, wider)
        self.places = places

    def _count(self, batch: Rollout, amount: float) -> None:
        state, following = self.places.of(batch.state), self.places.of(batch.next_state)
        parts = (state, batch.action, following, batch.terminated, batch.valid)
        steps = [part.flatten(1).numpy() for part in parts]
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


def _checked_places(state: np.ndarray, states: int) -> np.ndarray:
    """The states in their places, refused with a ValueError unless they are different ones of so many."""
    if state.dtype != np.int64 or state.ndim != 1 or len(np.unique(state)) != len(state):
        raise ValueError("the states of saved counts must be different ones")
    if len(state) and (state.min() < 0 or state.max() >= states):
        raise ValueError(f"the states of saved counts must lie in 0 … {states - 1}")
    return state


def _check_counts(successor: np.ndarray, visits: np.ndarray, endings: np.ndarray, band: Band | None) -> None:
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
    if band is not None:
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
