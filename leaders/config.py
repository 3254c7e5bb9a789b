"""The settings of leaders, and how they are changed and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.networks.temporal_differences import DEFAULT_FIT, PUBLISHED_FIT, Fit


@dataclass(frozen=True)
class Common:
    """What every leader is told.

    Attributes:
      runs: number of stacked runs; None for a single one without a runs axis.
      seed: run i uses the stream of seed + i; or one seed per run.
      policy: the parameterisation of θ, or the name of one of the environment's; None for its default.
      verbose: 0 silent, 1 a table now and then.
      tensorboard_log: folder for TensorBoard events; None for none.
      learning_rate: step size, a number or one per run.
      optimizer: "sgd" or "adam"; Adam by default, because hypergradients range over many orders of magnitude.
      max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none. Estimates have heavy tails at small β, and one
        outlier would otherwise slow Adam down for thousands of iterations.
      blocks: parts of a run's raw parameters that are clipped apart; None to clip all together.
    """

    runs: int | None = None
    seed: int | Sequence[int] = 0
    policy: torch.nn.Module | str | None = None
    verbose: int = 0
    tensorboard_log: str | None = None
    learning_rate: Any = 0.05
    optimizer: str = "adam"
    max_grad_norm: float = 1.0
    blocks: Mapping[str, slice] | None = None


CONTROL_VARIATES = ("constant", "quadratic", "none")


PUBLISHED_STEPS: dict[str, Any] = {"learning_rate": 0.1, "optimizer": "sgd"}  # and the clip at 1, the default


@dataclass(frozen=True)
class Sampling:
    """How a leader turns trajectories into a hypergradient.

    Attributes:
      estimator: its name, a key of `ESTIMATORS`.
      batch_size: transitions per outer iteration and run.
      rows: trajectories side by side that make up a batch; None for the fewest that the time limit allows (10 without);
        with the tail "continue", for the fewest that go on until discounting has left a twentieth.
      critic: "empirical", "expected_sarsa", "sarsa", "monte_carlo", "lstd", "state_values", "td", "exact", ..., or an
        object of your own.
      critic_learning_rate: η, a number or one per run.
      critic_start: first critic table, "zeros" or "normal".
      control_variate: state control variate: "constant", "quadratic", "none", or a function state → [..., F].
      tail: what becomes of episodes that the batch cuts, "drop", "keep", "continue" or "reference".
      score_weight: weight of ∇log p, "td_error", "value" or "clipped".
      sampler: "fused" or "steps".
      gradient: what the leader uses beside trajectories, "score", "pathwise" or "analytic" (see `functional.pathwise`).
      guiding: ∇Q_F as trajectories collect it, "sampled", or a polynomial, "fitted" (see `functional.fitted_guiding`).
      network: how networks are fitted.
      network_of: what the critic's network reads, "action" (and the state), the "state" alone, or "both", a network
        each.
      cross_fit: critics judge transitions that they were not fitted to (see `leaders.critics.cross_fit`).
    """

    estimator: str
    batch_size: int = 100
    rows: int | None = None
    critic: Any = "empirical"
    critic_learning_rate: Any = 0.5
    critic_start: str = "zeros"
    control_variate: str | Callable[[Tensor], Tensor] = "constant"
    tail: str = "continue"
    score_weight: str = "td_error"
    sampler: str = "fused"
    gradient: str = "score"
    guiding: str = "sampled"
    network: Fit = DEFAULT_FIT
    network_of: str = "action"
    cross_fit: bool = True


# Every choice of the published four-rooms code (arXiv:2603.14867; listed in the docs).
PUBLISHED_TABLES = Sampling(
    "bc_hg_shared",
    critic="sarsa",
    critic_learning_rate=0.5,
    critic_start="normal",
    control_variate="none",
    tail="reference",
    score_weight="value",
    cross_fit=False,
)


# For linear-quadratic worlds: the recommended form, and the published one (arXiv:2603.14867; values from the code).
LINEAR = Sampling(
    "bc_hg", batch_size=1_000, critic="lstd", control_variate="quadratic", tail="keep", gradient="analytic"
)


PUBLISHED_LINEAR = Sampling(
    "bc_hg",
    batch_size=10_000,
    rows=10,
    critic="td",
    control_variate="none",
    tail="keep",
    score_weight="clipped",
    network=PUBLISHED_FIT,
    cross_fit=False,
)


# For worlds that can only be stepped, with followers that learn.
SIMULATED = Sampling(
    "bc_hg", batch_size=2_000, critic="td", control_variate="constant", tail="keep", sampler="steps", network_of="both"
)


QUADRATICS = ("lstd", "state_values", "exact")  # critics whose Q_L is a quadratic of (s, b)


TABLES, MATRICES, DECLARED = "tables", "matrices", "declared"  # kinds of worlds, by what is known of them


def given(scope: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a leader's constructor, from its `locals()` before anything else is named there."""
    return {name: value for name, value in scope.items() if name not in ("self", "env", "__class__")}


def changed(settings: Any, arguments: dict[str, Any]) -> Any:
    """A frozen dataclass with those of its fields that stand in `arguments`, and not as None.

    NumPy's whole numbers become ints, which do not overflow.
    """
    names = {field.name for field in fields(settings)}
    told = {name: value for name, value in arguments.items() if name in names and value is not None}
    return replace(settings, **{k: int(v) if isinstance(v, np.integer) else v for k, v in told.items()})


def described(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON; what cannot be written is named, so that `load` can ask for it."""

    def one(value: Any) -> Any:
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return value.tolist()
        if isinstance(value, (list, tuple)):
            return [one(entry) for entry in value]
        if isinstance(value, Path):
            return str(value)
        return value if isinstance(value, (str, int, float, NoneType)) else {"object": type(value).__name__}

    return {name: one(value) for name, value in arguments.items()}
