"""The optimiser of a leader: gradient clipping and step sizes per run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_number, check_per_run
from leaders.config import PerRun

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class Ascent:
    """Steps along minus the gradients that lie in the parameters, every run with its own clip and step size.

    Args:
      module: the parameters; with R > 1 each has R as its leading axis.
      runs: R.
      optimizer: "sgd" or "adam".
      learning_rate: one number, or one per run.
      max_grad_norm: a run's gradient is scaled down to this ℓ2 norm; inf for never.
      decay: factor in (0, 1] on the step size after every step.
      blocks: parts of a run's flattened parameter, of which there is one then, that are scaled apart.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        runs: int,
        optimizer: str,
        learning_rate: PerRun,
        max_grad_norm: float,
        decay: float = 1.0,
        blocks: Mapping[str, slice] | None = None,
    ) -> None:
        check_choice(optimizer, OPTIMIZERS, "optimizer")
        check_per_run(learning_rate, "learning_rate", runs=runs, above=0)
        if not (isinstance(max_grad_norm, (float, np.floating)) and max_grad_norm == float("inf")):
            check_number(max_grad_norm, "max_grad_norm", above=0)
        self._decay = check_number(decay, "learning_rate_decay", above=0, at_most=1)
        self._leaves = [leaf for leaf in module.parameters() if leaf.requires_grad]
        if not self._leaves:
            raise ValueError("`policy` must have parameters that require gradients; it has none")
        shared = [tuple(leaf.shape) for leaf in self._leaves if runs > 1 and (leaf.ndim == 0 or leaf.shape[0] != runs)]
        if shared:
            raise ValueError(f"`policy` must have parameters with a leading runs axis of {runs}, got shape {shared[0]}")
        if blocks and len(self._leaves) > 1:
            raise ValueError(f"`policy` must have one parameter to be clipped block by block, got {len(self._leaves)}")
        self.runs, self.max_grad_norm, self.blocks = runs, float(max_grad_norm), blocks
        self._rates = torch.from_numpy(np.array(learning_rate, np.float64)) if np.ndim(learning_rate) else None
        self._first = 1.0 if self._rates is not None else float(np.asarray(learning_rate))
        self._optimizer = OPTIMIZERS[optimizer](self._leaves, lr=self._first)

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self._optimizer.zero_grad()

    def step(self, taken: int = 0) -> Tensor:
        """One step, after so many others; returns each run's gradient norm before clipping, [R].

        Raises:
          FloatingPointError: if a gradient is not finite; the parameters then stay as they were.
        """
        gradients = [self._by_run(leaf.grad) for leaf in self._leaves if leaf.grad is not None]
        if not gradients:
            return torch.zeros(self.runs, dtype=torch.float64)
        norm = _norm(gradients)
        if not norm.isfinite().all():
            bad = (~norm.isfinite()).nonzero().flatten().tolist()
            raise FloatingPointError(f"the hypergradient of run {bad[0]} is not finite; its parameters were left alone")
        groups = [[gradients[0][:, block]] for block in self.blocks.values()] if self.blocks else [gradients]
        for group in groups:
            scale = (self.max_grad_norm / _norm(group)).clamp(max=1.0)
            if (scale < 1).any():
                for gradient in group:
                    gradient.mul_(scale[:, None])
        for options in self._optimizer.param_groups:
            options["lr"] = self._first * self._decay**taken
        if self._rates is None:
            self._optimizer.step()
        else:
            # Every optimiser's step is proportional to its learning rate: take it with one of 1, then scale per run.
            before = [leaf.detach().clone() for leaf in self._leaves]
            self._optimizer.step()
            with torch.no_grad():
                for leaf, old in zip(self._leaves, before, strict=True):
                    rate = self._rates.view(-1, *[1] * (leaf.ndim - 1))
                    leaf.copy_(old + rate * (leaf - old))
        return norm.double()

    def state_dict(self) -> dict[str, object]:
        """The optimiser's memory."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Puts the memory back; the step size, which every step sets anew, stays this optimiser's own."""
        self._optimizer.load_state_dict(state)

    def _by_run(self, x: Tensor) -> Tensor:
        return x.view(self.runs, -1)


def _norm(gradients: list[Tensor]) -> Tensor:
    """ℓ2 norm of each run's gradient, [R]."""
    return torch.stack([(gradient**2).sum(1) for gradient in gradients]).sum(0).sqrt()
