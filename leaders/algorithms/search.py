"""Leaders that use sampled returns alone: baselines for hypergradients at equal budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_count, check_memory
from bilevel_envs.core.follower import BestResponse, capabilities_of
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from leaders.config import LeaderConfig, changed
from leaders.estimate import Estimate
from leaders.estimators.returns import mean_return
from leaders.estimators.trajectory import FEW, whole_episode_horizon
from leaders.exact.raw_parameters import RawParameters
from leaders.keywords import accepted
from leaders.leader import Leader


class SearchLeader(Leader):
    """A leader that tries decisions and compares what they bring.

    Every trial asks the follower for a response and samples whole episodes; both are counted. A planner answers at the
    present θ, too, for the history's exact value, which does not count. A follower that learns is asked in trials
    alone: what the history says of the follower, `leader_value_actual` included, is then of its last response.

    Args:
      env: the environment with its follower.
      own: the subclass's own arguments.
      keywords: the generated ones.
      episodes: whole episodes per trial.
    """

    differentiates: ClassVar[bool] = False
    draws_contexts: ClassVar[bool] = False
    ascends: ClassVar[bool] = False  # whether it moves by a gradient, to which a regulariser's may be added

    def __init__(self, env: gym.Env, own: Mapping[str, object], keywords: Mapping[str, object], episodes: int) -> None:
        given = accepted(type(self), {**own, "episodes": episodes, **keywords})
        super().__init__(env, changed(LeaderConfig(), given), given)
        self.episodes = check_count(episodes, "episodes")
        check_memory(float(self.runs) * self.episodes * FEW, "episodes", episodes, f"trials of {self.runs} runs")
        self._trial_steps = 0  # of followers that learn, since the last outcome
        self._last: BestResponse | None = None  # of the trials
        if not self.ascends:
            self.check_unregularised()
        self._raw = RawParameters(self.policy, self.runs, self.env.theta_space.shape)

    def _estimated(self, theta: Tensor, model: Model, fixed: Model) -> tuple[BestResponse, Estimate]:
        if not capabilities_of(self.env.follower).learns:
            return super()._estimated(theta, model, fixed)
        estimate = self._estimate(theta, model, self.progress.best)
        assert self._last is not None  # every iteration has a trial
        return replace(self._last, optimal=False, steps=0), estimate  # it is not at θ, and its steps have been counted

    def _estimate(self, theta: Tensor, model: Model, best: BestResponse | None) -> Estimate:
        raise NotImplementedError

    def _trial(self, flat: Tensor, start: BestResponse | None, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sampled return at raw parameters [R, n], and the environment steps it took, [R] each; counts the follower's.

        A follower that learns goes on learning from trial to trial.
        """
        with torch.no_grad():
            theta = self._raw.theta(flat)
        best = self._last = self._response_at(theta, start)
        self._trial_steps += best.steps
        horizon = whole_episode_horizon(self.env.preferences)
        batch = self.env.rollout(theta, best, noise, rows=self.episodes, horizon=horizon, whole_episodes=True)
        return mean_return(batch, self.env.preferences.gamma_leader), batch.valid.sum((1, 2))

    def _outcome(
        self,
        returns: list[Tensor],
        steps: list[Tensor],
        surrogate: Tensor | None = None,
        proposal: Tensor | None = None,
    ) -> Estimate:
        """The estimate of an iteration of so many trials; `proposal` is where the raw parameters go, [R, n]."""
        nothing = torch.zeros(self.runs, dtype=torch.float64)
        spent, self._trial_steps = self._trial_steps, 0
        return Estimate(
            nothing if surrogate is None else surrogate,
            leader_return=torch.stack(returns).mean(0),
            env_steps=torch.stack(steps).sum(0),
            episodes=len(returns) * self.episodes,
            follower_solves=len(returns) - 1,  # beside the one that an iteration counts
            follower_steps=spent,
            proposal=None if proposal is None else self._raw.named(proposal),
        )
