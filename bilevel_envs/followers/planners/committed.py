"""A follower of a game that plans as if it moved before it sees the leader's next draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from bilevel_envs.core.checks import keep_counts, keep_numbers
from bilevel_envs.core.follower import BestResponse, Capabilities, CutShort, check_model
from bilevel_envs.core.mdp import Model, Preferences
from bilevel_envs.worlds.tabular.model import Table, TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse


@dataclass(frozen=True)
class Committed:
    r"""Iterates Q(s, a, b) = r_F + γ_F β log Σ_b' exp(Σ_a' f(a', s') Q(s', a', b') / β), from the last table on.

    The mean over the leader's next move stands *inside* the logarithm: in its plans the follower chooses b' before it
    sees a', while the policy that it is given, softmax(Q(s, a, ·)/β), does see a. This is what the published code of
    the toy Markov game iterates; it is not the best response, whose mean stands outside (`SoftValueIteration`), and
    values lie below its own. Where the game's moves are random, the mean is over the next state, too.

    Gives g, log g, Q_F and V_F as tables, of its own equation. Costs `sweeps` backups at most. Residual: the last
    change of Q_F.

    Attributes:
      beta: overrides the problem's β; None keeps the problem's.
      sweeps: at most so many (published: 1,000).
      tol: stops when no entry of Q changes by more than `tol` β (published: 1e-6 at β = 0.05, the default).

    Source: the follower of arXiv:2603.14867's toy Markov game, as published.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(("tabular",), cuts_short=True)

    beta: float | None = None
    sweeps: int = 1_000
    tol: float = 2e-5

    def __post_init__(self) -> None:
        if self.beta is not None:
            keep_numbers(self, "beta", above=0, remedy="β is the follower's entropy coefficient")
        keep_counts(self, "sweeps")
        keep_numbers(self, "tol", above=0)

    def best_response(
        self, model: Model, preferences: Preferences, init: TabularResponse | None = None
    ) -> TabularResponse:
        """The response to a game's table.

        Args:
          model: a `TabularModel` over (s, a); its gradients are not followed.
          preferences: γ_F, and β unless this follower has its own.
          init: an earlier response, at whose Q_F it begins; at 0 without one.

        Raises:
          TypeError: if `model` is not a table.
        """
        model = check_model(model, TabularModel, "Committed")
        model, gamma = model.detach(), preferences.gamma_follower
        beta = preferences.beta if self.beta is None else self.beta
        goes_on = model.expected_next(torch.ones(model.runs, model.states, dtype=torch.float64))
        q = torch.zeros(model.runs, model.states, model.actions, dtype=torch.float64)
        if init is not None and init.q.values.shape == q.shape:
            q = init.q.values
        change = torch.full((model.runs,), np.inf, dtype=torch.float64)
        for _ in range(self.sweeps):
            expected = torch.stack([model.expected_next(column) for column in q.unbind(-1)], -1)
            new = model.r_follower + gamma * goes_on * beta * torch.logsumexp(expected / beta, -1)
            change, q = (new - q).abs().amax((-2, -1)), new
            if change.max() <= self.tol * beta:
                break
        v = beta * torch.logsumexp(q / beta, -1)
        policy = BoltzmannPolicy(torch.log_softmax(q / beta, -1))
        return BestResponse(policy, Table(q), Table(v), change, optimal=False)

    def cut_short(
        self, model: Model, preferences: Preferences, init: TabularResponse | None, how: CutShort
    ) -> TabularResponse:
        """The response after so many sweeps at most, from Q_F = 0 or from `init`'s."""
        return replace(self, sweeps=how.rounds).best_response(model, preferences, init if how.carries else None)
