"""What a leader has seen of a table, and whether its estimates can be trusted yet."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch

from bilevel_envs.core.batch import Rollout
from leaders.critics.cross_fit import Judges
from leaders.critics.empirical import Empirical

TRUSTED = 0.3  # share of a batch's steps at pairs seen in no other episode, above which estimates are not trusted
PATIENCE = 10  # outer iterations before that is said

logger = logging.getLogger("leaders")


class Coverage:
    """Records what was seen of a table, and says once that it is too little.

    Args:
      leader: the leader's class, for the message.
      seen: the world as the leader has seen it.
    """

    def __init__(self, leader: str, seen: Empirical) -> None:
        self.leader, self.seen, self.warned = leader, seen, False

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """What the history records: the share of pairs visited, and transitions for each of those, [R] each."""
        return self.seen.seen.coverage()

    def check(self, judges: Judges, batch: Rollout, drawn: Rollout, tail: str, done: int) -> None:
        """Says once, after some iterations, that too little has been seen."""
        if self.warned or done < PATIENCE:
            return
        if batch is not drawn:  # whose other steps are in no world yet
            judges, batch = replace(judges, part=torch.zeros_like(drawn.step), seen=[self.seen]), drawn
        self.warned = self.left_out(judges, batch, tail, f"after {done} iterations")

    def left_out(self, judges: Judges, batch: Rollout, tail: str, when: str) -> bool:
        """Warns if an estimate leaves out too much to be trusted."""
        steps, behind = judges.unseen(batch)
        steps, behind = steps if judges.learnt else 0.0, behind if tail == "continue" else 0.0
        if max(steps, behind) <= TRUSTED:
            return False
        logger.warning(
            "%s, %s: too little has been seen for estimates to be trusted. They leave out %.0f %% of a batch's steps, "
            "at pairs (state, action) that no other episode visited, and %.0f %% of an episode, behind cuts in states "
            'that were never left. Raise `batch_size`, lower `rows`, or go on until history["coverage"] stops growing.',
            self.leader,
            when,
            100 * steps,
            100 * behind,
        )
        return True
