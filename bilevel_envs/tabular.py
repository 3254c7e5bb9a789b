"""Finite MDPs as tables."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs._checks import check_distribution, check_finite, check_shape
from bilevel_envs.model import Rollout, Terms
from bilevel_envs.resolvent import Band, band_of, resolvent


@dataclass(frozen=True)
class Stepping:
    """Inverse-CDF tables for drawing transitions; NumPy, a leading 1 where shared by all runs.

    Attributes:
      successor: the states a step may lead to, int [R|1, S, B, K].
      cdf: their cumulative probabilities, the last possible one exactly 1, [R|1, S, B, K].
      start_cdf: cumulative initial distribution, [R|1, S].
    """

    successor: np.ndarray
    cdf: np.ndarray
    start_cdf: np.ndarray

    @cached_property
    def ladder(self) -> np.ndarray:
        """`ladder_of(cdf)`, made once."""
        return ladder_of(self.cdf)


class Structure:
    """What samplers and solvers derive from a model's dynamics, once; holds no gradients."""

    def __init__(self, transition: Tensor, initial: Tensor, continues: Tensor) -> None:
        self._transition, self._initial, self._continues = transition.detach(), initial.detach(), continues.detach()

    def belongs_to(self, model: TabularModel) -> bool:
        """Whether it was derived from these very tables."""
        mine, its = (
            (self._transition, self._initial, self._continues),
            (model.transition, model.initial, model.continues),
        )
        return all(a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in zip(mine, its, strict=True))

    @cached_property
    def kernel(self) -> Tensor:
        """Probability of going on to s', [R|1, S, B, S]: the transition, 0 where the episode ends."""
        return self._transition * self._continues[..., None]

    @cached_property
    def band(self) -> Band | None:
        """The banded form of `kernel`, where it has one."""
        return band_of(self.kernel)

    @cached_property
    def stepping(self) -> Stepping:
        """Tables for drawing transitions."""
        transition = self._transition.numpy()
        width = int((transition > 0).sum(-1).max())
        order = np.argsort(-(transition > 0).astype(np.int8), axis=-1, kind="stable")
        successor = np.ascontiguousarray(order[..., :width])
        probability = np.take_along_axis(transition, successor, axis=-1)
        return Stepping(successor, closed_cdf(probability), closed_cdf(self._initial.numpy()))


ALMOST_ONE = 1 - 1e-9  # the largest u for which row + u is less than row + 1 in float64, for a million rows


def closed_cdf(p: np.ndarray) -> np.ndarray:
    """Cumulative sums that reach exactly 1 at the last possible outcome, so that a draw never falls behind it."""
    cdf = np.cumsum(p, axis=-1)
    outcomes = p.shape[-1]
    last = outcomes - 1 - np.argmax((p > 0)[..., ::-1], axis=-1)
    cdf[np.arange(outcomes) >= last[..., None]] = 1.0
    return cdf


def ladder_of(cdf: np.ndarray) -> np.ndarray:
    """All rows of a table of CDFs as one increasing array: row i occupies (i, i + 1].

    One binary search for i + u then draws from row i: its result is the flat index of the outcome.
    """
    rows = cdf.reshape(-1, cdf.shape[-1])
    return (rows + np.arange(len(rows))[:, None]).reshape(-1)


