"""Q_L by the backup of a Stackelberg game at every state: Bi-AC's critic."""

from __future__ import annotations

import numpy as np

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_count
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.kernels.critics import stage_game
from bilevel_envs.worlds.tabular.policy import TabularResponse
from leaders.critics.sarsa import LearnedTable


class StageGame(LearnedTable):
    """Q_L(s, a, b) += η (r_L + γ_L max_a' Q_L(s', a', b*(s', a')) − Q_L(s, a, b)), b* the follower's likeliest reply.

    The backup of a leader that commits anew in every state: it ignores the leader's own policy, to which the follower
    replies, and so is no evaluation of it.

    Args:
      gamma: γ_L.
      learning_rate: η in (0, 1], a number or one per run.
      start: first table: "zeros" or "normal".
      leader_actions: A, how many moves the leader has in each state of the game.

    Source: the critic called Bi-AC in arXiv:2603.14867.
    """

    def __init__(
        self, gamma: float, learning_rate: float | np.ndarray, start: str = "zeros", leader_actions: int = 2
    ) -> None:
        super().__init__(gamma, learning_rate, start)
        self.leader_actions = check_count(leader_actions, "leader_actions")

    def fit(self, batch: Rollout, best: TabularResponse, model: Model | None, noise: Noise) -> None:
        """One backward pass over the batch."""
        self.begin(best.policy, noise)
        decay = self.gamma * (~batch.terminated).double()
        state, action, following = batch.state.numpy(), batch.action.numpy(), batch.next_state.numpy()
        reward, valid, answer = batch.r_leader.numpy(), batch.valid.numpy(), best.policy.log_probs.argmax(-1).numpy()
        where = (state, action, following, reward, decay.numpy(), valid)
        stage_game(self.table, *where, answer, self.leader_actions, self.rates())

    def copies(self, count: int) -> StageGame:
        """`count` tables for each run."""
        return self.copied(StageGame(self.gamma, self.copied_rate(count), self.start, self.leader_actions), count)
