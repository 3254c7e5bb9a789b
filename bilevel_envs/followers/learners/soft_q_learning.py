"""A follower that learns from interaction alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from bilevel_envs.core.checks import check_seed, keep_counts, keep_numbers
from bilevel_envs.core.follower import BestResponse, Capabilities, CutShort, check_model
from bilevel_envs.core.mdp import Model, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.kernels.critics import soft_q_pass
from bilevel_envs.worlds.tabular.model import Table, TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.tabular.rollout import table_rollout


@dataclass(frozen=True)
class SoftQLearning:
    r"""Tabular soft Q-learning: Q(s, b) += η (r_F + γ_F β log Σ_b' exp(Q(s', b') / β) − Q(s, b)).

    The table's transitions are drawn, never read. In each of `rounds` rounds the follower acts with
    softmax(Q/β), mixed with a share of uniform actions, and then learns from what it met, from the last step back; η
    falls linearly to 0. A next response begins with the table of the last one. Its answer is not called optimal.

    Gives g, log g, Q_F and V_F as tables, as far as learnt. Costs `rounds` · `rows` · `horizon` steps per response.
    Residual: its largest temporal-difference error in the last round.

    Attributes:
      beta: overrides the problem's β; None keeps the problem's.
      rounds: rounds of acting and learning per response.
      rows: episodes side by side in a round.
      horizon: steps of each row in a round.
      learning_rate: first η, in (0, 1].
      exploration: share of uniform actions, in [0, 1].
      seed: run i draws from the stream of (seed, i).

    Source: Haarnoja, Tang, Abbeel, Levine, Reinforcement learning with deep energy-based policies (2017), as a table.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(("tabular",), cuts_short=True)

    beta: float | None = None
    rounds: int = 50
    rows: int = 10
    horizon: int = 100
    learning_rate: float = 0.5
    exploration: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beta is not None:
            keep_numbers(self, "beta", above=0, remedy="β is the follower's entropy coefficient")
        keep_counts(self, "rounds", "rows", "horizon")
        keep_numbers(self, "learning_rate", above=0, at_most=1)
        keep_numbers(self, "exploration", at_least=0, at_most=1)
        object.__setattr__(self, "seed", check_seed(self.seed))

    def best_response(self, model: Model, preferences: Preferences, init: BestResponse | None = None) -> BestResponse:
        """What the follower has learnt after `rounds` more rounds; the residual is its largest error in the last one.

        Args:
          model: a `TabularModel`, from which transitions are drawn.
          preferences: γ_F, and β unless this follower has its own.
          init: an earlier response, whose table it goes on with.

        Raises:
          TypeError: if `model` is not a table.
        """
        model = check_model(model, TabularModel, "SoftQLearning")
        world, gamma = model.detach(), preferences.gamma_follower
        beta = preferences.beta if self.beta is None else self.beta
        shape = (world.runs, world.states, world.actions)
        table, before = np.zeros(shape), 0
        if init is not None and init.solver_state is not None and tuple(init.solver_state["table"].shape) == shape:
            table, before = init.solver_state["table"].numpy().copy(), int(init.solver_state["responses"])
        noise = Noise([[self.seed, run, before] for run in range(world.runs)])
        largest = np.zeros(world.runs)
        for done in range(self.rounds):
            own = torch.softmax(torch.from_numpy(table) / beta, -1)
            acting = BoltzmannPolicy(((1 - self.exploration) * own + self.exploration / world.actions).log())
            batch = table_rollout(world, acting, noise, rows=self.rows, horizon=self.horizon)
            state, action, following = batch.state.numpy(), batch.action.numpy(), batch.next_state.numpy()
            reward, valid = batch.r_follower.numpy(), batch.valid.numpy()
            decay = (gamma * (~batch.terminated).double()).numpy()
            rate = self.learning_rate * (1 - done / self.rounds)
            largest = soft_q_pass(table, state, action, following, reward, decay, valid, beta, rate)
        q = torch.from_numpy(table)
        return BestResponse(
            policy=BoltzmannPolicy(torch.log_softmax(q / beta, -1)),
            q=Table(q),
            v=Table(beta * torch.logsumexp(q / beta, -1)),
            residual=torch.from_numpy(largest),
            optimal=False,
            solver_state={"table": q, "responses": torch.tensor(before + 1)},
            steps=self.rounds * self.rows * self.horizon,
        )

    def cut_short(
        self, model: Model, preferences: Preferences, init: BestResponse | None, how: CutShort
    ) -> BestResponse:
        """The response after so many rounds of acting and learning, from Q = 0 or from `init`'s."""
        return replace(self, rounds=how.rounds).best_response(model, preferences, init if how.carries else None)
