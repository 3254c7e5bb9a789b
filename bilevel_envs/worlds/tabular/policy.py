"""The follower's policy as a table of probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.follower import BestResponse, Missing
from bilevel_envs.worlds.tabular.model import Table, closed_cdf


@dataclass(frozen=True)
class BoltzmannPolicy:
    """g(b | s) = exp((Q(s, b) − V(s)) / β) as a table of log-probabilities.

    Attributes:
      log_probs: log g, [R|1, S, B].
    """

    kind: ClassVar[str] = "tabular"
    log_probs: Tensor
    action_shape: ClassVar[tuple[int, ...]] = ()

    def action_nodes(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Every action at states [R, K], [R, K, B], with its probability as weight: sums of both are expectations."""
        runs, steps = state.shape
        probs = self.probs.expand(runs, -1, -1)
        return torch.arange(probs.shape[-1]).expand(runs, steps, -1), probs[torch.arange(runs)[:, None], state]

    @cached_property
    def probs(self) -> Tensor:
        """g, [R|1, S, B]."""
        return self.log_probs.exp()

    @cached_property
    def cdf(self) -> np.ndarray:
        """Cumulative g over actions, the last possible action exactly 1, [R|1, S, B]."""
        return closed_cdf(self.probs.numpy())

    def sample(self, state: Tensor | np.ndarray | int, uniform: Tensor | np.ndarray | float) -> Tensor:
        """Actions by inverse CDF, shaped like `state`; `uniform` in [0, 1) has the same shape."""
        cdf = Table(torch.from_numpy(self.cdf))(state)
        return (cdf <= torch.as_tensor(uniform)[..., None]).sum(-1)

    def log_prob(self, state: Tensor | np.ndarray | int, action: Tensor | np.ndarray | int) -> Tensor:
        """log g(b | s), shaped like `state`."""
        return Table(self.log_probs)(state, action)

    def expect(self, q: Callable[[Tensor], Tensor], state: Tensor | np.ndarray | int) -> Tensor:
        """E_b[q(s, b)] under g, shaped like `state`; `q(state)` gives [..., B]."""
        state = torch.as_tensor(state)
        return (Table(self.probs)(state) * q(state)).sum(-1)


TabularResponse: TypeAlias = BestResponse[BoltzmannPolicy, Table | Missing]  # to a `TabularModel`
