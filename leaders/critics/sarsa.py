"""Q_L as a table learnt by temporal differences, one transition after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs._checks import check_choice, check_number
from bilevel_envs.follower import BestResponse
from bilevel_envs.model import Model, Rollout
from bilevel_envs.noise import Noise
from bilevel_envs.policies import BoltzmannPolicy
from leaders.critics.exact import table_values

STARTS = ("zeros", "normal")


class _LearnedTable:
    """A table [R, S, B] that is kept from batch to batch."""

    def __init__(self, gamma: float, learning_rate: float | np.ndarray, start: str = "zeros") -> None:
        for rate in np.atleast_1d(learning_rate).ravel():
            check_number(rate, "critic_learning_rate", above=0, at_most=1)
        check_choice(start, STARTS, "start")
        self.gamma, self.learning_rate, self.start = gamma, learning_rate, start
        self.table = np.zeros((0, 0, 0))

    def values(self, batch: Rollout, policy: BoltzmannPolicy) -> tuple[Tensor, Tensor, Tensor]:
        """Look-ups; V_L is the expectation of Q_L under g."""
        return table_values(torch.from_numpy(self.table), batch, policy)

    def state_dict(self) -> dict[str, Any]:
        """The table."""
        return {"table": torch.from_numpy(self.table.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the table back."""
        self.table = state["table"].numpy().copy()

    def _begin(self, policy: BoltzmannPolicy, noise: Noise) -> None:
        shape = tuple(policy.log_probs.shape[-2:])
        if self.table.shape != (noise.runs, *shape):
            self.table = noise.normal(*shape) if self.start == "normal" else np.zeros((noise.runs, *shape))

    def _copied(self, copy: Any, count: int) -> Any:
        copy.table = np.concatenate([self.table] * count)
        return copy

    def _copied_rate(self, count: int) -> float | np.ndarray:
        rate = self.learning_rate
        return np.tile(rate, count) if np.ndim(rate) else rate


class Sarsa(_LearnedTable):
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

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """One shuffled pass over the batch."""
        self._begin(best.policy, noise)
        rows, horizon = batch.state.shape[1:]
        self.pass_over(batch, best.policy, noise.permutation(rows * horizon))

    def pass_over(self, batch: Rollout, policy: BoltzmannPolicy, order: np.ndarray) -> None:
        """Updates once for each transition, in the order given: entry k·N + n is step k of row n, [R, N·T]."""
        runs, rows, horizon = batch.state.shape
        _, states, actions = self.table.shape
        pair = (batch.state * actions + batch.action).numpy()
        offset = np.arange(runs)[:, None, None] * states * actions
        following = np.concatenate([pair[..., 1:], pair[..., -1:]], -1)
        cut, ends = batch.cut.numpy(), batch.terminated.numpy()
        constant = batch.r_leader.numpy()
        if not self.cut_is_end and cut.any():
            v_next = table_values(torch.from_numpy(self.table), batch, policy)[2].numpy()
            constant = constant + np.where(cut, self.gamma * v_next, 0.0)
        decay = self.gamma * ~(ends | cut)
        rate = self.learning_rate * np.ones(runs)

        def ordered(x: np.ndarray) -> np.ndarray:
            """[R, N, T] → [N·T, R] in the order of the updates."""
            flat = x.transpose(0, 2, 1).reshape(runs, rows * horizon)
            return np.ascontiguousarray(np.take_along_axis(flat, order, 1).T)

        table = self.table.reshape(-1)
        steps = (ordered(x) for x in (pair + offset, following + offset, constant, decay, batch.valid.numpy()))
        for here, there, reward, factor, valid in zip(*steps, strict=True):
            old = table[here]
            table[here] = old + rate * valid * (reward + factor * table[there] - old)

    def copies(self, count: int) -> Sarsa:
        """`count` tables for each run."""
        return self._copied(Sarsa(self.gamma, self._copied_rate(count), self.start, self.cut_is_end), count)


class ExpectedSarsa(_LearnedTable):
    """Q_L(s, b) += η (r_L + γ_L Σ_b' g(b'|s') Q_L(s', b') − Q_L(s, b)), from the last step back to the first.

    The order carries a late reward back along its whole episode in one pass. Nothing is special where the batch
    cuts an episode: V_L(s') is there, too.

    Args:
      gamma: γ_L.
      learning_rate: η in (0, 1], a number or one per run.
      start: first table: "zeros" or "normal".
    """

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """One backward pass over the batch."""
        self._begin(best.policy, noise)
        runs, rows, horizon = batch.state.shape
        states, actions = self.table.shape[1:]

        def backward(x: np.ndarray) -> np.ndarray:
            """[R, N, T, ...] → [T·N, R, ...], last steps first."""
            turned = np.moveaxis(x[:, :, ::-1], (2, 1), (0, 1))
            return np.ascontiguousarray(turned).reshape(horizon * rows, *turned.shape[2:])

        run = np.arange(runs)[:, None, None]
        here = backward((run * states + batch.state.numpy()) * actions + batch.action.numpy())
        there = backward(run * states + batch.next_state.numpy())
        probs = best.policy.probs.expand(runs, -1, -1).reshape(-1, actions).numpy()[there]
        reward = backward(batch.r_leader.numpy())
        factor = (self.gamma * ~backward(batch.terminated.numpy()))[..., None] * probs
        rate = self.learning_rate * backward(batch.valid.numpy())
        flat, by_state = self.table.reshape(-1), self.table.reshape(-1, actions)
        for pair, state, g, r, eta in zip(here, there, factor, reward, rate, strict=True):
            old = flat[pair]
            flat[pair] = old + eta * (r + np.einsum("rb,rb->r", g, by_state[state]) - old)

    def copies(self, count: int) -> ExpectedSarsa:
        """`count` tables for each run."""
        return self._copied(ExpectedSarsa(self.gamma, self._copied_rate(count), self.start), count)
