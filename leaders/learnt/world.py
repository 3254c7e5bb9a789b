"""The world that a leader has learnt: an ordinary table in which the unknown leads to a state of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.mdp import Preferences
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.transitions import Transitions
from leaders.critics.empirical_model import EmpiricalModel
from leaders.learnt.equations import Answers, corrected
from leaders.learnt.part import Part

NEVER = 50.0  # β below all else: what a follower never does


@dataclass(frozen=True)
class Knowledge:
    """What one run knows of a table's dynamics; no gradients.

    Attributes:
      known: pairs (s, b) that were visited, bool [S, B].
      ends: visited pairs that end the episode, bool [S, B].
      successor: states that may follow a state, whatever the action, in rising order, int [S, U]; itself in free
        places. Where θ moves them, all that were visited; else those seen to follow it.
      probability: of each of them, [S, B, U]; where θ moves them, 1 at visited pairs.
      start: of the first states seen, [S]; likewise.
      proven: pairs whose probabilities meet the follower's Bellman equations, bool [S, B].
    """

    known: np.ndarray
    ends: np.ndarray
    successor: np.ndarray
    probability: np.ndarray
    start: np.ndarray
    proven: np.ndarray

    @classmethod
    def of_table(
        cls, known: np.ndarray, ends: np.ndarray, table: np.ndarray, start: np.ndarray, proven: np.ndarray
    ) -> Knowledge:
        """From p(s' | s, b) as a table [S, B, S]."""
        s, b, to = np.nonzero(table)
        near, _, place = _listed(s, to, len(table))
        probability = np.zeros((*known.shape, near.shape[1]))
        probability[s, b, place] = table[s, b, to]
        return cls(known, ends, near, probability, start, proven)

    def reached(self) -> np.ndarray:
        """States in which something known begins or ends, bool [S]."""
        reached = self.known.any(-1) | (self.start > 0)
        reached[self.successor[(self.probability > 0).any(1)]] = True
        return reached

    def within(self, part: Part) -> Knowledge:
        """Of a part that holds all known pairs and the states that they lead to, whose numbers are places in it."""
        if part.is_whole:
            return self
        state, action = part.state.numpy(), part.action.numpy()
        place = np.zeros(len(self.known), np.int64)
        place[state] = np.arange(len(state))
        used = (self.probability[state] > 0).any(1)
        successor = np.where(used, place[self.successor[state]], np.arange(len(state))[:, None])
        known, ends, probability, proven = (
            table[state[:, None], action] for table in (self.known, self.ends, self.probability, self.proven)
        )
        return Knowledge(known, ends, successor, probability, self.start[state], proven)

    def table(self) -> np.ndarray:
        """p(s' | s, b), [S, B, S]."""
        states, actions = self.known.shape
        table = np.zeros((states, actions, states))
        s, b, place = np.nonzero(self.probability)
        table[s, b, self.successor[s, place]] = self.probability[s, b, place]
        return table


def knowledge(
    counts: EmpiricalModel,
    run: int,
    starts: np.ndarray,
    start_moves: bool,
    answers: Answers | None,
    gamma: float,
    steps: np.ndarray | None = None,
) -> Knowledge:
    """What follows from the counts of one run and from the follower's answers.

    Args:
      counts: of transitions.
      run: the run.
      starts: how many episodes began in each state, [S].
      start_moves: whether θ moves the distribution of the first state.
      answers: of a follower that is optimal; None without any.
      gamma: γ_F.
      steps: where θ moves the transitions, the states of visited pairs and those that these may lead to, int [N, 2].
    """
    successor, visits, endings = counts.successor[run], counts.visits[run], counts.endings[run]
    total = visits.sum(-1)
    known, ends = total > 0, endings.sum(-1) > 0
    s, b, k = np.nonzero(visits > 0)
    source, target = s, successor[s, b, k]
    if steps is not None:
        more = steps[known.any(-1)[steps[:, 1]]]
        source, target = np.concatenate([source, more[:, 0]]), np.concatenate([target, more[:, 1]])
    near, possible, place = _listed(source, target, len(known))
    place = place[: len(s)]
    probability = np.zeros((*known.shape, near.shape[1]))
    if counts.theta_moves:  # a function of θ for every pair that was visited
        probability[known[..., None] & possible[:, None]] = 1.0
    else:
        probability[s, b, place] = (visits / total[..., None].clip(1))[s, b, k]
    proven = np.zeros(known.shape, bool)
    if answers is not None and not counts.theta_moves and gamma > 0:
        pairs = np.argwhere(known & ~ends)
        s, b = pairs.T
        probability[s, b], proven[s, b] = corrected(probability[s, b], near[s], possible[s], pairs, answers, gamma)
    start = (starts > 0).astype(float) if start_moves else starts / max(1, starts.sum())
    return Knowledge(known, ends, near, probability, start, proven)


def _listed(source: np.ndarray, target: np.ndarray, states: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists of what was seen to follow each state, [S, U]; which places are used; and the place of each entry."""
    keys, entry = np.unique(source * states + target, return_inverse=True)
    length = np.bincount(keys // states, minlength=states)
    first = np.cumsum(length) - length
    place = np.arange(len(keys)) - first[keys // states]
    near = np.repeat(np.arange(states)[:, None], max(1, length.max(initial=1)), 1)
    near[keys // states, place] = keys % states
    return near, np.arange(near.shape[1]) < length[:, None], place[entry]


@dataclass(frozen=True)
class Supposed:
    """What is supposed of pairs that were never visited.

    Attributes:
      alike: states whose unknown actions are taken to be like the known ones, bool [S].
      worth: of the state that stands for the unknown, for the leader.
      reluctance: how much less than V_F, in units of β, a follower that cannot be asked is taken to expect of an
        unknown action.
    """

    alike: np.ndarray
    worth: float
    reluctance: float = 0.0


class LearntWorld:
    r"""A table of S + 1 states: what is known as it is, what is not as the completion says.

    A pair (s, b) that was never visited, and the share of a visited one's transitions that never was, lead to the
    state S, where the leader is paid `worth` and the episode ends; or, where few of a state's actions are unknown and
    the completion is "neutral", an unknown pair is the mean of the state's known ones.

    The follower's reward carries a correction (`correction`), which is 0 in a world that is fully known: with it
    Q_F is at a decision what the follower said it is.

    Args:
      model: θ [C, ...] → the environment's model, of which r_L, r_F and, where θ moves them, p and ρ0 are read, at
        what was visited.
      knowledge: of the dynamics.
      preferences: γ_L, γ_F and β.
      theta_moves: whether θ moves the transitions.
      start_moves: whether it moves the first state.
      unknown: what is supposed of unknown pairs.
      part: what is told apart; S and B below are numbers of its places. None for all.
      read: numbers in the environment's tables at one θ, of which a part is read.
    """

    def __init__(
        self,
        model: Callable[[Tensor], TabularModel],
        knowledge: Knowledge,
        preferences: Preferences,
        *,
        theta_moves: bool,
        start_moves: bool,
        unknown: Supposed,
        part: Part | None = None,
        read: int = 0,
    ) -> None:
        self.part = Part.whole(*knowledge.known.shape) if part is None else part
        knowledge, alike = knowledge.within(self.part), unknown.alike[self.part.state.numpy()]
        self._model, self.preferences, self._read = model, preferences, read
        self.theta_moves, self.start_moves = theta_moves, start_moves
        self.worth, self.reluctance = unknown.worth, unknown.reluctance
        self.known = torch.from_numpy(knowledge.known)
        self._alike = torch.from_numpy(alike)[:, None] & ~self.known  # pairs that are the mean of the known ones
        self._number = self.known.sum(-1).clamp(min=1)
        self._seen = torch.from_numpy(knowledge.probability)
        self._start = torch.from_numpy(knowledge.start)
        self._near = torch.from_numpy(knowledge.successor)
        self._goes_on = torch.from_numpy(~knowledge.ends).double()

    def model(self, theta: Tensor, correction: Tensor) -> TabularModel:
        """The world at θ [C, ...], differentiable where θ is, with the follower's correction [C|1, S, B]."""
        return self._completed(self._model(theta), correction)

    def corrected(self, theta: Tensor, q: Tensor, v: Tensor) -> tuple[TabularModel, Tensor]:
        """The world at θ, without gradients, with the `correction` that belongs there, and that; one look at θ."""
        true = self._model(theta.detach()).detach()
        correction = self._correction(true, q, v)
        return self._completed(true, correction), correction

    def _completed(self, true: TabularModel, correction: Tensor) -> TabularModel:
        r_leader = self._mixed(self.part.table(true.r_leader))
        r_follower = torch.where(self.known, self.part.table(true.r_follower), 0.0) + correction
        exit_leader, exit_follower = self.worth, -self.preferences.beta * np.log(self.known.shape[1])
        r_leader, r_follower = _row(r_leader, exit_leader), _row(r_follower, exit_follower)
        if not (self.theta_moves or self.start_moves):
            return self._dynamics.with_rewards(r_leader, r_follower)
        return TabularModel(*self._law(true), r_leader, r_follower, self._continues)

    def correction(self, theta: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """What r_F must be changed by, [C, S, B], for Q_F at θ to be the follower's own, with V_F, of all the table."""
        return self._correction(self._model(theta.detach()).detach(), q, v)

    def _correction(self, true: TabularModel, q: Tensor, v: Tensor) -> Tensor:
        q, v = self.part.lumps(q, self.preferences.beta), self.part.by_state(v)
        base = torch.where(self.known, self.part.table(true.r_follower), 0.0)
        moves = self._law(true)[0].probability[:, :-1, :, :-1] * self._continues[:, :-1, :, None]
        following = (moves * v[:, self._near][:, :, None]).sum(-1)
        return q - base - self.preferences.gamma_follower * following

    def guessed(self, theta: Tensor, solver: SoftValueIteration) -> tuple[Tensor, Tensor]:
        """Q_F [C, S, B] and V_F [C, S] of a follower that cannot be asked, as if it hardly knew unknown actions."""
        beta, gamma = self.preferences.beta, self.preferences.gamma_follower
        some = self.known.any(-1, keepdim=True)
        reward = torch.where(self.known, self._model(theta).detach().r_follower, 0.0)
        never = -(2 * reward.abs().max() / (1 - gamma) + NEVER * beta)
        excluded = torch.where(self.known | ~some, 0.0, never)[None]
        best = solver.best_response(self.model(theta, excluded).detach(), self.preferences)
        q, v = best.q.values[:, :-1], best.v.values[:, :-1]
        return torch.where(self.known | ~some, q, v[..., None] - self.reluctance * beta), v

    @property
    def entries(self) -> int:
        """Numbers in the tables of one decision, about."""
        states, actions = self.known.shape
        own = states * actions * (8 + (self._near.shape[1] if self.theta_moves else 0))
        return own if self.part.is_whole else own + self._read

    @cached_property
    def _dynamics(self) -> TabularModel:
        """The dynamics where θ does not move them."""
        nothing = torch.zeros(1, len(self.known) + 1, self.known.shape[1], dtype=torch.float64)
        return TabularModel(self._lists, self._starts(self._start[None]), nothing, nothing, self._continues)

    @cached_property
    def _continues(self) -> Tensor:
        """1 where the episode goes on, [1, S + 1, B]: a mean of pairs goes on where half of them do."""
        return _row((self._mixed(self._goes_on[None]) >= 0.5).double().where(self.known | self._alike, 1.0), 0.0)

    @cached_property
    def _lists(self) -> Transitions:
        """The successors seen, and last the state that stands for the unknown; its own row says that it stays."""
        last = len(self._near)
        near = torch.cat([self._near, torch.full_like(self._near[:, :1], last)], 1)
        near = torch.cat([near, torch.full_like(near[:1], last)])[:, None]
        seen = self._complete(self._seen[None])
        return Transitions(near.numpy(), seen)

    def _law(self, true: TabularModel) -> tuple[Transitions, Tensor]:
        """p and ρ0 [C|1, S + 1], those of the environment's model where θ moves them."""
        part = self.part
        starts = self._start * part.by_state(true.initial) if self.start_moves else self._start[None]
        if not self.theta_moves:
            return self._lists, self._starts(starts)
        present = true.moves.between(part.state, part.action, part.state[self._near])
        return self._lists.with_probability(self._complete(self._seen * present)), self._starts(starts)

    def _complete(self, seen: Tensor) -> Tensor:
        """p, [C|1, S + 1, B, U + 1], of what it is at the transitions seen, [C|1, S, B, U]."""
        mean = (seen * self.known[..., None]).sum(2, keepdim=True) / self._number[:, None, None]
        mixed = torch.where(self._alike[..., None], mean, seen * self.known[..., None])
        unknown = (1 - mixed.sum(-1, keepdim=True)).clamp(min=0.0)
        inner = torch.cat([mixed, unknown], -1)
        last = torch.zeros_like(inner[:, :1])
        last[..., -1] = 1.0
        full = torch.cat([inner, last], 1)
        return full / full.sum(-1, keepdim=True)

    def _starts(self, seen: Tensor) -> Tensor:
        """ρ0, [C|1, S + 1], of what it is at the first states seen, [C|1, S]."""
        full = torch.cat([seen, (1 - seen.sum(-1, keepdim=True)).clamp(min=0.0)], -1)
        return full / full.sum(-1, keepdim=True)

    def _mixed(self, table: Tensor) -> Tensor:
        """A table [C, S, B] at known pairs, its mean over them at pairs like them, and 0 elsewhere."""
        known = torch.where(self.known, table, 0.0)
        return torch.where(self._alike, known.sum(-1, keepdim=True) / self._number[:, None], known)


def _row(table: Tensor, value: float) -> Tensor:
    """A table [C, S, B] with one state more, whose entries are `value`."""
    return torch.cat([table, torch.full_like(table[:, :1], value)], 1)
