"""Spaces of environments that somebody else wrote as followers take them: vectors seen, a number or a vector done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from bilevel_envs.core.checks import as_array, finite_numbers

MOST_ACTIONS = 1_000  # joint actions that are numbered
Value: TypeAlias = Any  # of a space, as Gymnasium's own annotations have it
Take: TypeAlias = Callable[[Iterator[Any]], Value]


class Actions:
    """What a follower does, and what the environment is given for it.

    Numbers stand for the joint actions of spaces made of Discrete, MultiDiscrete and MultiBinary parts and of boxes of
    whole numbers, in row-major order, the last part changing first; vectors for those made of boxes of real numbers,
    side by side.

    Args:
      given: the environment's action space.
      name: of the environment, for messages.

    Attributes:
      space: the follower's, a Discrete from 0 on or a Box of one axis.

    Raises:
      TypeError: if there is no such form, by name.
    """

    def __init__(self, given: gym.Space, name: str) -> None:
        parts, self._take = _taken_apart(given)
        remedy = "put a wrapper around it, such as gymnasium.wrappers.TransformAction"
        boxes = [part for part in parts if isinstance(part, spaces.Box)]
        if None in parts or (boxes and len(boxes) < len(parts)):
            raise TypeError(
                "`env` must have actions made of Discrete, MultiDiscrete and MultiBinary parts and boxes of whole "
                f"numbers, or of boxes of real numbers, and not of both; {name} has {given}: {remedy}"
            )
        self._shapes = [part.shape for part in boxes]
        self._sizes = [part for part in parts if isinstance(part, int)]
        count = int(np.prod(self._sizes, dtype=float))
        if count > MOST_ACTIONS:
            raise TypeError(
                f"`env` must have at most {MOST_ACTIONS:,} joint actions, which followers are shown by number; {name} "
                f"has {count:,} in {given}: {remedy}"
            )
        self.space: gym.Space = spaces.Discrete(count)
        if boxes:
            low, high = (np.concatenate([end.ravel() for end in ends]) for ends in zip(*_bounds(boxes), strict=True))
            self.space = spaces.Box(low, high, dtype=np.result_type(*(box.dtype for box in boxes)).type)

    def of(self, action: np.ndarray | int) -> Value:
        """What the environment is given for an action of the follower's; a new object each time."""
        if not self._shapes:
            return self._take(iter(np.unravel_index(int(action), self._sizes)))
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in self._shapes])[:-1]
        vectors = np.split(np.asarray(action, self.space.dtype).copy(), ends)
        return self._take(part.reshape(shape) for part, shape in zip(vectors, self._shapes, strict=True))


def check_actions(actions: ArrayLike, space: gym.Space, copies: tuple[int, ...], name: str) -> np.ndarray:
    """The follower's actions in so many copies as an array; refuses what its space does not hold, but for bounds.

    Raises:
      ValueError: if a number is no index, or a vector of another size or not finite.
    """
    if not isinstance(space, spaces.Discrete):
        return finite_numbers(actions, (*copies, *(space.shape or ())), name)
    array = as_array(actions, name)
    if (
        array.shape != copies
        or array.dtype.kind not in "iu"
        or (array.size and not 0 <= array.min() <= array.max() < space.n)
    ):
        raise ValueError(
            f"`{name}` must be whole numbers from 0 to {space.n - 1} of shape {list(copies)}, got {actions!r}"
        )
    return array


def _bounds(boxes: list[spaces.Box]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(box.low, box.high) for box in boxes]


def _taken_apart(space: gym.Space) -> tuple[list[int | spaces.Box | None], Take]:
    """How many values each part has, or a Box, or None for what has no form; and what puts such values together."""
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return [int(space.n)], lambda values: first + int(next(values))
    if isinstance(space, spaces.MultiBinary):
        shape = space.shape
        return [2] * int(np.prod(shape)), lambda values: _array(values, shape, space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        start, shape = space.start, space.shape
        return [int(n) for n in space.nvec.ravel()], lambda values: start + _array(values, shape, space.dtype)
    if isinstance(space, spaces.Box):
        return _box_apart(space)
    if isinstance(space, (spaces.Tuple, spaces.Dict)):
        named = dict(space.spaces) if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
        parts, takes = zip(*map(_taken_apart, named.values()), strict=True)
        is_dict = isinstance(space, spaces.Dict)

        def together(values: Iterator[Any]) -> Value:
            made = [take(values) for take in takes]
            return dict(zip(named, made, strict=True)) if is_dict else tuple(made)

        return [one for part in parts for one in part], together
    return [None], next


def _box_apart(box: spaces.Box) -> tuple[list[int | spaces.Box | None], Take]:
    """Likewise, of a box: the numbers of whole numbers that its entries take, or the box."""
    low, shape, kind = box.low, box.shape, box.dtype
    if np.issubdtype(kind, np.integer):
        many = (box.high.astype(object) - low.astype(object) + 1).ravel()
        return [int(n) for n in many], lambda values: low + _array(values, shape, kind)
    return [box], lambda values: next(values).astype(kind)


def _array(values: Iterator[Any], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """So many of the next values as an array."""
    return np.array([next(values) for _ in range(int(np.prod(shape)))], dtype).reshape(shape)


def seen_space(given: gym.Space, name: str) -> spaces.Box:
    """What a follower sees: observations as vectors.

    Raises:
      TypeError: if Gymnasium does not flatten them to one, by name.
    """
    try:
        flat: gym.Space = spaces.flatten_space(given)
    except NotImplementedError:
        flat = given
    if not isinstance(flat, spaces.Box):
        raise TypeError(
            f"`env` must have observations that Gymnasium flattens to a vector; {name} has {given}: put a wrapper "
            "around it that gives vectors"
        )
    return spaces.Box(flat.low.astype(float), flat.high.astype(float), dtype=np.float64)
