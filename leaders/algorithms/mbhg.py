"""MBHG: the hypergradient of a world that is learnt."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Unpack, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_choice, check_count, check_memory
from bilevel_envs.core.follower import capabilities_of
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import TabularResponse
from leaders.config import EstimatorConfig, Forms
from leaders.estimate import Estimate
from leaders.estimators.restarts import candidates
from leaders.estimators.returns import mean_return, return_errors
from leaders.estimators.trajectory import TrajectoryLeader
from leaders.exact.raw_parameters import RawParameters
from leaders.keywords import EstimatorKeywords
from leaders.learnt.learner import Exploration, Learner, Tried
from leaders.learnt.plan import Schedule

BATCH = 500  # transitions of a deployment
RATE = 0.1  # Adam's in the learnt world, at first
QUICK = ((16, 15), (4, 30), (2, 30))  # candidates kept, and steps of each
THOROUGH = ((24, 30), (6, 60), (2, 150))
FEWEST = 20  # episodes from which on a measured return decides
ERRORS = 3.0  # standard errors by which the learnt world's proposal must fall short to be taken back
SHORTFALL = 0.05  # share of the best θ's value in the learnt world, likewise
OFTEN = 3  # iterations in succession in which it must, for what is known after a few steps is soon revised
PATIENCE = 5  # iterations in which BC-HG then goes on alone


class FollowerNotAskedWarning(UserWarning):
    """Says that a learnt world has no answers of the follower's, and takes it for an optimal one."""


@dataclass(frozen=True)
class Deployment:
    """What a run found at a θ deployed.

    Attributes:
      mean, error: of the returns sampled; the error is infinite from few episodes.
      endless: whether no episode of the batch came to an end of its own.
      theta, policy: θ ``[*θ.shape]`` and the follower's g [S, B] there.
    """

    mean: float
    error: float
    endless: bool
    theta: Tensor
    policy: Tensor

    def together_with(self, other: Deployment) -> Deployment:
        """Both measurements of the same θ, weighed by their precision."""
        variances = self.error**2 + other.error**2
        share = self.error**2 / variances if variances > 0 else 0.5
        error = self.error * other.error / variances**0.5 if variances > 0 else 0.0
        return replace(self, mean=self.mean + share * (other.mean - self.mean), error=error)


def best_of(best: Deployment | None, now: Deployment, value: Callable[[Tensor, Tensor, str], float]) -> Deployment:
    """The better one of two deployments, by measured returns where both have them.

    Args:
      best: the best one so far; at the same θ the two are taken together.
      now: the newest.
      value: J_L of a θ under a policy in the learnt world, as in `Record.compared`; decides where returns do not.
    """
    if best is None:
        return now
    both = bool(np.isfinite(now.error) and np.isfinite(best.error))
    if torch.equal(now.theta, best.theta):
        return best.together_with(now) if both else min(best, now, key=lambda one: one.error)
    if both:
        return now if now.mean > best.mean else best
    ahead = value(now.theta, now.policy, "neutral") > value(best.theta, best.policy, "neutral")
    return now if ahead else best


