"""Q_L as a table learnt by temporal differences, one transition after another."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_choice, check_per_run
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.kernels.critics import expected_sarsa, sarsa
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse
from leaders.critics.exact import table_values

T = TypeVar("T", bound="LearnedTable")
STARTS = ("zeros", "normal")


class LearnedTable:
    """A table [R, S, B] that is kept from batch to batch."""

    has_rate: ClassVar[bool] = True

    def __init__(self, gamma: float, learning_rate: float | np.ndarray, start: str = "zeros") -> None:
        check_per_run(learning_rate, "critic_learning_rate", above=0, at_most=1)
        check_choice(start, STARTS, "start")
        self.gamma, self.learning_rate, self.start = gamma, learning_rate, start
        self.table = np.zeros((0, 0, 0))

    def values(self, batch: Rollout, policy: BoltzmannPolicy) -> tuple[Tensor, Tensor, Tensor]:
        """Look-ups; V_L is the expectation of Q_L under g."""
        return table_values(torch.from_numpy(self.table), batch, policy)

    def state_dict(self) -> dict[str, object]:
        """The table."""
        return {"table": torch.from_numpy(self.table.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the table back."""
        self.table = state["table"].numpy().copy()

    def begin(self, policy: BoltzmannPolicy, noise: Noise) -> None:
        """Makes the first table."""
        shape = tuple(policy.log_probs.shape[-2:])
        if self.table.shape != (noise.runs, *shape):
            self.table = noise.normal(*shape) if self.start == "normal" else np.zeros((noise.runs, *shape))

    def copied(self, copy: T, count: int) -> T:
        """`copy` with `count` times this table."""
        copy.table = np.concatenate([self.table] * count)
        return copy

    def rates(self) -> np.ndarray:
        """η of each run, [R]."""
        return np.broadcast_to(np.asarray(self.learning_rate, float), len(self.table)).copy()

    def copied_rate(self, count: int) -> float | np.ndarray:
        """η for as many copies."""
        rate = self.learning_rate
        return np.tile(rate, count) if np.ndim(rate) else rate


class Sarsa(LearnedTable):
    """Q_L(s, b) += η (r_L + γ_L Q_L(s', b') − Q_L(s, b)), each transition once, in random order.

    Args:
      gamma: γ_L.
      learning_rate: η in (0, 1], a number or one per run.
      start: first table: "zeros", or "normal" for N(0, 1) (the published code).
      cut_is_end: where the batch cuts an episode, take the future as 0 (the published code) instead of V_L(s').

    Source: arXiv:2603.14867, Algorithm 1.
    """

    def __init__(
        self,
        gamma: float,
        learning_rate: float | np.ndarray = 0.5,
        start: str = "zeros",
        cut_is_end: bool = False,
    ) -> None:
        super().__init__(gamma, learning_rate, start)
        self.cut_is_end = cut_is_end

    def fit(self, batch: Rollout, best: TabularResponse, model: Model | None, noise: Noise) -> None:
        """One shuffled pass over the batch."""
        self.begin(best.policy, noise)
        rows, horizon = batch.state.shape[1:]
        self.pass_over(batch, best.policy, noise.permutation(rows * horizon))

    def pass_over(self, batch: Rollout, policy: BoltzmannPolicy, order: np.ndarray) -> None:
        """Updates once for each transition, in the order given: entry k·N + n is step k of row n, [R, N·T]."""
        cut = batch.cut
        reward = batch.r_leader
        if not self.cut_is_end and cut.any():
            v_next = table_values(torch.from_numpy(self.table), batch, policy)[2]
            reward = reward + torch.where(cut, self.gamma * v_next, 0.0)
        decay = self.gamma * (~(batch.terminated | cut)).double()
        state, action, valid = batch.state.numpy(), batch.action.numpy(), batch.valid.numpy()
        sarsa(self.table, state, action, reward.numpy(), decay.numpy(), valid, order, self.rates())

    def copies(self, count: int) -> Sarsa:
        """`count` tables for each run."""
        return self.copied(Sarsa(self.gamma, self.copied_rate(count), self.start, self.cut_is_end), count)


class ExpectedSarsa(LearnedTable):
    """Q_L(s, b) += η (r_L + γ_L Σ_b' g(b' | s') Q_L(s', b') − Q_L(s, b)), from the last step back to the first.

    The order carries a late reward back along its whole episode in one pass. Nothing is special where the batch
    cuts an episode: V_L(s') is there, too.

    Args:
      gamma: γ_L.
      learning_rate: η in (0, 1], a number or one per run.
      start: first table: "zeros" or "normal".
    """

    def fit(self, batch: Rollout, best: TabularResponse, model: Model | None, noise: Noise) -> None:
        """One backward pass over the batch."""
        self.begin(best.policy, noise)
        decay = self.gamma * (~batch.terminated).double()
        state, action, following = batch.state.numpy(), batch.action.numpy(), batch.next_state.numpy()
        reward, valid, g = batch.r_leader.numpy(), batch.valid.numpy(), best.policy.probs.numpy()
        expected_sarsa(self.table, state, action, following, reward, decay.numpy(), valid, g, self.rates())

    def copies(self, count: int) -> ExpectedSarsa:
        """`count` tables for each run."""
        return self.copied(ExpectedSarsa(self.gamma, self.copied_rate(count), self.start), count)
