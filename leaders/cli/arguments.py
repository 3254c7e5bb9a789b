"""Arguments that several commands take: KEY=VALUE pairs, an environment, a follower, names of leaders."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import gymnasium as gym
import tyro
from gymnasium.envs.registration import load_env_creator

from bilevel_envs.core.checks import check_choice, lacking, unknown_names
from bilevel_envs.registration import PROBLEMS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from bilevel_envs.core.follower import Follower, LearningFollower
    from leaders.cli.best_known import BestKnownValue
    from leaders.cli.compare import Compare
    from leaders.cli.train import Train

NOT_OF_RESULTS = ("out", "resume", "progress", "checkpoint_every", "track")  # arguments on which no result depends
Text = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
Trusted = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]
KeyValues = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")]


def env_arguments(command: Train | Compare | BestKnownValue) -> dict[str, object]:
    """The environment's arguments: flags first, then what `--env-args` says."""
    arguments = key_values(command.env_args, "env_args")
    for name in ("beta", "dynamics"):
        if getattr(command, name) is not None:
            arguments[name] = getattr(command, name)
    if "problem" in arguments:  # what the registry gives: code, which a run's configuration must not choose
        raise ValueError("`env_args` must not name a problem: register it under an id of your own, --env MODULE:ID")
    if "theta" in arguments:
        raise ValueError(
            "`env_args` must not give theta, which leaders do not read: they begin at the θ of the environment's "
            "parameterization, the default θ in most. Change the environment's default_theta"
        )
    return arguments


Made = TypeVar("Made", bound=Callable[..., object])


def follower_of(name: str | None, pairs: tuple[str, ...]) -> Follower | LearningFollower | None:
    """A follower by name, with its arguments; None for the environment's own."""
    further = key_values(pairs, "follower_args")
    if name is None:
        if further:
            raise ValueError(f"`follower_args` need a --follower, got {', '.join(further)}")
        return None
    make = follower_class(name)
    inner = {key.partition(".")[2]: further.pop(key) for key in list(further) if key.startswith("follower.")}
    planner = further.get("follower")
    if isinstance(planner, str):
        further["follower"] = follower_class(planner)(**inner)
    elif inner:
        raise ValueError(f"`follower.{next(iter(inner))}` needs follower=NAME, the one that is observed or errs")
    takes = inspect.signature(make).parameters
    unknown = sorted(set(further) - set(takes))
    if unknown and not any(one.kind == one.VAR_KEYWORD for one in takes.values()):
        named = unknown_names(unknown, takes)
        raise ValueError(f"the follower {name!r} has no argument {named}; it takes {', '.join(takes)}")
    try:
        inspect.signature(make).bind(**further)
    except TypeError as error:
        raise ValueError(f"`follower_args` do not fit the follower {name!r}: {error}") from error
    return make(**further)


def follower_class(name: str) -> Callable[..., Follower | LearningFollower]:
    """A follower's class by its name here, or by MODULE:CLASS."""
    from bilevel_envs.followers import FOLLOWERS

    return _class_of(name, FOLLOWERS, "follower")


def leader_class(name: str) -> type:
    """A leader's class by its name here, or by MODULE:CLASS."""
    from leaders import LEADERS

    return _class_of(name, LEADERS, "leader")


def _class_of(name: str, known: Mapping[str, Made], argument: str) -> Made:
    """What a name stands for among those known here, or by MODULE:CLASS."""
    module, colon, own = name.partition(":")
    if not colon:
        check_choice(name, known, argument)
        return known[name]
    found = module_of(module, f"`{argument}` must be MODULE:CLASS that can be imported, got {name!r}")
    if lacking(found, [own]):
        raise ValueError(f"`{argument}` must be MODULE:CLASS, got {name!r}; {_whereabouts(found)} has no {own!r}")
    return getattr(found, own)


def foreign_names(config: Mapping[str, object]) -> Iterator[str]:
    """The environment, leader and followers that a run's configuration names and that are not of this library."""
    from bilevel_envs.followers import FOLLOWERS
    from leaders import LEADERS

    pairs = [str(pair) for pair in cast("Iterable[object]", config.get("follower_args") or ())]
    inner = [pair.partition("=")[2] for pair in pairs if pair.partition("=")[0] == "follower"]
    for known, argument, names in (
        (set(PROBLEMS), "env", [config.get("env")]),
        (set(LEADERS), "leader", [config.get("leader")]),
        (set(FOLLOWERS), "follower", [config.get("follower"), *inner]),
    ):
        for name in (str(name) for name in names if name is not None and str(name) not in known):
            if ":" not in name and (argument != "env" or name.startswith("BiLevel/")):  # a slip: no code has this name
                check_choice(name, sorted(known), argument)
            yield name


def check_trusted(config: Mapping[str, object], trust: Iterable[str], source: object) -> None:
    """Refuses a configuration from a file that names code from outside the library, unless it is trusted by name."""
    unknown = sorted(set(foreign_names(config)) - set(trust))
    if unknown:
        raise ValueError(
            f"{source} names {', '.join(unknown)}, which is not of this library: loading it runs code. "
            f"If you trust whoever made it, add --trust {' '.join(unknown)}"
        )


