"""What several commands take: KEY=VALUE pairs, an environment and a follower by name."""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from typing import Annotated, Any

import gymnasium as gym
import tyro

from bilevel_envs._checks import check_choice
from bilevel_envs.registration import PROBLEMS

Text = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
KeyValues = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")]


def env_arguments(command: Any) -> dict[str, Any]:
    """The environment's arguments: flags first, then what `--env-args` says."""
    arguments = key_values(command.env_args, "env_args")
    for name in ("beta", "dynamics"):
        if getattr(command, name) is not None:
            arguments[name] = getattr(command, name)
    return arguments


def follower_of(name: str | None, pairs: tuple[str, ...]) -> Any:
    """A follower by name, with its arguments; None for the environment's own."""
    further = key_values(pairs, "follower_args")
    if name is None:
        if further:
            raise ValueError(f"`follower_args` need a --follower, got {', '.join(further)}")
        return None
    make = follower_class(name)
    inner = {key.partition(".")[2]: further.pop(key) for key in list(further) if key.startswith("follower.")}
    if isinstance(further.get("follower"), str):
        further["follower"] = follower_class(further["follower"])(**inner)
    elif inner:
        raise ValueError(f"`follower.{next(iter(inner))}` needs follower=NAME, who is watched or errs")
    takes = inspect.signature(make).parameters
    unknown = sorted(set(further) - set(takes))
    if unknown and not any(one.kind == one.VAR_KEYWORD for one in takes.values()):
        raise ValueError(f"the follower {name!r} has no argument {', '.join(unknown)}; it takes {', '.join(takes)}")
    try:
        inspect.signature(make).bind(**further)
    except TypeError as error:
        raise ValueError(f"`follower_args` do not fit the follower {name!r}: {error}") from error
    return make(**further)


def follower_class(name: str) -> Any:
    """A follower's class by its name here, or by MODULE:CLASS."""
    from bilevel_envs.followers import FOLLOWERS

    module, colon, own = name.partition(":")
    if not colon:
        check_choice(name, FOLLOWERS, "follower")
        return FOLLOWERS[name]
    try:
        return getattr(import_module(module), own)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`follower` must be MODULE:CLASS that can be imported, got {name!r} ({error})") from error


def env_of(name: str, kwargs: dict[str, Any]) -> gym.Env:
    try:
        return gym.make(name, **kwargs)
    except gym.error.Error as error:
        raise ValueError(f"`env` must be a registered id; {error}. Known here: {', '.join(PROBLEMS)}") from error


def key_values(pairs: tuple[str, ...], name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"`{name}` must be KEY=VALUE, got {pair!r}")
        if key in parsed:
            raise ValueError(f"`{name}` must give each key once, got {pair!r} beside {key}={parsed[key]!r}")
        parsed[key] = _value(text)
    return parsed


def _value(text: str) -> Any:
    """JSON, Python's names and numbers, or the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return float(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
