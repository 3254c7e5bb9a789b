"""θ as a module's parameters yield it, at those in force and at others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from bilevel_envs.core.checks import check_finite
from bilevel_envs.core.mdp import Parameterization


def theta_of(
    module: torch.nn.Module, name: str, *, differentiable: bool = True, context: Tensor | None = None
) -> Tensor:
    """What `forward()` yields.

    Args:
      module: its `forward()` is θ.
      name: of the argument that it came as.
      differentiable: whether θ must depend on the module's parameters through autograd.
      context: features of contexts for `forward(context)`; None to call it without.

    Raises:
      TypeError: if it yields no tensor.
      ValueError: if `forward()` raises, or yields NaN, infinite numbers, or a θ that is cut off from the parameters.
    """
    try:
        theta = module() if context is None else module(context)
    except Exception as error:
        raise ValueError(
            f"`{name}` must be a module whose forward(), called "
            f"{'without arguments' if context is None else 'with the features of contexts'}, is θ; that of "
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


class RawParameters:
    """What of a policy is trained, flat, one row for each run.

    Args:
      policy: its `forward()` is θ; with R > 1 each parameter has R as its leading axis.
      runs: R.
      shape: of θ.
    """

    def __init__(self, policy: torch.nn.Module, runs: int, shape: tuple[int, ...]) -> None:
        self.policy, self.runs, self.shape = policy, runs, shape
        self._names = [name for name, leaf in policy.named_parameters() if leaf.requires_grad]
        self._stacks = isinstance(policy, Parameterization) and policy.stacks

    def flat(self) -> Tensor:
        """Those in force, float64 [R, n]."""
        return torch.cat([leaf.reshape(self.runs, -1).double() for leaf in self._leaves().values()], -1)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name from rows [C, n]: in the module's own shapes for C = R, with C in place of R otherwise."""
        parts, first = {}, 0
        for name, leaf in self._leaves().items():
            size = leaf.numel() // self.runs
            shape = leaf.shape if len(flat) == self.runs else (len(flat), *leaf.shape[1:])
            parts[name] = flat[:, first : first + size].reshape(shape).to(leaf.dtype)
            first += size
        return parts

    def theta(self, flat: Tensor) -> Tensor:
        """θ ``[C, *θ.shape]`` at rows [C, n], differentiable in them; C may be any number."""
        if self._stacks or len(flat) == self.runs:
            return self._theta(flat)
        rows = -(-len(flat) // self.runs) * self.runs
        padded = torch.cat([flat, flat[-1:].expand(rows - len(flat), -1)])
        return torch.cat([self._theta(part) for part in padded.split(self.runs)])[: len(flat)]

    def _theta(self, flat: Tensor) -> Tensor:
        theta = functional_call(self.policy, self.named(flat)).double()
        return theta.reshape(-1, *self.shape)

    def _leaves(self) -> dict[str, Tensor]:
        named = dict(self.policy.named_parameters())
        return {name: named[name].detach() for name in self._names}