def draw(ladder: np.ndarray, row: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Flat indices of the outcomes drawn from the rows `row` of a ladder; `uniform` at most `ALMOST_ONE`."""
    return ladder.searchsorted(row + uniform, "right")


@dataclass(frozen=True)
class Table:
    """A function of states, or of states and actions, by look-up.

    Attributes:
      values: [R|1, S] or [R|1, S, B].
    """

    values: Tensor

    def __call__(self, state: Tensor | np.ndarray | int, action: Tensor | np.ndarray | int | None = None) -> Tensor:
        """Values at states [R, ...] (any shape where one run or all share the table); [R, ..., B] without `action`."""
        state = torch.as_tensor(state)
        if self.values.shape[0] == 1:
            index: tuple[Tensor, ...] = (torch.zeros((), dtype=torch.long), state)
        else:
            if state.ndim == 0 or state.shape[0] != self.values.shape[0]:
                raise ValueError(
                    f"`state` must have a leading runs axis of {self.values.shape[0]}, got shape {list(state.shape)}"
                )
            runs = torch.arange(self.values.shape[0]).view(-1, *[1] * (state.ndim - 1))
            index = (runs, state)
        return self.values[index] if action is None else self.values[(*index, torch.as_tensor(action))]


@dataclass(frozen=True)
class TabularModel:
    """A finite MDP whose tables may depend on θ; a leading 1 stands for "the same in every run".

    Attributes:
      transition: p(s' | s, b), [R|1, S, B, S].
      initial: ρ0(s), [R|1, S].
      r_leader: r_L(s, b), [R|1, S, B].
      r_follower: r_F(s, b), [R|1, S, B].
      continues: 0 where the episode ends after the step, else 1, [R|1, S, B]; default all 1.
      structure: what is derived from the dynamics; shared by models that differ in rewards only.

    Raises:
      ValueError: if a table has the wrong shape, is not finite, or is no distribution.
    """

    transition: Tensor
    initial: Tensor
    r_leader: Tensor
    r_follower: Tensor
    continues: Tensor = field(default=None)  # type: ignore[assignment]
    structure: Structure = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.structure is not None and self.structure.belongs_to(self):
            return  # other rewards, or no gradients, on dynamics that have been checked
        for name in ("transition", "initial", "r_leader", "r_follower"):
            if not isinstance(getattr(self, name), Tensor) or getattr(self, name).dtype != torch.float64:
                raise TypeError(f"`{name}` must be a float64 torch tensor, got {_kind(getattr(self, name))}")
        check_shape(self.r_leader, self.transition.shape[-3:-1], "r_leader", "[state, action]")
        states, actions = self.r_leader.shape[-2:]
        if self.continues is None:
            object.__setattr__(self, "continues", torch.ones(1, states, actions, dtype=torch.float64))
        shapes = {
            "transition": (states, actions, states),
            "initial": (states,),
            "continues": (states, actions),
            "r_leader": (states, actions),
            "r_follower": (states, actions),
        }
        for name, shape in shapes.items():
            table = getattr(self, name)
            check_shape(table, shape, name)
            if table.ndim != len(shape) + 1 or table.shape[0] not in (1, self.runs):
                raise ValueError(
                    f"`{name}` must have a leading runs axis (1 or {self.runs}) before {list(shape)}, "
                    f"got {list(table.shape)}"
                )
            check_finite(table, name)
        if not ((self.continues == 0) | (self.continues == 1)).all():
            raise ValueError("`continues` must be 0 where the episode ends after the step and 1 elsewhere")
        check_distribution(self.transition, "transition", "[run, state, action, next state]")
        check_distribution(self.initial, "initial", "[run, state]")
        object.__setattr__(self, "structure", Structure(self.transition, self.initial, self.continues))

    @property
    def runs(self) -> int:
        """R, or 1 where every run shares the model."""
        return max(t.shape[0] for t in (self.transition, self.initial, self.r_leader, self.r_follower))

    @property
    def states(self) -> int:
        """S."""
        return self.r_leader.shape[-2]

    @property
    def actions(self) -> int:
        """B."""
        return self.r_leader.shape[-1]

    def with_rewards(self, r_leader: Tensor, r_follower: Tensor) -> TabularModel:
        """The same dynamics with other rewards, [R|1, S, B]."""
        for name, table in (("r_leader", r_leader), ("r_follower", r_follower)):
            check_shape(table, (self.states, self.actions), name, "[state, action]")
            check_finite(table, name)
        changed = replace(self, r_leader=r_leader, r_follower=r_follower)
        for name, table in (("r_leader", r_leader), ("r_follower", r_follower)):
            if table.ndim != 3 or table.shape[0] not in (1, changed.runs):
                raise ValueError(
                    f"`{name}` must have a leading runs axis (1 or {changed.runs}), got shape {list(table.shape)}"
                )
        return changed

    def detach(self) -> TabularModel:
        """The same model without gradients."""
        return TabularModel(
            self.transition.detach(),
            self.initial.detach(),
            self.r_leader.detach(),
            self.r_follower.detach(),
            self.continues,
            self.structure,
        )

    def expected_next(self, v: Tensor) -> Tensor:
        """E[v(s') if the episode goes on | s, b], [R, S, B], for v [R, S]."""
        kernel = self.structure.kernel
        if kernel.shape[0] == 1:
            return (v @ kernel[0].flatten(0, 1).T).view(v.shape[0], self.states, self.actions)
        return torch.einsum("rsbt,rt->rsb", kernel, v.expand(kernel.shape[0], -1))

    def resolvent(self, policy: Tensor, gamma: float, y: Tensor, *, transpose: bool = False) -> Tensor:
        """(I − γΠ)⁻¹ y, or its transpose, for a policy [R, S, B] and y [R, S]; no gradients."""
        structure = self.structure
        return resolvent(structure.kernel, structure.band, policy, gamma, y, transpose=transpose)

    def terms(self, rollout: Rollout, policy: Any = None) -> Terms:
        """The differentiable terms at the visited steps; None where no gradient can flow.

        Args:
          rollout: the steps.
          policy: with one, a `BoltzmannPolicy`, also E_b[r_F(s_k, b)] under it.
        """
        state, action = rollout.state, rollout.action

        def visited(table: Tensor, *index: Tensor) -> Tensor | None:
            if not table.requires_grad:
                return None
            runs = torch.arange(state.shape[0]).view(-1, 1, 1) if table.shape[0] > 1 else 0
            return table[(runs, *index)]

        start = visited(self.initial, state)
        arrival = visited(self.transition, state, action, rollout.next_state)
        # Probabilities are gathered first and logged after, so that a deterministic move never yields log 0.
        return Terms(
            r_leader=visited(self.r_leader, state, action),
            r_follower=visited(self.r_follower, state, action),
            log_start=None if start is None else torch.where(rollout.starts, start, 1.0).log(),
            log_arrival=None if arrival is None else torch.where(rollout.valid, arrival, 1.0).log(),
            expected_r_follower=None if policy is None else visited((policy.probs * self.r_follower).sum(-1), state),
        )


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
