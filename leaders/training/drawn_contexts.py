"""Which context each run is led in, outer iteration by outer iteration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.contexts import Contexts
from bilevel_envs.core.mdp import Parameterization
from bilevel_envs.core.noise import Noise


class DrawnContexts:
    """Draws a context for each run.

    Args:
      contexts: the problem's.
      given: the numbers of those to draw from; None for all.
      runs: R.

    Attributes:
      now: the contexts drawn last, int [R]; before the first draw the first that may be drawn.

    Raises:
      ValueError: if a number is that of no context, one is given twice, or none may be drawn.
    """

    def __init__(self, contexts: Contexts, given: Sequence[int] | None, runs: int) -> None:
        self.contexts = contexts
        self.among = None if given is None else np.atleast_1d(contexts.checked(given, "contexts"))
        if self.among is not None and len(np.unique(self.among)) < len(self.among):
            raise ValueError("`contexts` must name each context once: probabilities belong to the problem's `contexts`")
        self.now = np.full(runs, contexts.drawn(np.zeros(1), self.among)[0])

    def draw(self, noise: Noise) -> None:
        """Draws anew, one number of each stream."""
        self.now = self.contexts.drawn(noise.uniform(1)[:, 0], self.among)

    @property
    def features(self) -> Tensor:
        """What a policy reads of the present ones, [R, ...]."""
        return self.contexts.seen(self.now)


def reads_context(policy: torch.nn.Module) -> bool:
    """Whether a policy's `forward` takes the features of contexts."""
    return isinstance(policy, Parameterization) and policy.reads_context


def drawn_contexts(
    contexts: Contexts | None,
    given: Sequence[int] | None,
    policy: torch.nn.Module,
    runs: int,
) -> DrawnContexts | None:
    """What draws the contexts of a leader; None for one that leads without, or where the world draws them itself.

    Args:
      contexts: the problem's.
      given: those that the leader was given.
      policy: the leader's.
      runs: R.

    Raises:
      ValueError: if contexts are given where there are none, or the policy reads them there.
    """
    reads = reads_context(policy)
    if contexts is None:
        if given is not None:
            raise ValueError(f"`contexts` must be None for a problem without contexts, got {given!r}")
        if reads:
            raise ValueError(
                f"`policy` must not read contexts in a problem without: give {type(policy).__name__} its `features`"
            )
        return None
    if contexts.within and given is None and not reads:
        return None
    return DrawnContexts(contexts, given, runs)
