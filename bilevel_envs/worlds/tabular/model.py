"""Finite MDPs as tables."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.checks import check_distribution, check_finite, check_shape
from bilevel_envs.worlds.tabular.banded import Band, band_of
from bilevel_envs.worlds.tabular.kernels.systems import solutions
from bilevel_envs.worlds.tabular.pattern import Pattern
from bilevel_envs.worlds.tabular.policy_system import ACCURACY, PolicySystems
from bilevel_envs.worlds.tabular.starts import Starts
from bilevel_envs.worlds.tabular.transitions import (
    LARGEST_DIRECT,
    DenseTransitions,
    Moves,
    Transitions,
    look_up,
)

if TYPE_CHECKING:
    from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy

LARGE_ACCURACY = 1e-9  # of x in (I − γΠ) x = y beside y, where systems are iterated


@dataclass(frozen=True)
class Stepping:
    """The possible moves and no others; NumPy, a leading 1 where shared by all runs.

    Attributes:
      successor: the states a step may lead to, int [R|1, S, B, K]; the possible ones first.
      probability: of each of them, [R|1, S, B, K].
      continues: 0 where the episode ends with the step, else 1, [R|1, S, B].
      starts: the possible first states.
    """

    successor: np.ndarray
    probability: np.ndarray
    continues: np.ndarray
    starts: Starts

    @cached_property
    def going_on(self) -> np.ndarray:
        """The probabilities, 0 where the episode ends with the step, [R|1, S, B, K]."""
        return self.probability * self.continues[..., None]

    @cached_property
    def ends(self) -> np.ndarray:
        """Whether the episode ends with the step, bool [R|1, S, B]."""
        return self.continues == 0

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

    def __init__(self, moves: Moves, initial: Tensor, continues: Tensor) -> None:
        self._moves, self._initial, self._continues = moves, initial.detach(), continues.detach()
        self._probability = moves.probability.detach()

    def belongs_to(self, model: TabularModel) -> bool:
        """Whether it was derived from these very tables."""
        mine = (self._probability, self._initial, self._continues)
        its = (model.moves.probability, model.initial, model.continues)
        return all(a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in zip(mine, its, strict=True))

    @cached_property
    def stepping(self) -> Stepping:
        """The possible moves."""
        successor, probability = self._moves.stepping()
        return Stepping(successor, probability, self._continues.numpy(), Starts.of(self._initial.numpy()))

    @cached_property
    def lists(self) -> Transitions:
        """The moves as lists that all runs share."""
        return self._moves.lists()

    @cached_property
    def goes_on(self) -> np.ndarray:
        """False where the episode ends with the step, bool [R|1, S, B]."""
        return self._continues.numpy() != 0

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Successors, probabilities, and where the episode goes on, as solvers of large tables take them."""
        return self.lists.successor, self.lists.probability.contiguous().numpy(), self.goes_on

    @property
    def pattern(self) -> Pattern:
        """Where the entries of a large system lie."""
        _, probability, goes_on = self.arrays
        return self.lists.shared.pattern(probability, goes_on)


