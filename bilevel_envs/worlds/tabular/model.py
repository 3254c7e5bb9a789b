"""Finite MDPs as tables."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.checks import check_distribution, check_finite, check_shape
from bilevel_envs.worlds.tabular.banded import Band, band_of
from bilevel_envs.worlds.tabular.kernels import solutions
from bilevel_envs.worlds.tabular.starts import Starts

if TYPE_CHECKING:
    from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy


@dataclass(frozen=True)
class Stepping:
    """The possible moves and no others; NumPy, a leading 1 where shared by all runs.

    Attributes:
      successor: the states a step may lead to, int [R|1, S, B, K]; the possible ones first.
      probability: of each of them, [R|1, S, B, K].
      going_on: the same, 0 where the episode ends with the step, [R|1, S, B, K].
      starts: the possible first states.
      ends: whether the episode ends with the step, bool [R|1, S, B].
    """

    successor: np.ndarray
    probability: np.ndarray
    going_on: np.ndarray
    starts: Starts
    ends: np.ndarray

    @cached_property
    def cdf(self) -> np.ndarray:
        """Cumulative probabilities, the last possible one exactly 1, [R|1, S, B, K]."""
        return closed_cdf(self.probability)

    @cached_property
    def band(self) -> Band:
        """A good order of states for linear algebra."""
        return band_of(self.successor, self.going_on)


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
    def stepping(self) -> Stepping:
        """The possible moves."""
        transition = self._transition.numpy()
        width = int((transition > 0).sum(-1).max())
        order = np.argsort(-(transition > 0).astype(np.int8), axis=-1, kind="stable")
        successor = np.ascontiguousarray(order[..., :width])
        probability = np.take_along_axis(transition, successor, axis=-1)
        continues = self._continues.numpy()
        going_on = probability * continues[..., None]
        return Stepping(successor, probability, going_on, Starts.of(self._initial.numpy()), continues == 0)


def closed_cdf(p: np.ndarray) -> np.ndarray:
    """Cumulative sums that reach exactly 1 at the last possible outcome, so that a draw never falls behind it."""
    cdf = np.cumsum(p, axis=-1)
    outcomes = p.shape[-1]
    last = outcomes - 1 - np.argmax((p > 0)[..., ::-1], axis=-1)
    cdf[np.arange(outcomes) >= last[..., None]] = 1.0
    return cdf


def look_up(table: Tensor, *index: Tensor) -> Tensor:
    """Entries of a table [R|1, ...] at a batch's own states and actions, which are not checked; all [R, N, T]."""
    flat = index[0]
    for size, own in zip(table.shape[2:], index[1:], strict=True):
        flat = flat * size + own
    if table.shape[0] == 1:
        return table.reshape(-1)[flat]
    return table.flatten(1).gather(1, flat.flatten(1)).view(flat.shape)


@dataclass(frozen=True)
class Table:
    """A function of states, or of states and actions, by look-up.

    Attributes:
      values: [R|1, S] or [R|1, S, B].
    """

    kind: ClassVar[str] = "tabular"
    values: Tensor

    def __call__(self, state: Tensor | np.ndarray | int, action: Tensor | np.ndarray | int | None = None) -> Tensor:
        """Values at states [R, ...] (any shape where one run or all share the table); [R, ..., B] without `action`."""
        state = torch.as_tensor(state)
        runs = self.values.shape[0]
        if runs > 1 and state.shape[:1] != (runs,):
            raise ValueError(f"`state` must have a leading runs axis of {runs}, got shape {list(state.shape)}")
        run = torch.arange(runs).view(-1, *[1] * (state.ndim - 1)) if runs > 1 else torch.zeros((), dtype=torch.long)
        return self.values[run, state] if action is None else self.values[run, state, torch.as_tensor(action)]


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

    kind: ClassVar[str] = "tabular"
    horizon: ClassVar[int | None] = None
    is_quadratic: ClassVar[bool] = False
    transition: Tensor
    initial: Tensor
    r_leader: Tensor
    r_follower: Tensor
    continues: Tensor = field(default=cast(Tensor, None))  # made by __post_init__
    structure: Structure = field(default=cast(Structure, None), repr=False)  # likewise

    def __post_init__(self) -> None:
        for name in ("transition", "initial", "r_leader", "r_follower"):
            if not isinstance(getattr(self, name), Tensor) or getattr(self, name).dtype != torch.float64:
                raise TypeError(f"`{name}` must be a float64 torch tensor, got {_kind(getattr(self, name))}")
        check_shape(self.r_leader, self.transition.shape[-3:-1], "r_leader", "[state, action]")
        checked = self.structure is not None and self.structure.belongs_to(self)
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
            if checked and name in ("transition", "initial", "continues"):
                continue  # other rewards, or no gradients, on dynamics that have been checked
            table = getattr(self, name)
            check_shape(table, shape, name)
            if table.ndim != len(shape) + 1 or table.shape[0] not in (1, self.runs):
                raise ValueError(
                    f"`{name}` must have a leading runs axis (1 or {self.runs}) before {list(shape)}, "
                    f"got {list(table.shape)}"
                )
            check_finite(table, name)
        if checked:
            return
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
            if table.shape[:-2] not in ((1,), (changed.runs,)):
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
        """(I − γΠ)⁻¹ y, or its transpose, which carries visits forward; no gradients.

        Args:
          policy: g in Π[s, s'] = Σ_b g(b|s) p(s' and on | s, b), [R|1, S, B].
          gamma: discount in [0, 1).
          y: right-hand side, [R|1, S].
          transpose: solve with Πᵀ.
        """
        runs = max(self.runs, len(policy), len(y))
        check_shape(policy, (self.states, self.actions), "policy", "[state, action]")
        check_shape(y, (self.states,), "y", "[state]")
        for name, table in (("policy", policy), ("y", y)):
            if len(table) not in (1, runs):
                raise ValueError(f"`{name}` must have a leading runs axis (1 or {runs}), got shape {list(table.shape)}")
        moves, band = self.structure.stepping, self.structure.stepping.band
        g, right = (x.double().contiguous().numpy() for x in (policy, y))
        how = (gamma, band.position, band.width, right, transpose, band.border)
        x = solutions(g, moves.successor, moves.going_on, *how)
        return torch.from_numpy(x)

    def terms(self, rollout: Rollout, policy: BoltzmannPolicy | None = None) -> Terms:
        """The differentiable terms at the visited steps; None where no gradient can flow.

        Args:
          rollout: the steps.
          policy: with one, a `BoltzmannPolicy`, also E_b[r_F(s_k, b)] under it.
        """
        state, action = rollout.state, rollout.action

        def visited(table: Tensor, *index: Tensor) -> Tensor | None:
            return look_up(table, *index) if table.requires_grad else None

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
