"""How an agent of Stable-Baselines3 is trained as a follower."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from bilevel_envs.core.checks import as_array, check_choice, check_count, check_seed, keep_numbers
from bilevel_envs.followers.sb3.side_by_side import can_fork

if TYPE_CHECKING:
    from stable_baselines3.common.policies import BasePolicy

Range: TypeAlias = ArrayLike | tuple[ArrayLike, ArrayLike] | None
STARTS = ("warm", "cold")
BUFFERS = ("clear", "keep", "relabel")
SCHEDULES = ("response", "total")


@dataclass(frozen=True)
class TrainingSettings:
    """The keywords of `SB3Follower` that are not the algorithm's; it documents them.

    Raises:
      ValueError: if one does not fit, by name.
    """

    steps: int = 20_000
    first_steps: int | None = None
    total_steps: int | None = None
    start: str = "warm"
    buffer: str = "clear"
    schedule: str = "response"
    envs: int = 1
    processes: int = 1
    episode_steps: int | None = None
    accuracy: float | None = None
    most_steps: int | None = None
    normalize: bool = False
    beta: float | None = None
    reward_scale: float = 1.0
    action_range: Range = None
    model_file: str | Path | None = None
    seed: int = 0
    policy: str | type[BasePolicy] = "MlpPolicy"

    def __post_init__(self) -> None:
        for name in ("steps", "first_steps", "total_steps", "envs", "processes", "episode_steps", "most_steps"):
            if getattr(self, name) is not None or name in ("steps", "envs", "processes"):
                object.__setattr__(self, name, check_count(getattr(self, name), name))
        object.__setattr__(self, "seed", check_seed(self.seed))
        _check_processes(self.processes)
        for name, choices in (("start", STARTS), ("buffer", BUFFERS), ("schedule", SCHEDULES)):
            check_choice(getattr(self, name), choices, name)
        if self.schedule == "total" and self.total_steps is None:
            raise ValueError('`total_steps` must be given with schedule="total", got None')
        if (self.accuracy is None) != (self.most_steps is None):
            raise ValueError(
                "`accuracy` and `most_steps` must be given together: how near to its optimum a response must come, and "
                f"after how many steps it ends in any case; got {self.accuracy} and {self.most_steps}"
            )
        if self.most_steps is not None:
            keep_numbers(self, "accuracy", at_least=0)
            _check_most(self.most_steps, self.steps, self.first_steps or 0)
        if not isinstance(self.normalize, bool):
            raise TypeError(f"`normalize` must be True or False, got {self.normalize!r}")
        if self.beta is not None:
            keep_numbers(self, "beta", above=0, remedy="β is the follower's entropy coefficient")
        keep_numbers(self, "reward_scale", above=0)
        _check_range(self.action_range)
        if not isinstance(self.policy, (str, type)):
            raise TypeError(f"`policy` must be a word of SB3's, such as 'MlpPolicy', or a class, got {self.policy!r}")
        if not isinstance(self.model_file, (str, Path, NoneType)):
            raise TypeError(f"`model_file` must be a path or None, got {self.model_file!r}")

    @property
    def given(self) -> dict[str, object]:
        """Those that are not None, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}


def _check_processes(count: int) -> None:
    """Refuses several on a system that does not fork them."""
    if count > 1 and not can_fork():
        raise ValueError(f"`processes` must be 1 on a system that does not fork processes, got {count}")


def _check_most(most: int, steps: int, first: int) -> None:
    """Refuses a largest number of steps that is less than what a response takes in any case."""
    least, name = max((steps, "steps"), (first, "first_steps"))
    if most < least:
        raise ValueError(f"`most_steps` must be at least `{name}`, {least}, got {most}")


def _check_range(given: Range) -> None:
    """Refuses with a ValueError what is no range of actions; whether it fits is known when the action space is."""
    if given is None:
        return
    parts = [as_array(part, "action_range") for part in (given if isinstance(given, tuple) else (given,))]
    if len(parts) != (2 if isinstance(given, tuple) else 1) or any(part.dtype.kind not in "fiu" for part in parts):
        raise ValueError(f"`action_range` must be a number, one per action, or a tuple (low, high), got {given!r}")
    low, high = parts if len(parts) == 2 else (-parts[0], parts[0])
    fit = low.shape == high.shape or () in (low.shape, high.shape)
    if not (fit and np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"`action_range` must be finite and above 0, or (low, high) with low below; got {given!r}")