def env_of(name: str, kwargs: dict[str, Any]) -> gym.Env:
    """An environment by its id, or by MODULE:ID, where importing the module registers the id."""
    module, colon, own = name.rpartition(":")
    imported = ""
    if colon:
        found = module_of(module, f"`env` must be an id, or MODULE:ID with a module that can be imported, got {name!r}")
        imported = f" Imported: {_whereabouts(found)}."
    try:
        env = gym.make(own, **kwargs)
    except gym.error.Error as error:
        known = "One of your own is MODULE:ID, of the module that registers it"
        known = f"{known if not colon else ''} Known here: {', '.join(PROBLEMS)}".strip()
        said = str(error).rstrip(".")
        said += "" if said.endswith("?") else "."
        raise ValueError(f"`env` must be a registered id; {said}{imported} {known}") from error
    except TypeError as error:
        taken = _taken(own)
        unknown = [] if taken is None else sorted(set(kwargs) - set(taken))
        if not unknown:
            raise
        raise ValueError(
            f"the environment {name!r} has no argument {unknown_names(unknown, taken or ())}; its entry point takes "
            f"{', '.join(taken or ()) or 'none'}. {_remedy(unknown)}"
        ) from error
    inside: Any = env.unwrapped
    beta = kwargs.get("beta")
    if beta is not None and not lacking(inside, ["preferences"]) and inside.preferences.beta != beta:
        told = inside.preferences.beta
        raise ValueError(f"`beta` = {beta} did not reach {name!r}, whose β is {told:g}. {_remedy(['beta'])}")
    return env


def _taken(name: str) -> list[str] | None:
    """What the entry point of an id takes; None if it takes all, or does not tell."""
    entry = gym.spec(name).entry_point
    if entry is None:
        return None
    try:
        parameters = inspect.signature(load_env_creator(entry) if isinstance(entry, str) else entry).parameters
    except (TypeError, ValueError):
        return None
    return None if any(one.kind == one.VAR_KEYWORD for one in parameters.values()) else list(parameters)


def _remedy(unknown: list[str]) -> str:
    """What to do about arguments that an environment does not take."""
    if unknown == ["beta"]:
        return "Make its preferences of an argument beta, or give β to the follower: --follower-args beta=NUMBER"
    return "Only what it takes can be set from here"


def subject_of(name: str, kwargs: dict[str, Any]) -> Any:
    """What is to be checked: an environment as `env_of` makes it, or what MODULE:CLASS makes or names."""
    module, _, own = name.rpartition(":")
    if module:
        found = module_of(module, f"`env` must be an id, MODULE:ID or MODULE:CLASS that can be imported, got {name!r}")
        if not lacking(found, [own]):
            thing = getattr(found, own)
            return thing(**kwargs) if callable(thing) else thing
    return env_of(name, kwargs)


def find_modules_here(here: Path | None = None) -> None:
    """Lets modules in the working directory be imported, as `python -m` does; installed modules go first.

    A console script has its own folder on `sys.path` instead of the working directory. At the end of the path, a file
    that happens to be named like a module that others import, such as queue.py, does no harm.

    Args:
      here: the directory, where it is another process's.
    """
    folder = str(here or Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)


def module_of(name: str, demand: str) -> ModuleType:
    """A module by its name, from what is installed or from the working directory.

    Args:
      name: dotted name of the module.
      demand: what the argument must be and what it was, the message's beginning.

    Raises:
      ValueError: if there is no such module, or if importing it fails, for whatever reason.
    """
    try:
        return import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            where = f"; looked for among installed packages, in PYTHONPATH and in {Path.cwd()}"
        else:
            own = [frame for frame in extract_tb(error.__traceback__) if "importlib" not in frame.filename][-1]
            where = "" if own.filename == __file__ else f", {own.filename}, line {own.lineno}"
        raise ValueError(f"{demand} ({type(error).__name__}: {error}{where})") from error


def _whereabouts(module: ModuleType) -> str:
    """A module's name and file, which tells a module of one's own from an installed one of the same name."""
    return f"the module {module.__name__} ({getattr(module, '__file__', None) or 'built in'})"


def key_values(pairs: tuple[str, ...], name: str) -> dict[str, object]:
    parsed: dict[str, object] = {}
    for pair in pairs:
        if not isinstance(pair, str):  # a configuration that was edited
            raise ValueError(f"`{name}` must be KEY=VALUE, got {pair!r}")
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"`{name}` must be KEY=VALUE, got {pair!r}")
        if key in parsed:
            raise ValueError(f"`{name}` must give each key once, got {pair!r} beside {key}={parsed[key]!r}")
        parsed[key] = _value(text)
    return parsed


def _value(text: str) -> object:
    """JSON, Python's names and numbers, or the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return float(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def config_of(command: DataclassInstance) -> dict[str, object]:
    """The arguments of a command that belong to its results, as JSON."""
    kept = {name: value for name, value in asdict(command).items() if name not in NOT_OF_RESULTS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def names_in(text: str) -> list[str]:
    """Leaders' names, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names):
        raise ValueError(f"`leaders` must name each leader once, got {text!r}")
    return names
