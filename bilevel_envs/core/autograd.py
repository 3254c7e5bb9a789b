"""Gradients for functions that need them, whatever their caller has switched off."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def with_ordinary_tensors(function: Callable[P, T]) -> Callable[P, T]:
    """Runs a function outside of `torch.inference_mode()`, whose tensors no later gradient may pass through.

    For functions that keep tensors. Whether autograd is on stays as it is.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        on = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(on):
            return function(*args, **kwargs)

    return run


def with_gradients(function: Callable[P, T]) -> Callable[P, T]:
    """Runs a function with autograd on, also inside `torch.no_grad()` and `torch.inference_mode()`.

    Raises:
      ValueError: if a tensor that needs a gradient was itself made inside `torch.inference_mode()`.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.enable_grad():
            try:
                return function(*args, **kwargs)
            except RuntimeError as error:
                if "nference tensor" not in str(error):
                    raise
                raise ValueError(
                    f"`{function.__name__}` needs gradients of tensors that were made inside torch.inference_mode(), "
                    "which has none: make the environment, the policy and the leader outside of it"
                ) from error

    return run