@dataclass
class Record:
    """The best θ in force so far, to which a run goes back.

    Attributes:
      raw: its raw parameters, [n]; empty before anything was compared.
      mean, error: of its sampled returns; an infinite error where they decide nothing.
      theta, policy: θ ``[*θ.shape]`` and the follower's g [S, B] there.
      source: who proposed the θ that is in force, "start", "world", "bchg" or "record".
      patience: iterations in which the learnt world is not asked.
      short: iterations in succession in which the learnt world gave less for the θ in force than for the best one.
    """

    raw: Tensor = field(default_factory=lambda: torch.zeros(0))
    mean: float = 0.0
    error: float = 0.0
    theta: Tensor = field(default_factory=lambda: torch.zeros(0))
    policy: Tensor = field(default_factory=lambda: torch.zeros(0))
    source: str = "start"
    patience: int = 0
    short: int = 0

    def compared(self, now: Deployment, raw: Tensor, value: Callable[[Tensor, Tensor, str], float]) -> bool:
        """Compares the θ in force with the best one; whether the best one is to be put in its place.

        Args:
          now: what was found at the θ in force.
          raw: its raw parameters, [n].
          value: J_L of a θ ``[*θ.shape]`` under a policy [S, B] of the follower's in the learnt world, "neutral" or
            "optimistic". It decides where episodes do not end, so that few returns are known, each of them cut short:
            the best θ comes back where, three times in succession, the one in force would be worse even if all that is
            unknown were good.
        """
        measured = bool(np.isfinite(now.error))
        if not measured and not now.endless:
            return False
        if not len(self.raw):
            self._keep(now, raw)
            return False
        both = measured and bool(np.isfinite(self.error))
        if both:
            gain = now.mean - self.mean
            worse = gain + ERRORS * float(np.hypot(now.error, self.error)) < 0
        else:
            best = value(self.theta, self.policy, "neutral")
            gain = value(now.theta, now.policy, "neutral") - best
            falls_short = value(now.theta, now.policy, "optimistic") < best - SHORTFALL * abs(best)
            self.short = self.short + 1 if falls_short else 0
            worse = self.short >= OFTEN
        if self.source == "world" and worse:
            self.source, self.patience, self.short = "record", PATIENCE, 0
            return True
        if self.source == "record" and both:  # the same θ: its mean was the largest of several and may have been luck
            self.mean, self.error = (self.mean + now.mean) / 2, float(np.hypot(now.error, self.error)) / 2
        elif self.source != "record" and gain > 0:
            self._keep(now, raw)
        return False

    @property
    def deployment(self) -> Deployment | None:
        """What was found at the best θ in force; None before anything was compared."""
        if not len(self.raw):
            return None
        return Deployment(self.mean, self.error, not np.isfinite(self.error), self.theta, self.policy)

    def _keep(self, now: Deployment, raw: Tensor) -> None:
        self.raw, self.theta, self.policy = raw.clone(), now.theta.clone(), now.policy.clone()
        self.mean, self.error = now.mean, now.error


@dataclass
class Attempt:
    """What an outer iteration has cost so far: also where it failed or was interrupted, and was begun again.

    Attributes:
      iteration: its number.
      records: of the runs, as they were before it.
      solves: of the follower's problem, beside that of the last attempt at the θ in force, int [R].
      steps: of the environment, in each run.
    """

    iteration: int
    records: list[Record]
    solves: np.ndarray
    steps: int = 0


