"""What one run has learnt of a table, and the decisions that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import TabularResponse
from leaders.critics.empirical_model import EmpiricalModel
from leaders.exact.raw_parameters import RawParameters
from leaders.exact.tables import leader_value
from leaders.learnt.equations import Answers
from leaders.learnt.part import Part
from leaders.learnt.plan import Planner, Schedule, Tables
from leaders.learnt.world import Knowledge, LearntWorld, Supposed, knowledge

KEPT = 400  # answers of the follower's that its equations are made of
WORK = 2**28  # entries of tables that a search may solve for: in large worlds it has fewer candidates and steps
FEWEST = 30  # evaluations that it always has
LARGE = 2**12  # pairs from which on what was not visited is lumped
THOROUGH = 6  # every so many searches for what is proposed are thorough
POOL = 4  # earlier decisions among the candidates
ALIKE = 0.3  # probability of a state's unknown actions up to which they are taken to be like its known ones
NARROW = 0.01  # share by which the optimistic world may promise more where exploration has done its work
SETTLED = 3  # times in succession
# What a follower that cannot be asked is taken to think of an action that was never seen: V_F less so many β.
RELUCTANCE = {"optimistic": 1.0, "neutral": 5.0, "pessimistic": 5.0}


@dataclass(frozen=True)
class Exploration:
    """How a learnt world is explored.

    Attributes:
      equations: whether the follower's Bellman equations correct the frequencies.
      asks: whether the follower can be asked for its response at any θ.
      schedule: of most searches.
      thorough: of every sixth search for what is proposed.
      start_moves: whether θ moves the first state.
    """

    equations: bool
    asks: bool
    schedule: Schedule
    thorough: Schedule
    start_moves: bool


@dataclass(frozen=True)
class Tried:
    """What can be had at a θ that is tried and not deployed.

    Attributes:
      model: θ [C, ...] → the environment's model, with gradients where θ has them.
      response: θ [C, ...] → the follower's response.
      entries: numbers in the model's tables at one θ.
    """

    model: Callable[[Tensor], TabularModel]
    response: Callable[[Tensor], TabularResponse]
    entries: int


class Learner:
    """Counts, asks and plans for one run.

    Args:
      preferences: γ_L, γ_F and β.
      tried: the model and the follower's response at a θ.
      parameters: of the leader's policy.
      candidates: raw parameters with which every plan begins, beside those in force, [K, n].
      theta_moves: whether θ moves the transitions.
      how: it explores.
    """

    def __init__(
        self,
        preferences: Preferences,
        tried: Tried,
        parameters: RawParameters,
        candidates: Tensor,
        theta_moves: bool,
        how: Exploration,
    ) -> None:
        self.preferences, self.tried = preferences, tried
        self.parameters, self.candidates, self.how = parameters, candidates, how
        self.counts = EmpiricalModel(theta_moves, everywhere=True)
        self.planner = Planner(parameters.theta, self._ask)
        self.solves = 0  # questions to the follower since they were last counted
        self.narrow = 0
        self.largest, self.worst, self.top = 1.0, 0.0, 0.0
        self.pool: list[Tensor] = []
        self._proposals = 0
        self._visited = 0  # pairs, when the last decision was made
        self._starts = np.zeros(0)
        self._answers: tuple[Tensor, ...] = ()  # Q_F [M, S, B], V_F [M, S] and r_F [M, S, B] at the θ asked about last
        self._of_candidates: Tables | None = None
        self._steps = np.zeros((0, 2), np.int64)  # from states of visited pairs to states that these may lead to
        self._unknown = np.zeros(0)  # probability of unknown actions in each state, under the last deployed g

    @property
    def settled(self) -> bool:
        """Whether the optimistic world has promised hardly more than the neutral one, and shown nothing new."""
        return self.narrow >= SETTLED

    def observe(self, batch: Rollout, run: int, best: TabularResponse, theta: Tensor) -> None:
        """Learns from a deployment: a batch of its run, the follower's response and θ ``[R, *θ.shape]``."""
        states, actions = best.policy.probs.shape[-2:]
        own = batch.of_run(run)
        self.counts.add(own, states, actions)
        if not len(self._starts):
            self._starts = np.zeros(states)
        np.add.at(self._starts, own.state[own.starts].numpy(), 1.0)
        self.largest = max(self.largest, float((own.r_leader.abs() * own.valid).max()))
        visited = self.counts.visits[0].sum(-1) > 0
        probs = best.policy.probs
        self._unknown = (probs[min(run, len(probs) - 1)].numpy() * ~visited).sum(-1)
        if self.counts.theta_moves:
            self._steps = np.unique(
                np.concatenate([self._steps, self._possible(theta[run : run + 1], visited)]), axis=0
            )
        if self.how.asks:
            q, v = best.q.values, best.v.values
            self._remember(theta[run : run + 1], q[min(run, len(q) - 1)][None], v[min(run, len(v) - 1)][None])

    def _possible(self, theta: Tensor, visited: np.ndarray) -> np.ndarray:
        """What pairs [S, B] may lead to at θ ``[1, *θ.shape]``: their states and those, int [N, 2]."""
        successor, probability = self.tried.model(theta).detach().moves.stepping()
        s, b, k = np.nonzero((probability[0] > 0) & visited[..., None])
        return np.unique(np.stack([s, successor[0][s, b, k]], 1), axis=0)

    def explore(self, raw: Tensor) -> tuple[Tensor, float]:
        """The decision [n] that would be best if the unknown were good, and what it promises."""
        known = self._knowledge()
        return self._planned(self._world(known, "optimistic"), raw, self.how.schedule)

    def propose(self, raw: Tensor) -> tuple[Tensor, float]:
        """The best decision [n] if the unknown is like the known, and J_L there in the learnt world."""
        known = self._knowledge()
        world = self._world(known, "neutral")
        correction = world.correction(self.parameters.theta(raw[None]), *self._ask(world, raw[None]))
        model = world.model(self.parameters.theta(raw[None]), correction).detach()
        g = self.planner.response(world, raw[None], correction).policy.probs
        value = leader_value(model, g, world.preferences.gamma_leader)[0, :-1]
        value = value[world.known.any(-1)]
        self.worst, self.top = float(value.min()), float(value.max())
        self._proposals += 1
        schedule = self.how.schedule if self._proposals % THOROUGH else self.how.thorough
        return self._planned(self._world(known, "neutral"), raw, schedule)

    def deployed_value(self, theta: Tensor, policy: Tensor, completion: str) -> float:
        """J_L in the learnt world at a θ ``[*θ.shape]`` that was deployed, under the g [S, B] that answered it.

        The follower is not solved for: what a wrong idea of it adds to a promise is not in here. `completion` is
        "neutral", "optimistic" or "pessimistic".
        """
        world = self._world(self._knowledge(), completion)
        policy = world.part.policy(policy)
        model = world.model(theta[None], torch.zeros(1, *policy.shape, dtype=torch.float64)).detach()
        g = torch.cat([policy, torch.full_like(policy[:1], 1 / policy.shape[1])])[None]  # of the unknown, whatever
        return float(model.initial[0] @ leader_value(model, g, self.preferences.gamma_leader)[0])

    def chose(self, raw: Tensor, hope: tuple[Tensor, float] | None, promised: float) -> None:
        """Keeps what was in force and what was explored with its promise, and how the two promises compare."""
        if hope is None:
            self.pool = [raw, *self.pool][:POOL]
            return
        explored, hoped = hope
        self.pool = [raw, explored, *self.pool][:POOL]
        visited = int((self.counts.visits.sum(-1) > 0).sum())
        narrow = hoped <= promised + NARROW * abs(promised) and visited == self._visited
        self.narrow = self.narrow + 1 if narrow else 0
        self._visited = visited

    def spent(self) -> int:
        """Questions to the follower since the last call."""
        solves, self.solves = self.solves, 0
        return solves

    def _planned(self, world: LearntWorld, raw: Tensor, schedule: Schedule) -> tuple[Tensor, float]:
        own = torch.stack([raw, *self.pool])
        evaluations = max(FEWEST, WORK // world.entries)
        candidates = self.candidates[:: max(1, -(-len(self.candidates) // (evaluations // 3)))]
        if self._of_candidates is None or not self.how.asks:
            self._of_candidates = self._ask(world, candidates)
        q, v = (torch.cat(tables) for tables in zip(self._ask(world, own), self._of_candidates, strict=True))
        found = schedule.within(evaluations - len(candidates))
        return self.planner.best(world, torch.cat([own, candidates]), (q, v), found)

    def _knowledge(self) -> Knowledge:
        answers = Answers(*(table.numpy() for table in self._answers)) if self._answers else None
        gamma = self.preferences.gamma_follower
        steps = self._steps if self.counts.theta_moves else None
        return knowledge(self.counts, 0, self._starts, self.how.start_moves, answers, gamma, steps)

    def _world(self, known: Knowledge, completion: str) -> LearntWorld:
        alike = (
            known.known.any(-1) & (self._unknown < ALIKE)
            if completion == "neutral"
            else np.zeros(len(known.known), bool)
        )
        return LearntWorld(
            self.tried.model,
            known,
            self.preferences,
            theta_moves=self.counts.theta_moves,
            start_moves=self.how.start_moves,
            unknown=Supposed(alike, self._worth(completion), RELUCTANCE[completion]),
            part=Part.seen(known.known, known.reached()) if self.how.asks and known.known.size >= LARGE else None,
            read=self.tried.entries,
        )

    def _worth(self, completion: str) -> float:
        """J_L from the unknown on: the worst of what is known, more than its best, or the least that there can be."""
        return {
            "neutral": self.worst,
            "optimistic": self.top + self.largest,
            "pessimistic": -self.largest / (1 - self.preferences.gamma_leader),
        }[completion]

    def _ask(self, world: LearntWorld, raw: Tensor) -> Tables:
        """Q_F and V_F at raw parameters [C, n]: the follower's own where it can be asked."""
        if not len(raw):
            _, states, actions = self.counts.size
            return torch.zeros(0, states, actions, dtype=torch.float64), torch.zeros(0, states, dtype=torch.float64)
        theta = self.parameters.theta(raw).detach()
        if not self.how.asks:
            return world.guessed(theta, self.planner.solver)
        best = self.tried.response(theta)
        self.solves += len(raw)
        q, v = best.q.values.expand(len(raw), -1, -1), best.v.values.expand(len(raw), -1)
        self._remember(theta, q, v)
        return q, v

    def _remember(self, theta: Tensor, q: Tensor, v: Tensor) -> None:
        if self.how.equations and not self.counts.theta_moves:
            reward = self.tried.model(theta).detach().r_follower.expand(len(theta), -1, -1)
            new = q, v, reward
            before = self._answers or tuple(table[:0] for table in new)
            self._answers = tuple(torch.cat(pair)[-KEPT:] for pair in zip(before, new, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as tensors and numbers."""
        return {
            "counts": self.counts.state_dict(),
            "starts": torch.from_numpy(self._starts.copy()),
            "unknown": torch.from_numpy(self._unknown.copy()),
            "steps": torch.from_numpy(self._steps.copy()),
            "answers": list(self._answers),
            "candidates": self.candidates,
            "of_candidates": [] if self._of_candidates is None else list(self._of_candidates),
            "pool": list(self.pool),
            "solves": self.solves,
            "numbers": [self.narrow, self._proposals, self._visited, self.largest, self.worst, self.top],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts it back."""
        self.counts.load_state_dict(state["counts"])
        self._starts, self._unknown = state["starts"].numpy().copy(), state["unknown"].numpy().copy()
        self._answers = tuple(state["answers"])
        same = torch.equal(state["candidates"], self.candidates)  # unless `draws` or `vertices` was changed on loading
        self._of_candidates = tuple(state["of_candidates"]) if same and state["of_candidates"] else None
        self.pool = list(state["pool"])
        if "steps" in state:
            self._steps = state["steps"].numpy().copy()
        self.solves = state.get("solves", 0)  # of an iteration that failed; files of earlier versions lack it
        self.narrow, self._proposals, self._visited, self.largest, self.worst, self.top = state["numbers"]
