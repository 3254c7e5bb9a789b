"""How a function is compiled and kept on disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from numba import njit
from numba.core.caching import FunctionCache

if TYPE_CHECKING:
    from numba.core.dispatcher import Dispatcher

F = TypeVar("F", bound=Callable)


class _Cache(FunctionCache):
    """Machine code on disk; a damaged file is passed over and written anew, a full disk does no harm."""

    def load_overload(self, sig: object, target_context: object) -> object:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever damaged bytes raise: EOFError, UnpicklingError, ...
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: object, data: object) -> None:
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            super().save_overload(sig, data)


def compiled(function: F) -> Dispatcher[F]:
    """A function as machine code, compiled on its first call and kept on disk.

    Where there is no place to keep it (NUMBA_CACHE_DIR names one), each process compiles anew.
    """
    dispatcher = njit(error_model="numpy", nogil=True)(function)
    with suppress(RuntimeError):
        object.__setattr__(dispatcher, "_cache", _Cache(function))  # as `cache=True` does with Numba's own
    return dispatcher
