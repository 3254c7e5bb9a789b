"""The leader's exact value at θ, as often as it is asked for, or as it is cheap."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor

from bilevel_envs.core.checks import check_count
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model, Preferences
from leaders import exact

LONGEST = 1_000  # outer iterations between two evaluations at most, unless the user says more
CHEAP = 0.1  # seconds up to which an evaluation is cheap, whatever the iteration beside it takes
SHARE = 0.25  # of the rest of an iteration, which evaluations that are not cheap may take on average

logger = logging.getLogger("leaders")


class Evaluation:
    """Evaluates θ before an update: exactly, where the model is known.

    Neither θ nor any random number depends on how often; only the history's rows do.

    Args:
      leader: the leader's class, for the log.
      every: outer iterations from one evaluation to the next; None for 1 as long as an evaluation takes a tenth of a
        second of processor time or less than a quarter of the rest of the iteration, and for as many as keep it below
        that quarter otherwise.

    Attributes:
      interval: outer iterations from one evaluation to the next at present; a run that is resumed keeps it.
    """

    def __init__(self, leader: str, every: int | None) -> None:
        self.leader = leader
        self.every = None if every is None else check_count(every, "evaluate_every")
        self.optimum: BestResponse | None = None  # at the last θ evaluated, where the follower itself is not optimal
        self.interval = 1 if self.every is None else self.every
        self._started: float | None = None

    def due(self, iteration: int) -> bool:
        """Whether an iteration is one to be evaluated."""
        return iteration % self.interval == 0

    def values(self, model: Model, best: BestResponse, preferences: Preferences, runs: int) -> tuple[Tensor, Tensor]:
        """J_L at θ under the soft-optimal follower, and under the policy in use, [R] each; NaN if it is not known."""
        gamma = preferences.gamma_leader
        unknown = torch.full((runs,), math.nan, dtype=torch.float64)
        if not exact.solves(model):
            return unknown, unknown
        acting = best.behavior_policy
        actual = exact.value(model, acting, gamma) if exact.evaluates(model, acting) else unknown
        if best.optimal:
            return actual, actual
        self.optimum = exact.best_response(model, preferences, self.optimum)
        return exact.value(model, self.optimum.policy, gamma), actual

    def timed(self, model: Model, best: BestResponse, preferences: Preferences, runs: int) -> tuple[Tensor, Tensor]:
        """`values`; evaluates less often from then on if that took more than its share of the iteration."""
        before = time.process_time()  # unlike the clock on the wall, not moved by other processes or by who sets it
        found = self.values(model, best, preferences, runs)
        after = time.process_time()
        if self.every is None and self._started is not None:
            self._thin(after - before, (before - self._started) / self.interval)
        self._started = after
        return found

    def _thin(self, evaluating: float, rest: float) -> None:
        """Lengthens the interval where an evaluation is neither cheap nor within its share."""
        wanted = min(math.ceil(evaluating / max(SHARE * rest, 1e-6)), LONGEST)
        if evaluating <= CHEAP or wanted <= self.interval:
            return
        self.interval = wanted
        logger.info(
            "%s: the exact leader_value takes %.2f s, the rest of an outer iteration %.2f s; it is recorded every %d "
            "iterations from now on (`evaluate_every=1` for all of them)",
            self.leader,
            evaluating,
            rest,
            wanted,
        )
