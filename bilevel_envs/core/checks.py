"""Refuses bad values with a message that names the argument, what it must be and what it was."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

LARGEST_COUNT = 2**63 - 1  # that a 64-bit integer holds
LONGEST = 256  # bits of a whole number that a message prints
NUMBERS_OF_A_TRANSITION = 10  # in a batch, at least


def check_shape(x: Tensor | np.ndarray, shape: Sequence[int], name: str, meaning: str = "") -> None:
    """Refuses `x` unless its trailing axes are `shape`."""
    if tuple(x.shape[x.ndim - len(shape) :]) != tuple(shape) or x.ndim < len(shape):
        wanted = _axes(["...", *shape] if x.ndim > len(shape) else shape)
        raise ValueError(f"`{name}` must have shape {wanted}{meaning and f' {meaning}'}, got {_axes(x.shape)}")


def meant(name: str, among: Iterable[str]) -> str:
    """A question after the name that is nearest to a misspelt one, capitals aside; nothing where none is near."""
    known = {one.lower(): one for one in among}
    near = get_close_matches(name.lower(), list(known), 1)
    return f" (did you mean {known[near[0]]!r}?)" if near else ""


def unknown_names(names: Iterable[str], among: Iterable[str]) -> str:
    """Misspelt names as a message lists them, each with what it may have meant."""
    known = list(among)
    return ", ".join(repr(name) + meant(name, known) for name in names)


def check_finite(x: Tensor | np.ndarray, name: str) -> None:
    """Refuses `x` if an entry is NaN or infinite."""
    if isinstance(x, Tensor):
        x = x.detach()
        if math.isfinite(x.sum()):  # then so is every entry; a sum that overflows is looked at entry by entry
            return
    bad = ~np.isfinite(np.asarray(x))
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"`{name}` must be finite; at {at} it is {float(x[at])}")


def check_distribution(p: Tensor, name: str, axes: str) -> None:
    """Refuses `p` unless its last axis holds probabilities."""
    check_finite(p, name)
    p = p.detach()
    total = p.sum(-1)
    error = (total - 1).abs() + p.amin(-1).clamp(max=0).abs()
    worst = int(error.argmax())
    if error.flatten()[worst] > 1e-6:
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), total.shape))
        raise ValueError(
            f"`{name}` {axes} must be non-negative and sum to 1 over its last axis; "
            f"{f'at {at} ' if at else ''}it sums to {total[at]:.6g}, and its smallest entry is {p[at].min():.3g}. "
            "If these are logits, pass `logits.softmax(-1)`."
        )


def check_number(
    value: object,
    name: str,
    *,
    above: float | None = None,
    below: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    remedy: str = "",
) -> float:
    """Returns `value` as a float; refuses anything but a finite number within the bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    value = value if isinstance(value, (int, float)) else value.item()
    bounds = [
        (above, "above", above is None or value > above),
        (at_least, "at least", at_least is None or value >= at_least),
        (below, "below", below is None or value < below),
        (at_most, "at most", at_most is None or value <= at_most),
    ]
    finite = -sys.float_info.max <= value <= sys.float_info.max  # also for whole numbers that no float can hold
    if not finite or not all(holds for _, _, holds in bounds):
        wanted = [f"{word} {bound:g}" for bound, word, _ in bounds if bound is not None]
        wanted += ["finite"] * (not finite)
        raise ValueError(f"`{name}` must be {' and '.join(wanted)}, got {_short(value)}{remedy and f'. {remedy}'}")
    return float(value)


