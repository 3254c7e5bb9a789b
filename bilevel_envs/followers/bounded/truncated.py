"""A follower that stops before it has finished thinking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_count, keep_counts
from bilevel_envs.core.follower import BestResponse, check_model
from bilevel_envs.core.mdp import Model, Preferences
from bilevel_envs.followers.learners.soft_q_learning import SoftQLearning
from bilevel_envs.followers.planners.committed import Committed
from bilevel_envs.followers.planners.riccati import Riccati, planned_ahead
from bilevel_envs.followers.planners.soft_value_iteration import SoftValueIteration, scheduled_response
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.tabular.model import TabularModel

STARTS = ("carry", "reset")
STREAM = 7
PLANNERS = (SoftValueIteration, Committed, SoftQLearning, Riccati)


@dataclass(frozen=True)
class Truncated:
    """Plans for so many rounds only, from scratch or from where it stopped last time.

    A round is a policy refresh of `SoftValueIteration`, a sweep of `Committed`, a round of acting and learning of
    `SoftQLearning`, a step of value iteration of `Riccati`. "Scratch" is V = 0, but for `SoftValueIteration` a table of
    N(0, 1) as in the published study, which is huge beside a small β: with `start="reset"` and few rounds that follower
    is close to a random deterministic policy. The leader's value against this follower and against the optimal one at
    the same θ are both recorded (`leader_value_actual` and `leader_value` of the history).

    Gives what the planner inside gives, as far as it came. Costs `rounds`. Residual: the planner's.

    Attributes:
      follower: the planner that is cut short.
      rounds: policy refreshes (published: 1, 2, 5, 10, 20, 50 of 100).
      start: "carry" goes on from where the previous response ended, "reset" begins from scratch each time.
      sweeps: backups per round of `SoftValueIteration` (published: 5).
      seed: run i draws its tables from the stream seed + i, or from the i-th of one seed per run.

    Source: the suboptimal followers of arXiv:2603.14867's four rooms.
    """

    follower: SoftValueIteration | Committed | SoftQLearning | Riccati = field(default_factory=SoftValueIteration)
    rounds: int = 10
    start: str = "carry"
    sweeps: int = 5
    seed: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.follower, PLANNERS):
            names = ", ".join(kind.__name__ for kind in PLANNERS)
            raise TypeError(f"`follower` must be one of the planners {names}, got {self.follower!r}")
        keep_counts(self, "rounds", "sweeps")
        check_choice(self.start, STARTS, "start")
        seeds = tuple(check_count(seed, "seed", at_least=0) for seed in np.atleast_1d(self.seed).tolist())
        object.__setattr__(self, "seed", seeds if np.ndim(self.seed) else seeds[0])

    @property
    def beta(self) -> float | None:
        """The planner's own β; None keeps the problem's."""
        return self.follower.beta

    def best_response(self, model: Model, preferences: Preferences, start: BestResponse | None = None) -> BestResponse:
        """The response after `rounds` rounds.

        Args:
          model: a `TabularModel`, or a `LinearQuadraticModel` for `Riccati`.
          preferences: γ_F, and β unless the planner has its own.
          start: the previous response; its memory holds the table to go on from, and how many tables were drawn.

        Raises:
          TypeError: if `model` is of another kind than the planner's.
        """
        if isinstance(self.follower, (Committed, SoftQLearning)):
            name = "sweeps" if isinstance(self.follower, Committed) else "rounds"
            before = start if self.start == "carry" else None
            planner: Any = self.follower
            shortened = replace(planner, **{name: self.rounds})
            return shortened.best_response(model, preferences, before)
        if isinstance(self.follower, Riccati):
            return self._looking_ahead(model, preferences, start)
        model = check_model(model, TabularModel, "Truncated(SoftValueIteration())")
        model = model.detach()
        beta = preferences.beta if self.beta is None else self.beta
        memory = start.solver_state if start is not None else None
        usable = memory is not None and memory["table"].shape == (model.runs, model.states, model.actions)
        calls = int(memory["calls"]) if memory is not None and "calls" in memory else 0
        carried = memory["table"] if memory is not None and usable and self.start == "carry" else None
        table = self._noise(model, calls) if carried is None else carried
        best = scheduled_response(model, preferences.gamma_follower, beta, self.rounds, self.sweeps, table)
        assert best.solver_state is not None
        best.solver_state["calls"] = torch.tensor(calls + 1)
        return best

    def _looking_ahead(self, model: Model, preferences: Preferences, start: BestResponse | None) -> BestResponse:
        model = check_model(model, LinearQuadraticModel, "Truncated(Riccati())")
        fixed, n = model.detach(), model.state_size
        p = torch.zeros(fixed.runs, n, n, dtype=torch.float64)
        v = torch.zeros(fixed.runs, dtype=torch.float64)
        memory = start.solver_state if start is not None and self.start == "carry" else None
        if memory is not None and memory["matrix"].shape == p.shape:
            p, v = memory["matrix"], memory["constant"]
        beta = preferences.beta if self.beta is None else self.beta
        best, p, v = planned_ahead(fixed, preferences.gamma_follower, beta, self.rounds, p, v)
        return replace(best, solver_state={"matrix": p, "constant": v})

    def _noise(self, model: TabularModel, calls: int) -> Tensor:
        shape = (model.states, model.actions)
        one = np.ndim(self.seed) == 0
        seeds = [self.seed + run for run in range(model.runs)] if one else list(self.seed)  # type: ignore[operator, arg-type]
        if len(seeds) != model.runs:
            raise ValueError(f"`seed` must be a number or one per run ({model.runs}), got {len(seeds)} of them")
        # STREAM keeps apart what leaders draw from the same seeds; a trailing 0 would not.
        tables = [np.random.default_rng([seed, STREAM, calls]).standard_normal(shape) for seed in seeds]
        return torch.from_numpy(np.stack(tables))
