"""Responses of a follower as they are checked and saved."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from bilevel_envs.core.follower import BestResponse, FollowerError, Missing
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.tabular.model import Table, TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.validation import no_distribution

KINDS: dict[bool, tuple[Any, Any]] = {True: (BoltzmannPolicy, Table), False: (GaussianPolicy, Quadratic)}


def check_response(best: BestResponse, runs: int, model: Any) -> None:
    """Refuses with a FollowerError what is no response of so many runs to a model, or is not finite."""
    if not isinstance(best, BestResponse):
        raise FollowerError(f"it answered with {type(best).__name__}, not with a BestResponse")
    for name in ("policy", "actual_policy"):
        part = getattr(best, name)
        if not hasattr(part, "sample") and not (part is None and name == "actual_policy"):
            raise FollowerError(f"its {name} must have `sample`, as a BoltzmannPolicy has; got {type(part).__name__}")
    for name in ("q", "v"):
        if not callable(getattr(best, name)):
            what = f"a function such as a Table, or Missing(reason); got {type(getattr(best, name)).__name__}"
            raise FollowerError(f"its {name} must be {what}")
    residual = best.residual
    if not isinstance(residual, Tensor) or residual.shape not in ((1,), (runs,)):
        got = list(residual.shape) if isinstance(residual, Tensor) else repr(residual)
        raise FollowerError(f"its residual must be a tensor of shape [{runs}], got {got}")
    for name in ("policy", "q", "v", "actual_policy"):
        part = getattr(best, name)
        for field in fields(part) if is_dataclass(part) else ():
            entry = getattr(part, field.name)
            if isinstance(entry, Tensor) and entry.is_floating_point():
                _check_entries(entry, f"{name} ({field.name})", chances=field.name == "log_probs")
    if isinstance(model, TabularModel):
        _check_tables(best, runs, model)


def _check_entries(entry: Tensor, name: str, chances: bool) -> None:
    """Refuses NaN and infinite entries, but for the logarithm of 0."""
    wrong = entry.isnan() | (entry == float("inf")) if chances else ~entry.isfinite()
    if wrong.any():
        run = int(wrong.reshape(len(entry), -1).any(1).nonzero()[0])
        raise FollowerError(f"its {name} holds NaN or infinite entries in run {run}")


def _check_tables(best: BestResponse, runs: int, model: TabularModel) -> None:
    """Refuses tables of another size than the world's, and rows that are no distribution."""
    size = (model.states, model.actions)
    for name, part, wanted in (
        ("policy", best.policy, size),
        ("actual_policy", best.actual_policy, size),
        ("q", best.q, size),
        ("v", best.v, size[:1]),
    ):
        if isinstance(part, Missing):
            continue
        table = getattr(part, "log_probs" if name in ("policy", "actual_policy") else "values", None)
        if not isinstance(table, Tensor):
            continue
        if tuple(table.shape) not in ((1, *wanted), (runs, *wanted)):
            raise FollowerError(f"its {name} must be a table of shape {[runs, *wanted]}, got {list(table.shape)}")
        if name in ("policy", "actual_policy"):
            missed = no_distribution(table.exp())
            if missed is not None:
                raise FollowerError(f"its {name} must be a distribution in every state; {missed}")


def response_state(best: BestResponse | None) -> dict[str, Any] | None:
    """A response as tensors, for files; None where it is made of networks, which their follower keeps."""
    if best is None or not all(
        type(getattr(best, name)) in KINDS[True] + KINDS[False] for name in ("policy", "q", "v")
    ):
        return None
    parts = {name: _tensors(getattr(best, name)) for name in ("policy", "q", "v")}
    return {**parts, "residual": best.residual, "optimal": best.optimal, "solver_state": best.solver_state}


def response_from(state: dict[str, Any] | None) -> BestResponse | None:
    """What `response_state` gave, as a response."""
    if state is None:
        return None
    policy_kind, value_kind = KINDS["log_probs" in state["policy"]]
    policy, q, v = policy_kind(**state["policy"]), value_kind(**state["q"]), value_kind(**state["v"])
    return BestResponse(policy, q, v, state["residual"], state["optimal"], state["solver_state"])


def _tensors(part: Any) -> dict[str, Tensor]:
    """The tensors that a policy or a value function is made of, by field."""
    return {field.name: getattr(part, field.name) for field in fields(part)}