def closed_cdf(p: np.ndarray) -> np.ndarray:
    """Cumulative sums that reach exactly 1 at the last possible outcome, so that a draw never falls behind it."""
    cdf = np.cumsum(p, axis=-1)
    outcomes = p.shape[-1]
    last = outcomes - 1 - np.argmax((p > 0)[..., ::-1], axis=-1)
    cdf[np.arange(outcomes) >= last[..., None]] = 1.0
    return cdf


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
      transition: p(s' | s, b), a table [R|1, S, B, S] or, without its zeros, `Transitions`.
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
    transition: Tensor | Transitions
    initial: Tensor
    r_leader: Tensor
    r_follower: Tensor
    continues: Tensor = field(default=cast(Tensor, None))  # made by __post_init__
    structure: Structure = field(default=cast(Structure, None), repr=False)  # likewise
    moves: Moves = field(init=False, repr=False, compare=False)  # what answers for `transition`

    def __post_init__(self) -> None:
        for name in ("initial", "r_leader", "r_follower"):
            if not isinstance(getattr(self, name), Tensor) or getattr(self, name).dtype != torch.float64:
                raise TypeError(f"`{name}` must be a float64 torch tensor, got {_kind(getattr(self, name))}")
            if getattr(self, name).ndim == 0:
                raise ValueError(f"`{name}` must have a leading runs axis, got a single number")
        if not isinstance(self.structure, (Structure, NoneType)):
            raise TypeError(f"`structure` must be another model's, got {type(self.structure).__name__}")
        object.__setattr__(self, "moves", _moves_of(self.transition))
        if self.moves.probability.ndim != 4:
            raise ValueError(
                "`transition` must be [run, state, action, next state], with a leading runs axis, of 1 where all runs "
                f"share it, got shape {list(self.moves.probability.shape)}"
            )
        check_shape(self.r_leader, self.moves.probability.shape[-3:-1], "r_leader", "[state, action]")
        checked = self.structure is not None and self.structure.belongs_to(self)
        states, actions = self.r_leader.shape[-2:]
        if self.continues is None:
            object.__setattr__(self, "continues", torch.ones(1, states, actions, dtype=torch.float64))
        shapes = {
            "initial": (states,),
            "continues": (states, actions),
            "r_leader": (states, actions),
            "r_follower": (states, actions),
        }
        for name, shape in shapes.items():
            if checked and name in ("initial", "continues"):
                continue  # other rewards, or no gradients, on dynamics that have been checked
            self._check_table(getattr(self, name), name, shape)
            check_finite(getattr(self, name), name)
        if checked:
            return
        self._check_table(self.moves.probability, "transition", (states, actions, self.moves.width))
        if not ((self.continues == 0) | (self.continues == 1)).all():
            raise ValueError("`continues` must be 0 where the episode ends after the step and 1 elsewhere")
        self.moves.check()
        check_distribution(self.initial, "initial", "[run, state]")
        object.__setattr__(self, "structure", Structure(self.moves, self.initial, self.continues))

    def _check_table(self, table: Tensor, name: str, shape: tuple[int, ...]) -> None:
        """Refuses a table of another shape."""
        check_shape(table, shape, name)
        if table.ndim != len(shape) + 1 or table.shape[0] not in (1, self.runs):
            raise ValueError(
                f"`{name}` must have one leading runs axis, {_lengths(self.runs)}, before {list(shape)}, "
                f"got {list(table.shape)}"
            )

    @property
    def runs(self) -> int:
        """R, or 1 where every run shares the model."""
        tables = (self.moves.probability, self.initial, self.r_leader, self.r_follower)
        return max(table.shape[0] for table in tables)

    @property
    def states(self) -> int:
        """S."""
        return self.r_leader.shape[-2]

    @property
    def actions(self) -> int:
        """B."""
        return self.r_leader.shape[-1]

    @property
    def theta_moves_transitions(self) -> bool:
        """Whether gradients flow into p."""
        return self.moves.probability.requires_grad

    @property
    def is_large(self) -> bool:
        """Whether systems are solved by iteration instead of elimination."""
        return self.states > LARGEST_DIRECT

    @property
    def entries(self) -> int:
        """Numbers in all tables."""
        tables = (self.moves.probability, self.initial, self.r_leader, self.r_follower, self.continues)
        return sum(table.numel() for table in tables)

    def with_rewards(self, r_leader: Tensor, r_follower: Tensor) -> TabularModel:
        """The same dynamics with other rewards, [R|1, S, B]."""
        for name, table in (("r_leader", r_leader), ("r_follower", r_follower)):
            check_shape(table, (self.states, self.actions), name, "[state, action]")
            check_finite(table, name)
        changed = replace(self, r_leader=r_leader, r_follower=r_follower)
        for name, table in (("r_leader", r_leader), ("r_follower", r_follower)):
            if table.shape[:-2] not in ((1,), (changed.runs,)):
                raise ValueError(
                    f"`{name}` must have one leading runs axis, {_lengths(changed.runs)}, got shape {list(table.shape)}"
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
        return self.continues * self.moves.expected(v)

    def sent(self, weight: Tensor) -> Tensor:
        """What weights on pairs [R, S, B] become in the states that follow while the episode goes on, [R, S]."""
        return self.moves.sent(self.continues * weight)

    def resolvent(self, policy: Tensor, gamma: float, y: Tensor, *, transpose: bool = False) -> Tensor:
        """(I − γΠ)⁻¹ y, or its transpose, which carries visits forward; no gradients.

        Args:
          policy: g in Π[s, s'] = Σ_b g(b|s) p(s' and on | s, b), [R|1, S, B].
          gamma: discount in [0, 1).
          y: right-hand side, [R|1, S].
          transpose: solve with Πᵀ.
        """
        return self.resolvents(policy, gamma)(y, transpose=transpose)

    def resolvents(self, policy: Tensor, gamma: float) -> Resolvents:
        """The same for one right-hand side after another: in large tables the factors are shared."""
        check_shape(policy, (self.states, self.actions), "policy", "[state, action]")
        return Resolvents(self, policy.double().contiguous().numpy(), gamma)

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
        arrival = self.moves.of(state, action, rollout.next_state) if self.theta_moves_transitions else None
        # Probabilities are gathered first and logged after, so that a deterministic move never yields log 0.
        return Terms(
            r_leader=visited(self.r_leader, state, action),
            r_follower=visited(self.r_follower, state, action),
            log_start=None if start is None else torch.where(rollout.starts, start, 1.0).log(),
            log_arrival=None if arrival is None else torch.where(rollout.valid, arrival, 1.0).log(),
            expected_r_follower=None if policy is None else visited((policy.probs * self.r_follower).sum(-1), state),
        )


class Resolvents:
    """(I − γΠ)⁻¹ of a policy, to be applied to right-hand sides.

    Args:
      model: whose dynamics are meant.
      policy: g, [R|1, S, B].
      gamma: discount in [0, 1).
    """

    def __init__(self, model: TabularModel, policy: np.ndarray, gamma: float) -> None:
        self._model, self._policy, self._gamma = model, policy, gamma

    def __call__(self, y: Tensor, *, transpose: bool = False) -> Tensor:
        """x from (I − γΠ) x = y, or from its transpose; x and y are [R|1, S].

        Raises:
          ValueError: if y has another shape.
        """
        model, g = self._model, self._policy
        check_shape(y, (model.states,), "y", "[state]")
        runs = max(model.runs, len(g), len(y))
        for name, shape in (("policy", g.shape), ("y", y.shape)):
            if shape[0] not in (1, runs):
                raise ValueError(f"`{name}` must have a leading runs axis, {_lengths(runs)}, got shape {list(shape)}")
        right = y.detach().double().contiguous().numpy()
        if model.is_large:
            return torch.from_numpy(self._systems.solutions(right, transpose)).expand(runs, -1)
        moves, band = model.structure.stepping, model.structure.stepping.band
        how = (self._gamma, band.position, band.width, right, transpose, band.border)
        return torch.from_numpy(solutions(g, moves.successor, moves.going_on, *how))

    @cached_property
    def _systems(self) -> PolicySystems:
        structure = self._model.structure
        enough = max(LARGE_ACCURACY * (1 - self._gamma), ACCURACY)
        return PolicySystems(self._policy, structure.arrays, self._gamma, structure.pattern, accuracy=enough)


def _moves_of(transition: object) -> Moves:
    """What answers for transition probabilities in either form."""
    if isinstance(transition, Transitions):
        return transition
    if isinstance(transition, Tensor) and transition.dtype == torch.float64:
        return DenseTransitions(transition)
    raise TypeError(
        f"`transition` must be a float64 torch tensor, got {_kind(transition)}; pass [run, state, action, next state], "
        "or lists of successors as bilevel_envs.Transitions"
    )


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _lengths(runs: int) -> str:
    """How long a runs axis may be, in a message."""
    return "of length 1" if runs == 1 else f"of length 1 or {runs}"
