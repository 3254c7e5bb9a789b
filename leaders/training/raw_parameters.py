"""The raw parameters of a policy as rows of numbers, and θ at others than those in force."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from bilevel_envs.core.mdp import Parameterization


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
