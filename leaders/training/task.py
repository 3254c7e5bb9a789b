"""What a task is, as a digest of its whole data: what a saved leader must find again."""

from __future__ import annotations

import hashlib
import inspect
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.wrapper import BilevelWrapper

Task = dict[str, list[str]]  # text and digest of each part, by name; JSON gives it back as it is
PLAIN = (bool, str, bytes, complex, NoneType)
MODEL = "model(θ)"  # no field has this name
LONG = 500  # characters of an object's own words that messages show
NEAR = 0.1  # how far from the default θ the model is looked at a second time
UNTOLD = ("theta", "render_mode")  # arguments of an environment that are no part of the task


def task_of(env: BilevelWrapper) -> Task:
    """The problem, its model, the follower and the time limit, each part as a short text and a digest of all of it.

    The problem and the follower are their fields; where they are no dataclasses, what their own `__repr__` says, and
    without one those of their constructor's arguments that they keep under the same names. The model at two θ tells of
    data that a problem keeps elsewhere; its tables are digested in single precision, the same on every machine.
    """
    problem = env.problem
    return {
        "problem": _kind(problem),
        **_parts("problem", problem),
        f"problem: {MODEL}": ["its tables or matrices", digest(list(_models(env)))],
        "follower": _kind(env.follower),
        **_parts("follower", env.follower),
        "theta": _part(list(env.theta_space.shape)),
        "time limit": _part(env.time_limit),
    }


def differences(there: Mapping[str, list[str]], here: Mapping[str, list[str]]) -> list[str]:
    """In which parts two tasks differ, in words; of objects of different classes their classes alone."""
    lines: list[str] = []
    for name in [*here, *(name for name in there if name not in here)]:
        then, now = there.get(name, ["nothing", ""]), here.get(name, ["nothing", ""])
        whole, colon, part = name.partition(": ")
        if _same(then, now) or (colon and there.get(whole) != here.get(whole)) or (part == MODEL and lines):
            continue
        given = f"{part}=" if colon else ""
        texts = (
            f"{given}{then[0]} there, {given}{now[0]} here" if then[0] != now[0] else f"other data in `{part or whole}`"
        )
        lines.append(f"{whole}: {texts}")
    return lines


def _same(then: list[str], now: list[str]) -> bool:
    """Whether two parts are the same: by their digests, by their texts where they have none."""
    return then[1] == now[1] if then[1] or now[1] else then[0] == now[0]


def digest(value: object) -> str:
    """SHA-256 of everything in a value: numbers, arrays, tensors, containers, dataclasses, spaces, modules.

    Equal data give equal digests in every process. Other objects count by their class and what they tell of themselves,
    see `task_of`; addresses never. A function written in Python counts by its name, its compiled code, its defaults and
    what its closure holds, functions included; a bound method by its object, too, and a `functools.partial` by its
    parts. So a function is another one under another minor version of Python, which compiles it differently. Not
    counted: values of global names that a function reads, what a class does beyond its name, and functions inside an
    object that tells of itself by a `__repr__` of its own, which count as that names them. Where those change the
    model at two θ, it tells of them (`task_of`).
    """
    found = hashlib.sha256()
    for piece in _pieces(value, ()):
        found.update(len(piece).to_bytes(8, "big") + piece)
    return found.hexdigest()


def _pieces(value: object, around: tuple[int, ...]) -> Iterator[bytes]:
    """A value as bytes; `around` are the objects that it lies in."""
    if id(value) in around:
        yield b"itself"
        return
    inside = (*around, id(value))
    if isinstance(value, np.generic):
        value = value.item()  # NumPy's scalars are Python's
    atom = _atom(value)
    if atom is not None:
        yield atom
    elif isinstance(value, (np.ndarray, Tensor)):
        yield from _array(value, inside)
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}".encode()
        for entry in value:
            yield from _pieces(entry, inside)
    elif isinstance(value, (set, frozenset)):
        yield from _pieces(sorted(digest(entry) for entry in value), inside)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key, name in sorted((digest(name), name) for name in value):
            yield key.encode()
            yield from _pieces(value[name], inside)
    elif isinstance(value, partial):
        yield b"partial"
        yield from _pieces([value.func, value.args, value.keywords], inside)
    elif hasattr(value, "__qualname__"):
        yield from _function(value, inside)
    elif isinstance(value, CodeType):
        yield from _code(value, inside)
    else:
        yield f"object {type(value).__qualname__}".encode()
        yield from _pieces(dict(_named_parts(value)), inside)