def check_per_run(
    value: ArrayLike,
    name: str,
    *,
    runs: int | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuses `value` unless it is a number within the bounds of `check_number`, or one such number for each run."""
    numbers = as_array(value, name)
    shape = numbers.shape
    if shape and shape != (math.prod(shape) if runs is None else runs,):
        each = "one per run" if runs is None else f"one per run ({runs})"
        raise ValueError(f"`{name}` must be a number or {each}, got shape {list(shape)}")
    for number in numbers.ravel().tolist():
        check_number(number, name, above=above, at_most=at_most)


def check_count(value: object, name: str, *, at_least: int = 1) -> int:
    """Returns `value` as an int; refuses anything but a whole number from `at_least` to what 64 bits hold."""
    count = _whole(value, name, at_least)
    if count > LARGEST_COUNT:
        raise ValueError(f"`{name}` must be at most 2**63 - 1, got {_short(count)}")
    return count


def check_seed(value: object) -> int:
    """Returns a `seed` as an int; refuses anything but a whole number of at least 0, however large."""
    return _whole(value, "seed", 0)


def _whole(value: object, name: str, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}")
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, got {_short(int(value))}")
    return int(value)


def _short(value: float) -> str:
    """A number for a message; of whole ones with very many digits, which Python does not print, how many bits."""
    if isinstance(value, int) and value.bit_length() > LONGEST:
        return f"a whole number of {value.bit_length():,} bits"
    return str(value)


def check_memory(numbers: float, name: str, value: object, per: str) -> None:
    """Refuses a count whose numbers, eight bytes each, this machine cannot hold, before any is allocated.

    Args:
      numbers: how many there would be.
      name: of the argument.
      value: what it was.
      per: of what the numbers are.
    """
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 8 * numbers > held:
        raise ValueError(
            f"`{name}` must be less: {value} would take some {8 * numbers / 1e9:,.0f} GB for {per}, and this machine "
            f"has {held / 1e9:,.0f}"
        )


def check_room(runs: int, rows: int, horizon: int) -> None:
    """Refuses a batch [R, N, T] that this machine cannot hold, and names the larger of `rows` and `horizon`."""
    name, value = max(("horizon", horizon), ("rows", rows), key=lambda pair: pair[1])
    shape = f"{runs:,} x {rows:,} x {horizon:,} transitions, [run, row, step]"
    check_memory(float(runs) * rows * horizon * NUMBERS_OF_A_TRANSITION, name, value, shape)


def keep_counts(owner: object, *names: str, at_least: int = 1) -> None:
    """Keeps fields of a frozen dataclass as ints, as NumPy's own would overflow; refuses what `check_count` refuses."""
    for name in names:
        object.__setattr__(owner, name, check_count(getattr(owner, name), name, at_least=at_least))


def keep_numbers(owner: object, *names: str, **bounds: Any) -> None:
    """Keeps numeric fields of a dataclass as Python numbers; refuses what `check_number` refuses.

    NumPy's integers overflow, and a float16 makes float16 of the float32 arrays that it is multiplied with.
    """
    for name in names:
        value = getattr(owner, name)
        check_number(value, name, **bounds)
        object.__setattr__(owner, name, _plain(value))


def _plain(value: float | np.integer | np.floating) -> float:
    """A number of NumPy's as one of Python's."""
    return int(value) if isinstance(value, np.integer) else float(value) if isinstance(value, np.floating) else value


def check_choice(value: object, options: Iterable[object], name: str) -> None:
    """Refuses `value` unless it is one of `options`; 1 is not True, and 0 not False."""
    options = list(options)
    comparable = not isinstance(value, (np.ndarray, Tensor))  # whose == is no bool
    if not comparable or not any(value is one if isinstance(one, bool) else value == one for one in options):
        near = meant(value, [one for one in options if isinstance(one, str)]) if isinstance(value, str) else ""
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, options))}, got {value!r}{near}")


def lacking(thing: object, names: Iterable[str]) -> list[str]:
    """The names of attributes that an object does not have."""
    return [name for name in names if not hasattr(thing, name)]


def check_instance(value: object, name: str) -> None:
    """Refuses a class where an object of it is wanted."""
    if isinstance(value, type):
        raise TypeError(f"`{name}` must be an object, got the class {value.__name__}: make one, {value.__name__}(...)")


def check_table_size(table: Tensor, runs: int, size: tuple[int, ...], name: str, axes: str) -> None:
    """Refuses a table or a matrix of another size than the world's, for each run or one for all."""
    if tuple(table.shape) not in ((1, *size), (runs, *size)):
        raise ValueError(
            f"`{name}` must have shape {[runs, *size]}, [run, {axes}] of this world, or lead with 1 where all runs "
            f"share it; got {list(table.shape)}"
        )


def as_numbers(value: object, name: str) -> Tensor:
    """Returns a tensor as it is and anything else as float64; refuses what holds no numbers, and ragged lists."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"`{name}` must be numbers, got complex ones")
        return value
    array = as_array(value, name)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` must be numbers, got {array.dtype} of shape {_axes(array.shape)}")
    return torch.from_numpy(array.astype(np.float64))


def check_path(path: object, name: str = "path") -> Path:
    """Returns a file's path; refuses other objects with a TypeError, an empty path or a NUL with a ValueError."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"`{name}` must be a file's path, got {path!r}")
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ValueError(f"`{name}` must be a file's path, got {text!r}")
    return Path(text)


def check_writable(path: object, name: str = "path") -> Path:
    """Returns the path of a file that can be written; refuses others.

    Raises:
      TypeError, ValueError: if it names no file.
      IsADirectoryError: if it is a folder.
      FileNotFoundError, NotADirectoryError: if the folder in which it is to be is not there, or is a file.
    """
    file = check_path(path, name)
    if file.is_dir():
        raise IsADirectoryError(f"`{name}` must be a file's path, got the folder {file}: add a file's name")
    if file.parent.exists() and not file.parent.is_dir():
        raise NotADirectoryError(f"`{name}` must be in a folder, got {file}: {file.parent} is a file")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"`{name}` must be in a folder that is there, got {file}: make {file.parent} first")
    return file


def as_array(value: object, name: str) -> np.ndarray:
    """Returns `value` as an array of its own; refuses ragged lists."""
    try:
        return np.asarray(value).copy()  # `np.array` warns of tensors
    except (ValueError, TypeError, RuntimeError) as error:  # the latter of tensors with gradients
        raise ValueError(f"`{name}` must be an array, got {type(value).__name__} ({error})") from error


def finite_numbers(value: ArrayLike, shape: Sequence[int] | None, name: str) -> np.ndarray:
    """Returns `value` as a float64 array; refuses anything but finite numbers of that shape."""
    array = as_array(value, name)
    if array.dtype.kind not in "fiu" or array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite numbers of shape {list(shape or ())}, got {value!r}")
    return array.astype(np.float64)


def _axes(shape: Sequence[object]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
