"""What leaders are told, and how it is changed and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
