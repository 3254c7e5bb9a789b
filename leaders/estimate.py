"""What a leader makes of one outer iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model


@dataclass(frozen=True)
class Estimate:
    """One outer iteration's estimate, before any step is taken.

    Attributes:
      surrogate: its gradient in θ is the hypergradient estimate of each run, [R].
      steps: surrogates of further steps of the same iteration, each made where the step before has led.
      proposal: raw parameters by name to which the leader moves; None where it ascends the surrogate.
      leader_return: mean sampled discounted return of the leader, [R]; NaN without samples.
      env_steps: steps of the environment spent, per run or [R].
      episodes: episodes that came to an end, [R].
      follower_solves: best responses asked for beside the iteration's own, per run or [R].
      follower_steps: what those cost in steps, per run.
      coverage: share of a table's pairs (s, b) visited so far, [R]; NaN where they are not counted.
      visits_per_pair: transitions for each of those, [R].
      moves: runs that go to the proposal, bool [R], while the others ascend; None for all.
      explored: the model and the response at another θ that was deployed to learn of it; None where none was.
      leader_value: J_L at θ under the optimal policy that made the estimate, where it is a by-product, [R]; else None.
      dynamics_r2: how well learnt dynamics tell s' − s on held-out episodes, [R]; NaN where they are known.
      dynamics_inside: the share of entries there inside 90 % intervals, [R]; likewise.
      promised_value: J_L that a learnt world gave for the present θ, [R]; NaN without one.
    """

    surrogate: Tensor
    leader_return: Tensor | float = float("nan")
    env_steps: Tensor | int = 0
    episodes: Tensor | float = 0
    follower_solves: int | np.ndarray = 0
    follower_steps: int = 0
    coverage: np.ndarray | float = float("nan")
    visits_per_pair: np.ndarray | float = float("nan")
    steps: Sequence[Callable[[], Tensor]] = ()
    proposal: Mapping[str, Tensor] | None = None
    moves: Tensor | None = None
    explored: tuple[Model, BestResponse] | None = None
    leader_value: Tensor | None = None
    dynamics_r2: np.ndarray | float = float("nan")
    dynamics_inside: np.ndarray | float = float("nan")
    promised_value: np.ndarray | float = float("nan")
