"""A follower that stops before it has finished thinking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bilevel_envs._checks import check_choice, check_count
from bilevel_envs.follower import BestResponse
from bilevel_envs.followers.soft_value_iteration import SoftValueIteration, scheduled_response
from bilevel_envs.model import Model, Preferences
from bilevel_envs.tabular import TabularModel

STARTS = ("carry", "reset")
STREAM = 7


@dataclass(frozen=True)
class Truncated:
    """Plans for so many rounds only, from noise or from where it stopped last time.

    Its first table is N(0, 1), which is huge beside a small β: with `start="reset"` and few rounds the follower is
    close to a random deterministic policy. The leader's value against this follower and against the optimal one at the
    same θ are both recorded (`followed_value` and `leader_value` of the history).

    Attributes:
      follower: the planner that is cut short.
      rounds: policy refreshes (published: 1, 2, 5, 10, 20, 50 of 100).
      start: "carry" goes on from the table of the previous response, "reset" draws a new one each time.
      sweeps: backups per round (published: 5).
      seed: run i draws its tables from the stream seed + i, or from the i-th of one seed per run.

    Source: the suboptimal followers of arXiv:2603.14867's four rooms.
    """

    follower: SoftValueIteration = field(default_factory=SoftValueIteration)
    rounds: int = 10
    start: str = "carry"
    sweeps: int = 5
    seed: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.follower, SoftValueIteration):
            raise TypeError(f"`follower` must be a SoftValueIteration, got {self.follower!r}")
        check_count(self.rounds, "rounds")
        check_choice(self.start, STARTS, "start")
        check_count(self.sweeps, "sweeps")
        for seed in np.atleast_1d(self.seed).tolist():
            check_count(seed, "seed", at_least=0)

    @property
    def beta(self) -> float | None:
        """The planner's own β; None keeps the problem's."""
        return self.follower.beta

    def best_response(self, model: Model, preferences: Preferences, start: BestResponse | None = None) -> BestResponse:
        """The response after `rounds` rounds.

        Args:
          model: a `TabularModel`.
          preferences: γ_F, and β unless the planner has its own.
          start: the previous response; its memory holds the table to go on from, and how many tables were drawn.

        Raises:
          TypeError: if `model` is not a table.
        """
        if not isinstance(model, TabularModel):
            raise TypeError(f"`model` must be a TabularModel to plan in, got {type(model).__name__}")
        model = model.detach()
        beta = preferences.beta if self.beta is None else self.beta
        memory = start.memory if start is not None else None
        usable = memory is not None and memory["table"].shape == (model.runs, model.states, model.actions)
        calls = int(memory["calls"]) if memory is not None and "calls" in memory else 0
        carried = memory["table"] if memory is not None and usable and self.start == "carry" else None
        table = self._noise(model, calls) if carried is None else carried
        best = scheduled_response(model, preferences.gamma_follower, beta, self.rounds, self.sweeps, table)
        assert best.memory is not None
        best.memory["calls"] = torch.tensor(calls + 1)
        return best

    def _noise(self, model: TabularModel, calls: int) -> Tensor:
        shape = (model.states, model.actions)
        one = np.ndim(self.seed) == 0
        seeds = [self.seed + run for run in range(model.runs)] if one else list(self.seed)  # type: ignore[operator, arg-type]
        if len(seeds) != model.runs:
            raise ValueError(f"`seed` must be a number or one per run ({model.runs}), got {len(seeds)} of them")
        # STREAM keeps apart what leaders draw from the same seeds; a trailing 0 would not.
        tables = [np.random.default_rng([seed, STREAM, calls]).standard_normal(shape) for seed in seeds]
        return torch.from_numpy(np.stack(tables))