def _atom(value: object) -> bytes | None:
    """A value that holds no others, as bytes; None for all else."""
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}".encode()
    if isinstance(value, PLAIN):
        return f"{type(value).__name__} {value!r}".encode()
    if isinstance(value, (int, float, np.number)):
        return _number(value)
    if isinstance(value, Path):
        return f"path {value}".encode()
    return f"named {value.__qualname__}".encode() if isinstance(value, type) else None


def _function(value: Any, inside: tuple[int, ...]) -> Iterator[bytes]:
    """A function or a method: one in C by its module and name, one in Python by what it is made of."""
    if isinstance(value, FunctionType):
        yield f"function {value.__qualname__}".encode()
        yield from _code(value.__code__, inside)
        held = [_cell(cell) for cell in value.__closure__ or ()]
        yield from _pieces([value.__defaults__, value.__kwdefaults__, held], inside)
        return
    yield f"named {getattr(value, '__module__', None)} {value.__qualname__}".encode()
    owner = getattr(value, "__self__", None)
    if not isinstance(owner, ModuleType):
        yield from _pieces(owner, inside)
    for part in ("__func__", "__wrapped__"):  # of a method, and of what decorators make
        if hasattr(value, part):
            yield from _pieces(getattr(value, part), inside)


def _code(code: CodeType, inside: tuple[int, ...]) -> Iterator[bytes]:
    """What compiled code does, without where it was written."""
    arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    yield code.co_code
    yield code.co_exceptiontable
    yield from _pieces(
        [arguments, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], code.co_names, code.co_consts],
        inside,
    )


def _cell(cell: CellType) -> object:
    """What a closure holds in a cell, which may be empty yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _number(value: Any) -> bytes:
    """A whole number is the same as an int or as a float, of whatever width."""
    number = value.item() if isinstance(value, np.number) else value
    whole = isinstance(number, float) and number.is_integer()
    return f"number {int(number) if whole else number!r}".encode()


def _array(value: np.ndarray | Tensor, inside: tuple[int, ...]) -> Iterator[bytes]:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    yield f"array {array.dtype.str} {array.shape}".encode()
    if array.dtype.hasobject:
        yield from _pieces(array.tolist(), inside)
    else:
        yield np.ascontiguousarray(array).tobytes()


def _named_parts(value: object) -> list[tuple[str, object]]:
    """What an object is made of, by name."""
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, torch.nn.Module):
        return list(value.state_dict().items())
    if isinstance(value, gym.Space):
        return [(name, part) for name, part in vars(value).items() if name != "_np_random"]
    if isinstance(value, gym.Env):
        kwargs = {} if value.spec is None else value.spec.kwargs
        return [(name, part) for name, part in kwargs.items() if name not in UNTOLD]
    if _speaks(value):
        return [("repr", _said(value))]
    try:
        taken = inspect.signature(type(value)).parameters
    except (TypeError, ValueError):  # of builtins
        return []
    return [(name, getattr(value, name)) for name in taken if hasattr(value, name)]


def _models(env: BilevelWrapper) -> Iterator[object]:
    """The model at the default θ, and at one near it where that is allowed, in single precision."""
    space, problem = env.theta_space, env.problem
    theta = problem.default_theta
    near = np.clip(theta + NEAR, space.low, space.high)
    with env.in_first_context():  # whichever is in force
        yield _rounded(env.model(theta))
        try:
            yield _rounded(env.model(np.where(near == theta, theta - NEAR, near)))
        except Exception:  # outside the task's own bounds, whatever the problem raises there
            yield None


def _rounded(model: object) -> list[tuple[str, object]]:
    """A model's parts with tensors in single precision."""
    return [
        (name, part.float() + 0.0 if isinstance(part, Tensor) else part) for name, part in _named_parts(model)
    ]  # no −0


def _speaks(value: object) -> bool:
    """Whether an object has a `__repr__` of its own, which is taken for what tells it from others."""
    return not is_dataclass(value) and not isinstance(value, gym.Env) and type(value).__repr__ is not object.__repr__


def _said(value: object) -> str:
    """An object's own words, with arrays in full and without addresses."""
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))


class _Short(reprlib.Repr):
    """Abbreviates, and names functions without their addresses."""

    def repr_function(self, x: FunctionType, level: int) -> str:
        """A function's name."""
        return x.__qualname__


def _kind(value: object) -> list[str]:
    return [_said(value)[:LONG], digest(value)] if _speaks(value) else [type(value).__qualname__, ""]


def _parts(whole: str, value: object) -> Task:
    return {} if _speaks(value) else {f"{whole}: {name}": _part(part) for name, part in _named_parts(value)}


def _part(value: object) -> list[str]:
    text = value.__qualname__ if hasattr(value, "__qualname__") else _Short().repr(value)
    return [text.split(" at 0x")[0], digest(value)]