class MBHG(TrajectoryLeader):
    r"""Model-based hypergradients: keeps every transition, plans in the world that they describe, and explores it.

    ::

        each outer iteration:
            g ← follower's response to θ;   draw a batch with g
            fit the learnt world: counts, corrected by the follower's Bellman equations
            θ' ← the best θ if the unknown were good;   draw a batch there;   fit again
            θ ← the best θ if the unknown is like the known

    The best θ is searched for by successive halving: vertices of the parameterisation, random draws, the θ in force and
    earlier ones ascend the exact hypergradient of the learnt world, an ordinary table with one state more for the
    unknown. There the follower is solved for, and every few steps it is really asked: Q_F and V_F at any θ are one
    follower solve each and no environment step, and

    .. math::

        Q_F(s, b; \theta) - r_F(s, b; \theta) = \gamma_F \sum_{s'} p(s' | s, b) V_F(s'; \theta)

    is a linear equation in p for each θ asked about, which leaves no sampling error where it determines p.

    What it reads of the model: r_L and r_F, and where θ moves them p and ρ0, at visited pairs and transitions, as
    functions of θ. ``history["explored_value"]`` is J_L at θ', which can be bad, ``history["promised_value"]`` what
    the learnt world gave for θ.

    BC-HG proposes, too. Where the return measured at the learnt world's θ falls short of the best one measured, that
    one comes back into force and BC-HG goes on from there for five iterations. Where episodes do not end, so that no
    return is measured, J_L in the learnt world under the policies with which the follower answered decides instead: the
    best θ comes back where it has been ahead three times in succession, whatever the unknown may be worth.

    What the learnt world proposes in the last iteration is in force when ``learn`` returns, and nothing was drawn at it
    yet; ``best_deployed_theta`` is the best θ at which something was, also to explore. An iteration that fails or is
    interrupted leaves θ and the history as they were; the transitions drawn are kept, and the next iteration counts
    them.

    A follower that learns, is observed or is not optimal is not asked: the learnt world then has counts alone, takes
    the follower for an optimal one, and warns of it when it is made (``FollowerNotAskedWarning``).

    Each iteration draws two batches.

    Args:
        env: a ``BilevelWrapper`` around an environment with countable states.
        draws: random θ among the candidates of every search.
        vertices: whether the vertices of the parameterisation are.
        optimism: whether θ' is deployed; otherwise the second batch is drawn at θ, too.
        equations: whether the follower's Bellman equations correct the counts.
        ask_every: steps of the ascent between two questions to the follower; 0 for none on the way.

    References:
        Theorem 1 of arXiv:2603.14867 in a learnt world. Optimism about unvisited pairs: Brafman, Tennenholtz: R-MAX,
        Journal of Machine Learning Research 3 (2002). Successive halving: Jamieson, Talwalkar: arXiv:1502.07943.
    """

    name: ClassVar[str] = "mbhg"
    without: ClassVar[frozenset[str]] = frozenset({"exploration"})
    draws_contexts: ClassVar[bool] = False
    warns: ClassVar[bool] = False  # what it proposes does not hang on one estimate

    def __init__(
        self,
        env: gym.Env,
        *,
        draws: int = 60,
        vertices: bool = True,
        optimism: bool = True,
        equations: bool = True,
        ask_every: int = 15,
        **keywords: Unpack[EstimatorKeywords],
    ) -> None:
        for name, value in (("vertices", vertices), ("optimism", optimism), ("equations", equations)):
            check_choice(value, (True, False), name)
        draws, ask_every = check_count(draws, "draws", at_least=0), check_count(ask_every, "ask_every", at_least=0)
        own = {
            "draws": draws,
            "vertices": vertices,
            "optimism": optimism,
            "equations": equations,
            "ask_every": ask_every,
        }
        super().__init__(env, own, keywords, Forms({None: EstimatorConfig("bc_hg", batch_size=BATCH)}))
        self.check_unregularised()
        capabilities = capabilities_of(self.env.follower)
        asks = capabilities.optimal and capabilities.gives_values and not capabilities.learns
        if not asks:
            warnings.warn(
                f"{type(self).__name__}: {type(self.env.follower).__name__} cannot be asked what it would do at "
                "another θ; the learnt world has counts alone and takes it for an optimal follower. Silence this by "
                'warnings.simplefilter("ignore", leaders.FollowerNotAskedWarning)',
                FollowerNotAskedWarning,
                stacklevel=2,
            )
        how = Exploration(
            equations=equations and asks,
            asks=asks,
            schedule=Schedule(QUICK, RATE, ask_every),
            thorough=Schedule(THOROUGH, RATE, ask_every),
            start_moves=self._start_moves(),
        )
        self.optimism = optimism
        self._raw = RawParameters(self.policy, self.runs, self.env.theta_space.shape)
        moves = self._theta_moves()
        check_memory(float(draws) * self._raw.flat().numel(), "draws", draws, f"points of {self.runs} runs")
        starts = candidates(self.policy, self._raw.flat(), self.seeds, draws=draws, vertices=vertices)
        tried, preferences = Tried(self._tried_model, self._tried_response, self._entries()), self.env.preferences
        self.learners = [Learner(preferences, tried, self._raw, found, moves, how) for found in starts]
        self._records = [Record() for _ in self.seeds]
        self._best: list[Deployment | None] = [None] * self.runs
        self._promised = np.full(self.runs, np.nan)
        self._attempt = self._begun()

    @property
    def best_deployed_theta(self) -> np.ndarray:
        """The best θ deployed, in force or to explore, ``[*θ.shape]``, or ``[R, *θ.shape]`` for stacked runs.

        By the mean of at least 20 measured returns, which is noisy: the largest of many is too large on average. Where
        a batch holds fewer, by J_L in the learnt world under the policy with which the follower answered. The θ in
        force before anything was deployed.
        """
        own = zip(self._best, self._theta().detach(), strict=True)
        theta = np.stack([(now if best is None else best.theta).numpy() for best, now in own])
        return theta.copy() if self._stacked else theta[0].copy()

    def learnt_values(self) -> dict[str, np.ndarray]:
        """J_L of the best θ deployed in the world as it is known, under the follower's policy there, [R] each.

        "pessimistic": whatever is unknown goes on with the least reward that was seen, for ever, a lower bound but for
        the error of the counts; "neutral": unknown pairs are the mean of their state's known ones; "optimistic": they
        lead to more than the best that is known. They are equal where all that the follower reaches is known. NaN
        before anything was deployed.
        """
        return {
            completion: np.array(
                [
                    np.nan if best is None else learner.deployed_value(best.theta, best.policy, completion)
                    for best, learner in zip(self._best, self.learners, strict=True)
                ]
            )
            for completion in ("pessimistic", "neutral", "optimistic")
        }

    def _estimate(self, theta: Tensor, model: Any, best: Any) -> Estimate:
        if self._failed:  # nothing was put into force, but steps and answers were had
            self._records = [replace(record) for record in self._attempt.records]
            self._attempt.solves += 1
        else:
            self._attempt = self._begun()
        drawn = self._batch(theta, model.detach(), best)
        estimate = self._estimate_from(drawn, theta, model, best)
        self._attempt.steps += int(estimate.env_steps) - self.estimator_config.batch_size  # where p must be learnt
        theta, raw = theta.detach(), self._raw.flat()
        deployments = self._observed(drawn, best, theta)
        taken_back = [
            record.compared(now, at, learner.deployed_value)
            for record, now, at, learner in zip(self._records, deployments, raw, self.learners, strict=True)
        ]
        hopes = [
            learner.explore(here) if self._plans(record, back) and self.optimism and not learner.settled else None
            for learner, record, back, here in zip(self.learners, self._records, taken_back, raw, strict=True)
        ]
        elsewhere, explored = self._explored(theta, model.detach(), best, raw, hopes)
        self._observed(*elsewhere)
        promised, proposal = self._promised.copy(), raw.clone()
        for run, (learner, record, hope) in enumerate(zip(self.learners, self._records, hopes, strict=True)):
            self._promised[run] = np.nan
            if self._plans(record, taken_back[run]):
                proposal[run], self._promised[run] = learner.propose(raw[run])
                learner.chose(raw[run], hope, self._promised[run])
                record.source = "world"
            elif taken_back[run]:
                proposal[run] = record.raw
            else:
                record.source, record.patience = "bchg", record.patience - 1
        self._attempt.solves += [learner.spent() for learner in self.learners]
        return replace(
            estimate,
            env_steps=self._attempt.steps,
            follower_solves=self._attempt.solves.copy(),
            follower_steps=0 if explored is None else explored[1].steps,
            proposal=self._raw.named(proposal),
            moves=torch.tensor([record.source != "bchg" for record in self._records]),
            explored=explored,
            promised_value=promised,
        )

    def _observed(self, drawn: Rollout, best: TabularResponse, theta: Tensor) -> list[Deployment]:
        """What each run found at a θ ``[R, *θ.shape]``, from which it learns; the best is kept."""
        for run, learner in enumerate(self.learners):
            learner.observe(drawn, run, best, theta)
        mean, error = measured(drawn, self.env.preferences.gamma_leader)
        endless = ~(drawn.valid & drawn.terminated).any((1, 2))
        probs = best.policy.probs.expand(self.runs, -1, -1)
        found = [
            Deployment(mean[run], error[run], bool(endless[run]), theta[run].clone(), probs[run].clone())
            for run in range(self.runs)
        ]
        self._best = [
            best_of(before, now, learner.deployed_value)
            for before, now, learner in zip(self._best, found, self.learners, strict=True)
        ]
        return found

    @staticmethod
    def _plans(record: Record, taken_back: bool) -> bool:
        """Whether the learnt world proposes what comes next."""
        return not taken_back and not record.patience

    def _explored(
        self,
        theta: Tensor,
        fixed: TabularModel,
        best: TabularResponse,
        raw: Tensor,
        hopes: list[tuple[Tensor, float] | None],
    ) -> tuple[tuple[Rollout, TabularResponse, Tensor], tuple[TabularModel, TabularResponse] | None]:
        """The second batch with its response and θ; and the model and the response there, None where none explores."""
        if all(hope is None for hope in hopes):
            return (self._batch(theta, fixed, best), best, theta), None
        tried = torch.stack([raw[run] if hope is None else hope[0] for run, hope in enumerate(hopes)])
        there = self._raw.theta(tried).detach()
        model = self._tried_model(there).detach()
        response = cast(TabularResponse, self._response(there, model, best))
        for learner, hope in zip(self.learners, hopes, strict=True):
            learner.solves += hope is not None
        return (self._batch(there, model, response), response, there), (model, response)

    def _batch(self, theta: Tensor, fixed: TabularModel, best: TabularResponse) -> Rollout:
        """A batch at θ, which is counted."""
        drawn = self._drawn(theta, fixed, best)
        self._attempt.steps += self.estimator_config.batch_size
        return drawn

    def _begun(self) -> Attempt:
        """An iteration of which nothing was done."""
        records = [replace(record) for record in self._records]
        return Attempt(self.progress.iterations, records, np.zeros(self.runs, np.int64))

    @property
    def _failed(self) -> bool:
        """Whether the present iteration was begun before, without coming to its end."""
        return self._attempt.iteration == self.progress.iterations and self._attempt.steps > 0

    def _entries(self) -> int:
        """Numbers in the model's tables at one θ."""
        with self._in_its_contexts():
            model = self.env.model(self._theta().detach())
            return model.entries // model.runs

    def _tried_response(self, theta: Tensor) -> TabularResponse:
        """The follower's response at a θ that is asked about."""
        return cast(TabularResponse, self._response_at(theta))

    def _critic_state(self) -> dict[str, object]:
        return {
            "estimator": super()._critic_state(),
            "learnt": [learner.state_dict() for learner in self.learners],
            "records": [dict(vars(record)) for record in (self._attempt.records if self._failed else self._records)],
            "best": [None if best is None else dict(vars(best)) for best in self._best],
            "promised": torch.from_numpy(self._promised.copy()),
            "lost": (self._attempt.steps, torch.from_numpy(self._attempt.solves.copy())) if self._failed else None,
            "iteration": self.progress.iterations,
        }

    def _load_critic_state(self, state: dict[str, Any]) -> None:
        super()._load_critic_state(state["estimator"])
        for learner, saved in zip(self.learners, state["learnt"], strict=True):
            learner.load_state_dict(saved)
        self._records = [Record(**saved) for saved in state["records"]]
        if "best" in state:
            self._best = [None if best is None else Deployment(**best) for best in state["best"]]
        else:  # files of earlier versions hold the best θ in force alone
            self._best = [record.deployment for record in self._records]
        self._promised = state["promised"].numpy().copy()
        self._attempt = self._begun()
        if state.get("lost") is not None:  # files of earlier versions do not hold it
            self._attempt.steps, solves = state["lost"]
            self._attempt.iteration, self._attempt.solves = state["iteration"], solves.numpy().copy()


def measured(batch: Rollout, gamma: float) -> tuple[list[float], list[float]]:
    """Mean discounted return of the episodes that a batch begins, and its standard error; inf from few episodes."""
    error, episodes = return_errors(batch, gamma)
    return mean_return(batch, gamma).tolist(), torch.where(episodes >= FEWEST, error, torch.inf).tolist()
