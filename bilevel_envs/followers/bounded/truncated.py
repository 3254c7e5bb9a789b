"""A follower that stops before it has finished thinking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import as_array, check_choice, check_seed, keep_counts
from bilevel_envs.core.follower import BestResponse, Capabilities, CutShort, capabilities_of
from bilevel_envs.core.mdp import Model, Preferences
from bilevel_envs.followers.learners.soft_q_learning import SoftQLearning
from bilevel_envs.followers.planners.committed import Committed
from bilevel_envs.followers.planners.riccati import Riccati
from bilevel_envs.followers.planners.soft_value_iteration import SoftValueIteration

STARTS = ("carry", "reset")
STREAM = 7
PLANNERS = "SoftValueIteration, Committed, SoftQLearning, Riccati"


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
        if isinstance(self.follower, type) or not capabilities_of(self.follower).cuts_short:
            raise TypeError(f"`follower` must be one of the planners {PLANNERS}, got {self.follower!r}")
        keep_counts(self, "rounds", "sweeps")
        check_choice(self.start, STARTS, "start")
        seeds = as_array(self.seed, "seed").tolist()
        if seeds == []:
            raise ValueError("`seed` must be a whole number or one per run, got none")
        each = isinstance(seeds, list)
        object.__setattr__(self, "seed", tuple(map(check_seed, seeds)) if each else check_seed(seeds))

    @property
    def beta(self) -> float | None:
        """The planner's own β; None keeps the problem's."""
        return self.follower.beta

    @property
    def capabilities(self) -> Capabilities:
        """The planner's worlds; not optimal."""
        return replace(self.follower.capabilities, optimal=False, cuts_short=False)

    def best_response(
        self, model: Model, preferences: Preferences, init: BestResponse[Any, Any] | None = None
    ) -> BestResponse:
        """The response after `rounds` rounds.

        Args:
          model: one of the planner's kind.
          preferences: γ_F, and β unless the planner has its own.
          init: the previous response; its memory holds the table to go on from, and how many tables were drawn.

        Raises:
          TypeError: if `model` is of another kind than the planner's.
        """
        how = CutShort(self.rounds, self.start == "carry", self.sweeps, self.first_tables)
        return self.follower.cut_short(model, preferences, init, how)

    def first_tables(self, runs: int, shape: tuple[int, ...], calls: int) -> Tensor:
        """First tables of N(0, 1), [R, *shape]."""
        seeds = [self.seed + run for run in range(runs)] if isinstance(self.seed, int) else list(self.seed)
        if len(seeds) != runs:
            raise ValueError(f"`seed` must be a number or one per run ({runs}), got {len(seeds)} of them")
        # STREAM keeps apart what leaders draw from the same seeds; a trailing 0 would not.
        tables = [np.random.default_rng([seed, STREAM, calls]).standard_normal(shape) for seed in seeds]
        return torch.from_numpy(np.stack(tables))
