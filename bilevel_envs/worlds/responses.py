"""Responses of a follower as they are checked and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor

from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.tabular.model import Table
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.world import world_of

PARTS: dict[frozenset[str], Callable[..., Any]] = {
    frozenset(field.name for field in fields(kind)): kind
    for kind in (BoltzmannPolicy, Table, GaussianPolicy, Quadratic)
}
# Of a response, beside its parts.
RECORDED = ("residual", "optimal", "solver_state", "optimality_gap", "improvement", "drift")


def check_response(best: BestResponse, runs: int, model: Model) -> None:
    """Refuses with a FollowerError what is no response of so many runs to a model, or is not finite."""
    world_of(model).check_response(best, runs, model)


def response_state(best: BestResponse | None) -> dict[str, object] | None:
    """A response as tensors, for files; None where it is made of networks, which their follower keeps."""
    if best is None or not all(type(part) in PARTS.values() for part in (best.policy, best.q, best.v)):
        return None
    parts = {"policy": _tensors(best.policy), "q": _tensors(best.q), "v": _tensors(best.v)}
    return parts | {name: getattr(best, name) for name in RECORDED}


def response_from(state: dict[str, Any] | None) -> BestResponse | None:
    """What `response_state` gave, as a response."""
    if state is None:
        return None
    policy, q, v = (PARTS[frozenset(state[name])](**state[name]) for name in ("policy", "q", "v"))
    return BestResponse(policy, q, v, **{name: state[name] for name in RECORDED})


def _tensors(part: Any) -> dict[str, Tensor]:
    """The tensors that a policy or a value function is made of, by field."""
    return {field.name: getattr(part, field.name) for field in fields(part)}
