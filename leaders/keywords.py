"""The keywords of leaders' constructors, generated from the fields of their configuration."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import ClassVar, Protocol, TypedDict

import torch
from torch import Tensor

from bilevel_envs.core.checks import unknown_names
from leaders.config import EstimatorConfig, LeaderConfig, PerRun

NOT_GIVEN = ("blocks", "estimator", "network", "network_of")  # fields that follow from others


class TakesKeywords(Protocol):
    """What is asked of a leader's class, before it is one; see `leaders.leader.Leader`."""

    looks_at_trajectories: ClassVar[bool]
    without: ClassVar[frozenset[str]]


class LeaderKeywords(TypedDict, total=False):
    """The keywords that every leader takes; see `LeaderConfig`."""

    learning_rate: PerRun | None
    learning_rate_decay: float | None
    optimizer: str | None
    max_grad_norm: float | None
    policy: torch.nn.Module | str | None
    runs: int | None
    seed: int | Sequence[int]
    verbose: int
    tensorboard_log: str | Path | None
    evaluate_every: int | None
    contexts: Sequence[int] | None


class EstimatorKeywords(LeaderKeywords, total=False):
    """The keywords of leaders that look at trajectories; see `EstimatorConfig`."""

    critic: object
    critic_learning_rate: PerRun | None
    critic_start: str | None
    control_variate: str | Callable[[Tensor], Tensor] | None
    cross_fit: bool | None
    tail: str | None
    score_weight: str | None
    batch_size: int | None
    rows: int | None
    sampler: str | None
    gradient: str | None
    guiding: str | None
    dynamics: str | None
    perturbation: float | None
    exploration: str | None


def field_docs(documented: type, section: str = "Attributes") -> dict[str, str]:
    """What a section of a class's docstring says of each name, on one line."""
    text = (inspect.getdoc(documented) or "").partition(f"{section}:\n")[2]
    found: dict[str, str] = {}
    for line in re.split(r"\n\n?(?=\S)", text)[0].splitlines():
        entry = re.match(r" {2,4}(\w+): (.*)", line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif line.strip() and found:
            found[name] += " " + line.strip()
    return found


def options(config: type, without: Collection[str] = ()) -> dict[str, str]:
    """The fields of a configuration that users give, with their documentation."""
    docs = field_docs(config)
    return {one.name: docs[one.name] for one in fields(config) if one.name not in (*NOT_GIVEN, *without)}


def options_of(leader: type[TakesKeywords]) -> dict[str, str]:
    """The generated keywords of a leader's constructor, with their documentation."""
    estimator = options(EstimatorConfig, leader.without) if leader.looks_at_trajectories else {}
    return estimator | options(LeaderConfig, leader.without)


def parameters_of(leader: type[TakesKeywords]) -> list[inspect.Parameter]:
    """All that a leader's constructor takes: its own parameters, then the generated keywords."""
    own = [one for one in inspect.signature(leader.__init__).parameters.values() if one.kind is not one.VAR_KEYWORD]
    defaults = {"seed": 0, "verbose": 0}
    names = [name for name in options_of(leader) if name not in {one.name for one in own}]
    generated = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name)) for name in names]
    return [*own, *generated]


def accepted(leader: type[TakesKeywords], given: Mapping[str, object]) -> dict[str, object]:
    """The keywords that a leader was given.

    Raises:
      TypeError: if it does not take one of them.
    """
    takes = [one.name for one in parameters_of(leader) if one.name not in ("self", "env")]
    unknown = sorted(set(given) - set(takes))
    if unknown:
        raise TypeError(
            f"{leader.__name__} has no argument {unknown_names(unknown, takes)}; it takes {', '.join(takes)}"
        )
    return dict(given)


def document(leader: type[TakesKeywords]) -> None:
    """Gives a leader's class the signature of its constructor, and lists the generated keywords in its docstring."""
    parameters = parameters_of(leader)
    leader.__signature__ = inspect.Signature(parameters[1:])  # type: ignore[attr-defined]  # without `self`
    text = leader.__doc__ or ""
    written = {one.name for one in parameters if f"        {one.name}: " in text}
    wrap = textwrap.TextWrapper(120, " " * 8, " " * 12, break_long_words=False)
    lines = [
        wrap.fill(f"{name}: {doc}".replace("`", "``"))
        for name, doc in options_of(leader).items()
        if name not in written
    ]
    head, section, tail = text.partition("\n    References:")
    if "    Args:" in head and lines:
        leader.__doc__ = head.rstrip() + "\n" + "\n".join(lines) + "\n" + section + tail
