"""The best θ that ascent along the exact hypergradient finds from many starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.autograd import with_gradients
from bilevel_envs.core.checks import check_count, check_number, check_seed
from bilevel_envs.core.mdp import Parameterization
from bilevel_envs.core.noise import Noise
from leaders.exact.stacked import Make, Stacked

SCHEDULE = ((32, 30), (8, 100), (2, 300))
LEARNING_RATES = (0.2, 0.05)
DRAWN = 1  # number of the stream that scatters starts; first values of the parameterisation have others


@dataclass(frozen=True, eq=False)
class MultiStart:
    """What `multi_start` found.

    Attributes:
      theta: the best θ, ``[*θ.shape]``.
      value: J_L there.
      start: where that ascent began: "default", "vertex" or "draw".
      evaluations: θ at which the follower's problem and the gradient were solved.
      last_values: J_L of the starts kept to the last rung, best first; equal ones agree on the maximum.
    """

    theta: np.ndarray
    value: float
    start: str
    evaluations: int
    last_values: np.ndarray


@with_gradients
def multi_start(
    env: gym.Env,
    *,
    seed: int = 0,
    draws: int = 128,
    schedule: Sequence[tuple[int, int]] = SCHEDULE,
    learning_rate: tuple[float, float] = LEARNING_RATES,
    parameterization: Make | None = None,
) -> MultiStart:
    """Maximises J_L by successive halving of starts along the exact hypergradient.

    ::

        starts ← the default θ, vertices of the parameterisation, random draws
        for (kept, steps) in the schedule:
            keep the best starts;   each takes so many steps of Adam in raw parameters, and is where it was best
        return the best

    What is found is a lower bound on max J_L. The starts, which are stacked along the runs axis, are those of the
    parameterisation's `inverse`, `vertices` and `scattered`:

    ===========  ===================================================================  =====================
    θ            vertices, in raw parameters                                          draws
    ===========  ===================================================================  =====================
    `Budget`     6 in one entry, 0 in the others: all of the budget in one place      2 · Gumbel
    `Softmax`    6 for one choice in each row, 0 for the others                       2 · Gumbel
    `Box`        ±6 in every entry                                                    N(0, 9)
    `Free`       none                                                                 N(0, 9)
    others       none, unless they have `vertices()`                                  their first values
    ===========  ===================================================================  =====================

    Of more than 256 corners, those of one entry, or one row, at a time are taken. A θ that a step takes out of
    `theta_space` is moved to the boundary. Where J_L grows without bound in an unbounded θ, as in
    ``BiLevel/RandomMDP-v0``, there is no maximum: the number of steps is bounded, and the result is where they ended.

    Costs one solution of the follower's problem and of the gradient for each start and each step of those kept, some
    2,600 by default: seconds with tables of 100 states, minutes in ``BiLevel/TaxDesign-v0``.

    Args:
      env: a configurable environment or a `BilevelWrapper` (whose follower's β then counts).
      seed: another seed draws other starts.
      draws: how many random draws start, beside the default θ and the vertices.
      schedule: (starts kept, steps of each) of every rung; the starts kept must not increase.
      learning_rate: Adam's, in the first and in the last rung; geometric in between.
      parameterization: `parameterization(runs, noise)`; None for the environment's own.

    Returns:
      The best θ met, its value, and what tells how far to trust it.

    Raises:
      TypeError: if the environment shows neither tables nor matrices, or `parameterization` returns no module.
      ValueError: if an argument is out of range, or there is no parameterisation.
      RuntimeError: if the follower has no optimum at any of the starts.
    """
    rungs = _checked(schedule)
    if np.shape(learning_rate) != (2,):
        raise ValueError(f"`learning_rate` must be two numbers, of the first and the last rung, got {learning_rate!r}")
    first, last = (check_number(rate, "learning_rate", above=0) for rate in learning_rate)
    stacked = Stacked(env, parameterization, check_seed(seed))
    climbers = _starts(stacked, check_count(draws, "draws", at_least=0))
    for (kept, steps), rate in zip(rungs, np.geomspace(first, last, len(rungs)), strict=True):
        climbers = _climbed(stacked, climbers.best(kept), steps, float(rate))
    climbers = climbers.best(len(climbers.start))
    return MultiStart(
        theta=stacked.theta(climbers.raw[:1])[0].numpy(),
        value=float(climbers.value[0]),
        start=climbers.start[0],
        evaluations=stacked.evaluations,
        last_values=climbers.value.numpy(),
    )


class _Climbers(NamedTuple):
    """Starts, each where it was best.

    Attributes:
      raw: raw parameters, [K, n].
      value: J_L there, [K].
      gradient: of J_L there, [K, n].
      start: where each began, K words.
    """

    raw: Tensor
    value: Tensor
    gradient: Tensor
    start: list[str]

    def best(self, count: int) -> _Climbers:
        """So many with the highest values, best first."""
        order = self.value.argsort(descending=True, stable=True)[:count]
        start = [self.start[index] for index in order.tolist()]
        return _Climbers(self.raw[order], self.value[order], self.gradient[order], start)


def _starts(stacked: Stacked, draws: int) -> _Climbers:
    """The default θ, the vertices and the draws, evaluated."""
    one = stacked.policy
    hooks = one if isinstance(one, Parameterization) else Parameterization()
    found = {"default": hooks.inverse(stacked.default), "vertex": hooks.vertices(), "draw": None}
    if draws:
        found["draw"] = hooks.scattered(Noise([[stacked.seed, DRAWN, draw] for draw in range(draws)]))
        if found["draw"] is None:
            found["draw"] = stacked.first_values(draws)
    kinds = {kind: raw.detach().reshape(len(raw), -1).double() for kind, raw in found.items() if raw is not None}
    if not kinds:
        raise ValueError(
            f"`draws` must be at least 1 for {type(one).__name__}, which has neither `vertices` nor `inverse`, got 0"
        )
    raw = torch.cat(list(kinds.values()))
    value, gradient = stacked.solved(raw)
    if stacked.error is not None and value.isneginf().all():
        raise stacked.error
    return _Climbers(raw, value, gradient, [kind for kind, rows in kinds.items() for _ in rows])


def _climbed(stacked: Stacked, best: _Climbers, steps: int, rate: float) -> _Climbers:
    """Where each of them was best within so many steps of Adam."""
    raw, gradient = best.raw.clone(), best.gradient
    optimizer = torch.optim.Adam([raw], rate)
    for _ in range(steps):
        raw.grad = -gradient
        optimizer.step()
        raw.copy_(stacked.inside(raw))
        value, gradient = stacked.solved(raw)
        better = value > best.value
        row = better[:, None]
        best = _Climbers(
            torch.where(row, raw, best.raw),
            torch.where(better, value, best.value),
            torch.where(row, gradient, best.gradient),
            best.start,
        )
    return best


def _checked(schedule: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The rungs as whole numbers."""
    pairs = isinstance(schedule, (Sequence, np.ndarray)) and all(np.shape(rung) == (2,) for rung in schedule)
    if not pairs or not len(schedule):
        raise ValueError(f"`schedule` must be pairs (starts kept, steps of each), got {schedule!r}")
    rungs = [
        (check_count(kept, f"schedule[{rung}][0]"), check_count(steps, f"schedule[{rung}][1]", at_least=0))
        for rung, (kept, steps) in enumerate(schedule)
    ]
    kept = [count for count, _ in rungs]
    if kept != sorted(kept, reverse=True):
        raise ValueError(
            f"`schedule` must not keep more starts in a later rung than in an earlier one, got {schedule!r}"
        )
    return rungs
