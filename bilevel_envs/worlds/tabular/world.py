"""Worlds of tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_finite
from bilevel_envs.core.follower import BestResponse, FollowerError, Policy
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.checks import check_numbers, check_table_policy, no_distribution, table_in
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.tabular.rollout import table_rollout
from bilevel_envs.worlds.world import World


class TabularWorld(World[TabularModel, BoltzmannPolicy]):
    """A finite MDP as tables."""

    name = "tabular"
    environment = "bilevel_envs.worlds.tabular.env:TabularEnv"
    default_follower = "soft_value_iteration"
    countable = True

    def rollout(
        self,
        model: TabularModel,
        policy: BoltzmannPolicy,
        noise: Noise,
        *,
        rows: int,
        horizon: int,
        time_limit: int | None,
        whole_episodes: bool,
    ) -> Rollout:
        """Drawn from the tables."""
        return table_rollout(
            model, policy, noise, rows=rows, horizon=horizon, time_limit=time_limit, whole_episodes=whole_episodes
        )

    def check_policy(self, policy: Policy, runs: int, model: TabularModel) -> None:
        """Refuses policies of other worlds, and tables of another size or that are no distribution."""
        check_table_policy(policy, runs, model)

    def check_observation(self, observation: np.ndarray, model: TabularModel) -> None:
        """Refuses what are no numbers of states."""
        check_numbers(torch.from_numpy(observation), observation.shape[2:], model.states, "observations", "states")

    def check_batch(self, batch: Rollout, model: TabularModel) -> None:
        """States and actions must be whole numbers in the table's range."""
        check_finite(batch.r_leader, "leader_reward")
        check_finite(batch.r_follower, "reward")
        columns = {"observations": batch.state, "observations that steps led to": batch.next_state}
        for name, column in columns.items():
            check_numbers(column, column.shape[3:], model.states, name, "states")
        check_numbers(batch.action, batch.action.shape[3:], model.actions, "actions", "actions")

    def check_response(self, best: BestResponse, runs: int, model: TabularModel) -> None:
        """Tables must have the world's size, and policies be distributions in every state."""
        super().check_response(best, runs, model)
        size = (model.states, model.actions)
        for name, part, held, wanted in (
            ("policy", best.policy, "log_probs", size),
            ("actual_policy", best.actual_policy, "log_probs", size),
            ("q", best.q, "values", size),
            ("v", best.v, "values", size[:1]),
        ):
            table = table_in(part, held)
            if table is None:
                continue
            if tuple(table.shape) not in ((1, *wanted), (runs, *wanted)):
                raise FollowerError(f"its {name} must be a table of shape {[runs, *wanted]}, got {list(table.shape)}")
            missed = no_distribution(table.exp()) if held == "log_probs" else None
            if missed is not None:
                raise FollowerError(f"its {name} must be a distribution in every state; {missed}")

    def inputs(self, observations: Callable[[int], np.ndarray], model: TabularModel) -> Callable[[Tensor], Tensor]:
        """One-hot numbers of states, or what the follower sees of them."""
        table = torch.from_numpy(np.asarray(observations(model.states))).double()
        table = table if table.shape[1:] else torch.eye(model.states, dtype=torch.float64)
        return lambda state: table[state]

    def knows_rewards(self, observations: Callable[[int], np.ndarray], model: TabularModel) -> bool:
        """Where the follower sees the number of a state."""
        return observations(model.states).ndim == 1

    def stored_reward(self, model: TabularModel, run: int, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Looked up."""
        table = model.r_follower[run if len(model.r_follower) > 1 else 0].numpy()
        return table[observation[..., 0].astype(int), action[..., 0].astype(int)]


WORLD = TabularWorld()
