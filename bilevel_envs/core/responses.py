"""Whether an answer of a follower is a response at all, whatever the kind of world."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import numpy as np
from torch import Tensor

from bilevel_envs.core.follower import BestResponse, FollowerError, can_sample


def check_parts(best: BestResponse, runs: int) -> None:
    """Refuses with a FollowerError what is no response of so many runs, or is not finite."""
    if not isinstance(best, BestResponse):
        raise FollowerError(f"it answered with {type(best).__name__}, not with a BestResponse")
    policies = {"policy": best.policy} | ({} if best.actual_policy is None else {"actual_policy": best.actual_policy})
    values = {"q": best.q, "v": best.v}
    for name, policy in policies.items():
        if not can_sample(policy):
            raise FollowerError(f"its {name} must have `sample`, as a BoltzmannPolicy has; got {type(policy).__name__}")
    for name, value in values.items():
        if not callable(value):
            what = f"a function such as a Table, or Missing(reason); got {type(value).__name__}"
            raise FollowerError(f"its {name} must be {what}")
    _check_number(best.residual, "residual", runs)
    for name, number in {
        "optimality_gap": best.optimality_gap,
        "improvement": best.improvement,
        "drift": best.drift,
    }.items():
        if number is not None:
            _check_number(number, name, runs)
    if not isinstance(best.optimal, (bool, np.bool_)):
        raise FollowerError(f"its optimal must be True or False, got {best.optimal!r}")
    if isinstance(best.steps, bool) or not isinstance(best.steps, (int, np.integer)) or best.steps < 0:
        raise FollowerError(f"its steps must be a whole number of at least 0, got {best.steps!r}")
    for name, part in (policies | values).items():
        _check_entries(part, name)


def _check_number(number: object, name: str, runs: int) -> None:
    """Refuses what is not a number of each run."""
    if not isinstance(number, Tensor) or number.shape not in ((1,), (runs,)):
        got = list(number.shape) if isinstance(number, Tensor) else repr(number)
        raise FollowerError(f"its {name} must be a tensor of shape [{runs}], got {got}")


def _check_entries(part: object, name: str) -> None:
    """Refuses NaN and infinite entries of a part made of tensors, but for the logarithm of 0."""
    for field in fields(part) if is_dataclass(part) else ():
        entry = getattr(part, field.name)
        if not isinstance(entry, Tensor) or not entry.is_floating_point():
            continue
        wrong = entry.isnan() | (entry == float("inf")) if field.name == "log_probs" else ~entry.isfinite()
        if wrong.any():
            run = int(wrong.reshape(len(entry), -1).any(1).nonzero()[0])
            raise FollowerError(f"its {name} ({field.name}) holds NaN or infinite entries in run {run}")
