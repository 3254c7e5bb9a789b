"""Best response of a table by soft Bellman backups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_count, keep_numbers
from bilevel_envs.core.follower import BestResponse, Capabilities, CutShort, check_model
from bilevel_envs.core.mdp import Model, Preferences
from bilevel_envs.worlds.tabular.kernels.systems import soft_policy_iteration
from bilevel_envs.worlds.tabular.large_planning import Stop, large_soft_policy_iteration
from bilevel_envs.worlds.tabular.model import Table, TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse
from bilevel_envs.worlds.tabular.policy_system import SOLVERS

MOST_NEWTON_STEPS = 200
TOLERANCE = 1e-10  # of β, where elimination solves
LARGE_TOLERANCE = 1e-6  # of (1 − γ) β, in tables whose systems are iterated: bounds |V_F − V*| by 1e-6 β


@dataclass(frozen=True)
class SoftValueIteration:
    r"""Solves V(s) = β log Σ_b exp(Q(s, b) / β), Q = r_F + γ_F E[V(s') if the episode goes on].

    By default Newton's method, which is soft policy iteration with one linear solve per step: some ten steps
    from cold, three or four from the previous response. With `rounds` and `sweeps`, the fixed schedule of the
    published code instead: each round freezes g = softmax(Q/β) and sweeps its evaluation equation `sweeps` times,
    from Q = 0.

    Gives g, log g, Q_F and V_F as tables, exact. Costs some ten linear solves cold and three warm. Residual: the
    largest violation of the equation, in units of r_F.

    Attributes:
      beta: overrides the problem's β, for the follower and for all who ask it; None keeps the problem's.
      tol: largest soft Bellman residual accepted, relative to β: g depends on Q_F / β. None for 1e-10, and in tables of
        more than 500 states, where digits cost time, for 1e-6 (1 − γ_F), which moves no V_F by more than 1e-6 β, and so
        no probability by more than 5e-7. Where rounding leaves more than `tol`, as much as that is accepted, too.
      rounds: policy refreshes of the fixed schedule (published: 100).
      sweeps: backups per round (published: 5).
      solver: of the linear systems. "direct": elimination in a band; "bicgstab", "gmres" or "splu": BiCGSTAB or GMRES
        with an incomplete factor, or SciPy's sparse elimination. "auto" is direct up to 500 states, and above tries
        the others in that order.

    Source: Newton's form is e.g. Geist, Scherrer, Pietquin, arXiv:1901.11275; the schedule is that of
    arXiv:2603.14867's four rooms.
    """

    beta: float | None = None
    tol: float | None = None
    rounds: int | None = None
    sweeps: int | None = None
    solver: str = "auto"

    def __post_init__(self) -> None:
        if self.beta is not None:
            keep_numbers(self, "beta", above=0, remedy="β is the follower's entropy coefficient")
        if self.tol is not None:
            keep_numbers(self, "tol", above=0)
        if (self.rounds is None) != (self.sweeps is None):
            raise ValueError(
                "`rounds` and `sweeps` make the fixed schedule together: give both (published: 100 and 5) or neither, "
                f"got rounds={self.rounds}, sweeps={self.sweeps}"
            )
        check_choice(self.solver, ("auto", "direct", *SOLVERS), "solver")
        if self.rounds is not None:
            check_count(self.rounds, "rounds")
            check_count(self.sweeps, "sweeps")

    @property
    def capabilities(self) -> Capabilities:
        """Optimal unless it follows the fixed schedule."""
        return Capabilities(("tabular",), optimal=self.rounds is None, cuts_short=True)

    def best_response(
        self, model: Model, preferences: Preferences, init: TabularResponse | None = None
    ) -> TabularResponse:
        """The soft-optimal response to a table.

        Args:
          model: a `TabularModel`; its gradients are not followed.
          preferences: γ_F, and β unless this follower has its own.
          init: an earlier response; Newton begins at its V_F (the fixed schedule always begins at 0).

        Raises:
          TypeError: if `model` is not a table.
          RuntimeError: if the residual does not fall below `tol`, because β is too small beside V_F for float64.
        """
        model = check_model(model, TabularModel, "SoftValueIteration")
        beta = preferences.beta if self.beta is None else self.beta
        model, gamma = model.detach(), preferences.gamma_follower
        if self.rounds is not None and self.sweeps is not None:
            nothing = torch.zeros(model.runs, model.states, model.actions, dtype=torch.float64)
            return scheduled_response(model, gamma, beta, self.rounds, self.sweeps, nothing)
        return self._newton(model, gamma, beta, init)

    def cut_short(
        self, model: Model, preferences: Preferences, init: TabularResponse | None, how: CutShort
    ) -> TabularResponse:
        """The response after so many policy refreshes, from `how.first` or from the table that `init` reached.

        The memory holds the table to go on from, and how many first tables were drawn.
        """
        model = check_model(model, TabularModel, "Truncated(SoftValueIteration())").detach()
        beta = preferences.beta if self.beta is None else self.beta
        memory = init.solver_state if init is not None else None
        usable = memory is not None and memory["table"].shape == (model.runs, model.states, model.actions)
        calls = int(memory["calls"]) if memory is not None and "calls" in memory else 0
        carried = memory["table"] if memory is not None and usable and how.carries else None
        table = how.first(model.runs, (model.states, model.actions), calls) if carried is None else carried
        best = scheduled_response(model, preferences.gamma_follower, beta, how.rounds, how.sweeps, table)
        assert best.solver_state is not None
        best.solver_state["calls"] = torch.tensor(calls + 1)
        return best

    def _newton(self, model: TabularModel, gamma: float, beta: float, init: TabularResponse | None) -> TabularResponse:
        v = np.zeros((model.runs, model.states))
        if init is not None and init.v.values.shape[-1] == model.states and len(init.v.values) in (1, model.runs):
            v[:] = init.v.values.numpy()
        reward, structure = model.r_follower.contiguous().numpy(), model.structure
        tol = self.tol
        if tol is None:
            tol = LARGE_TOLERANCE * (1 - gamma) if model.is_large else TOLERANCE
        direct = self.solver == "direct" or (self.solver == "auto" and not model.is_large)
        if direct:
            moves, band = structure.stepping, structure.stepping.band
            system = (moves.successor, moves.going_on, gamma, beta, band.position, band.width)
            tables = soft_policy_iteration(reward, *system, v, tol, MOST_NEWTON_STEPS, band.border)
        else:
            pattern, stop = structure.pattern, Stop(tol, MOST_NEWTON_STEPS)
            tables = large_soft_policy_iteration(reward, structure.arrays, gamma, beta, pattern, v, stop, self.solver)
        q, soft_v, log_probs, residual, converged = (torch.from_numpy(table) for table in tables)
        if converged.all():
            return BestResponse(BoltzmannPolicy(log_probs), Table(q), Table(soft_v), residual, optimal=True)
        stopped = float(residual[~converged].max())
        raise RuntimeError(
            f"soft policy iteration stopped at a residual of {stopped:.3g}, which is {stopped / beta:.3g} β; `tol` "
            f"accepts {tol:g} β. V_F reaches {float(soft_v.abs().max()):.3g}: beside that β = {beta:g} may be too "
            "small for float64. Raise `beta`, take constants out of the follower's rewards, or raise `tol`"
        )


def scheduled_response(
    model: TabularModel, gamma: float, beta: float, rounds: int, sweeps: int, table: Tensor
) -> TabularResponse:
    """The response after a fixed number of rounds and sweeps.

    Args:
      model: the table, without gradients.
      gamma: γ_F.
      beta: β.
      rounds: policy refreshes.
      sweeps: backups per round.
      table: where it begins, [R|1, S, B]: Q_F plus β times the entropy of its own state's policy.

    Returns:
      A response that is not called optimal; its memory holds the table reached.
    """
    for _ in range(rounds):
        log_probs = torch.log_softmax(table / beta, -1)
        probs = log_probs.exp()
        bonus = -beta * (probs * log_probs).sum(-1, keepdim=True)
        for _ in range(sweeps):
            v = (probs * table).sum(-1)
            table = model.r_follower + bonus + gamma * model.expected_next(v)
    q = table - bonus
    soft_v = beta * torch.logsumexp(q / beta, -1)
    residual = (model.r_follower + gamma * model.expected_next(soft_v) - q).abs().amax((-2, -1))
    policy = BoltzmannPolicy(torch.log_softmax(q / beta, -1))
    return BestResponse(policy, Table(q), Table(soft_v), residual, optimal=False, solver_state={"table": table})
