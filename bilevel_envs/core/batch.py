"""A batch of transitions, and the quantities on it that carry gradients in θ.

Shape legend, here and everywhere: R runs (seeds, hyper-parameter settings), N rows of a batch, T steps of a row, S
states, B follower actions. The runs axis leads; a leading 1 stands for "the same in every run".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """A batch of transitions; a row may hold several episodes, one after another.

    Attributes:
      state: s_k, [R, N, T, ...].
      action: b_k, the action the follower intended, [R, N, T, ...].
      next_state: where the step led; never the first state of the next episode, [R, N, T, ...].
      r_leader: r_L(s_k, b_k), [R, N, T].
      r_follower: r_F(s_k, b_k), [R, N, T].
      terminated: the episode ended with this step and nothing follows, bool [R, N, T].
      truncated: the episode was cut after this step by a time limit, bool [R, N, T].
      step: index inside the episode, 0 at its first step, int [R, N, T].
      valid: False where a row has run out (its only episode ended earlier), or where critics are to leave a step out,
        bool [R, N, T].
      context: the number of the context in which the step was taken, int [R, N, T]; None where none is in force.
      components: what a step logged of which both rewards are functions, [R, N, T, C]; None in worlds whose rewards are
        known otherwise.
    """

    state: Tensor
    action: Tensor
    next_state: Tensor
    r_leader: Tensor
    r_follower: Tensor
    terminated: Tensor
    truncated: Tensor
    step: Tensor
    valid: Tensor
    context: Tensor | None = None
    components: Tensor | None = None

    def steps(self, first: int, last: int | None) -> Rollout:
        """The steps of every row from `first` up to `last`, excluded."""
        return self._parts(lambda part: part[:, :, first:last])

    def of_run(self, run: int) -> Rollout:
        """The steps of one run, [1, N, T]."""
        return self._parts(lambda part: part[run : run + 1])

    def of_runs(self, runs: int) -> Rollout:
        """Rows [R·N, 1, T], each a run of its own, as the rows of so many runs, [R, N, T]."""
        return self._parts(lambda part: part.reshape(runs, -1, *part.shape[2:]))

    def copies(self, count: int) -> Rollout:
        """The same steps for `count` times as many runs, copy j of run i at j·R + i."""
        return self._parts(lambda part: part.repeat(count, *[1] * (part.ndim - 1)))

    def parts(self) -> dict[str, Tensor]:
        """Every part that there is, by name."""
        each = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in each.items() if part is not None}

    def _parts(self, taken: Callable[[Tensor], Tensor]) -> Rollout:
        """Every part that there is, as `taken` cuts it."""
        return Rollout(**{name: taken(part) for name, part in self.parts().items()})

    def in_context(self, context: np.ndarray | None) -> Rollout:
        """The same steps with the context of each run, int [] or [R]; as they are for None."""
        if context is None:
            return self
        each = torch.as_tensor(context).view(-1, 1, 1)
        each = each.repeat(len(self.state) // len(each), 1, 1)  # run j·C + i is in context i
        return replace(self, context=each.expand(self.step.shape))

    @cached_property
    def starts(self) -> Tensor:
        """Where an episode begins, bool [R, N, T]."""
        return self.valid & (self.step == 0)

    @cached_property
    def finished(self) -> Tensor:
        """Where an episode ends by itself, bool [R, N, T]."""
        return self.valid & self.terminated

    @cached_property
    def cut(self) -> Tensor:
        """Where an episode goes on but the batch does not: time limits and ends of rows, bool [R, N, T]."""
        last = torch.zeros_like(self.valid)
        last[..., -1] = True
        last[..., :-1] = ~self.valid[..., 1:]
        return self.valid & ~self.terminated & (self.truncated | last)


@dataclass(frozen=True)
class Terms:
    """The only quantities that carry ∇_θ, one per step, [R, N, T]; None where θ does not enter.

    Attributes:
      r_leader: r_L(s_k, b_k; θ).
      r_follower: r_F(s_k, b_k; θ).
      log_start: log ρ0(s_k; θ); meaningful where an episode starts.
      log_arrival: log p(next_state_k | s_k, b_k; θ).
      expected_r_follower: E_b[r_F(s_k, b; θ)] under a policy held fixed; only where one was given.
      mean_next: E[next_state_k | s_k, b_k; θ], [R, N, T, n]; only in continuous worlds whose noise is free of θ.
      mean_start: E[s_0; θ], [R, N, T, n]; meaningful where an episode starts; only in continuous worlds.
    """

    r_leader: Tensor | None
    r_follower: Tensor | None
    log_start: Tensor | None
    log_arrival: Tensor | None
    expected_r_follower: Tensor | None = None
    mean_next: Tensor | None = None
    mean_start: Tensor | None = None
