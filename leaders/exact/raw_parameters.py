"""θ as a module's parameters yield it."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_envs.core.checks import check_finite


def theta_of(module: torch.nn.Module, name: str, *, differentiable: bool = True) -> Tensor:
    """What `forward()` yields.

    Args:
      module: its `forward()` is θ.
      name: of the argument that it came as.
      differentiable: whether θ must depend on the module's parameters through autograd.

    Raises:
      TypeError: if it yields no tensor.
      ValueError: if `forward()` raises, or yields NaN, infinite numbers, or a θ that is cut off from the parameters.
    """
    try:
        theta = module()
    except Exception as error:
        raise ValueError(
            f"`{name}` must be a module whose forward(), called without arguments, is θ; that of "
            f"{type(module).__name__} raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(theta, Tensor):
        raise TypeError(f"`{name}` must yield θ as a tensor, got {type(theta).__name__} from {type(module).__name__}")
    check_finite(theta, f"{name}()")
    if differentiable and not theta.requires_grad and any(leaf.requires_grad for leaf in module.parameters()):
        raise ValueError(
            f"`{name}` must yield a θ that depends on its parameters through autograd; forward() of "
            f"{type(module).__name__} gives one without gradients. Compute θ with torch operations on the parameters, "
            "without detach(), .data, .numpy() or torch.no_grad()"
        )
    return theta
