"""Ascent of many candidates along the exact hypergradient of a learnt world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.worlds.tabular.policy import TabularResponse
from leaders import exact
from leaders.learnt.world import LearntWorld

LAST = 0.2  # the step size falls to this share of the first
CLIP = 1.0  # ℓ2 norm of a candidate's gradient
TOLERANCE = 1e-8  # of the follower's problem in the learnt world, relative to β
ENTRIES = 2**22  # numbers in the tables of the candidates that are solved side by side

Tables = tuple[Tensor, Tensor]  # Q_F [C, S, B] and V_F [C, S]


@dataclass(frozen=True)
class Schedule:
    """Successive halving.

    Attributes:
      rungs: (candidates kept, steps of each).
      learning_rate: Adam's, at first.
      ask_every: steps between two questions to the follower; 0 to ask at the end alone.
    """

    rungs: Sequence[tuple[int, int]]
    learning_rate: float
    ask_every: int

    def within(self, evaluations: int) -> Schedule:
        """The same with fewer candidates, and if need be fewer steps, so as not to need more evaluations than that."""
        share = min(1.0, evaluations / sum(kept * steps for kept, steps in self.rungs))
        rungs = [(max(1, int(kept * share)), max(1, int(steps * min(1.0, kept * share)))) for kept, steps in self.rungs]
        return replace(self, rungs=rungs)


class Planner:
    """Finds the θ that a learnt world promises most for.

    Args:
      theta: raw parameters [C, n] → θ.
      ask: raw parameters [C, n] → the follower's Q_F and V_F there.
    """

    def __init__(self, theta: Callable[[Tensor], Tensor], ask: Callable[[LearntWorld, Tensor], Tables]) -> None:
        self.theta, self.ask = theta, ask
        self.solver = SoftValueIteration(tol=TOLERANCE)

    def best(self, world: LearntWorld, raw: Tensor, answers: Tables, schedule: Schedule) -> tuple[Tensor, float]:
        """The best candidate [n], and J_L in the learnt world there.

        Args:
          world: it.
          raw: the candidates' raw parameters, [C, n].
          answers: the follower's at each of them.
          schedule: of the ascent.
        """
        value, correction = self._values(world, raw, answers)
        total, taken = sum(steps for _, steps in schedule.rungs), 0
        for kept, steps in schedule.rungs:
            order = value.argsort(descending=True, stable=True)[:kept]
            raw, correction, response = raw[order], correction[order], None
            optimizer = torch.optim.Adam([raw], schedule.learning_rate)
            for step in range(steps):
                if step and schedule.ask_every and step % schedule.ask_every == 0:
                    correction = world.correction(self.theta(raw), *self.ask(world, raw))
                gradient, response = self._gradient(world, raw, correction, response)
                raw.grad = -gradient * (CLIP / gradient.norm(dim=1, keepdim=True).clamp(min=CLIP))
                optimizer.param_groups[0]["lr"] = schedule.learning_rate * LAST ** (taken / total)
                optimizer.step()
                taken += 1
            value, correction = self._values(world, raw, self.ask(world, raw))
        first = int(value.argmax())
        return raw[first], float(value[first])

    def response(self, world: LearntWorld, raw: Tensor, correction: Tensor) -> TabularResponse:
        """The follower's response in the learnt world."""
        model = world.model(self.theta(raw), correction).detach()
        return self.solver.best_response(model, world.preferences)

    def _values(self, world: LearntWorld, raw: Tensor, answers: Tables) -> tuple[Tensor, Tensor]:
        """J_L of candidates [C], where the follower answered, and its corrections there, [C, S, B]."""
        values, corrections = [], []
        parts = zip(*(x.split(max(1, ENTRIES // world.entries)) for x in (raw, *answers)), strict=True)
        for part, q, v in parts:
            model, correction = world.corrected(self.theta(part), q, v)
            best = self.solver.best_response(model, world.preferences)
            values.append(exact.value(model, best.policy, world.preferences.gamma_leader).expand(len(part)))
            corrections.append(correction)
        return torch.cat(values), torch.cat(corrections)

    def _gradient(
        self, world: LearntWorld, raw: Tensor, correction: Tensor, start: list[TabularResponse] | None
    ) -> tuple[Tensor, list[TabularResponse]]:
        """dJ_L / d raw of candidates, [C, n], and the responses, from which the next ones begin."""
        gradients, responses = [], []
        parts = zip(*(x.split(max(1, ENTRIES // world.entries)) for x in (raw, correction)), strict=True)
        for index, (part, change) in enumerate(parts):
            leaf = part.detach().requires_grad_()
            model = world.model(self.theta(leaf), change)
            best = self.solver.best_response(model.detach(), world.preferences, start[index] if start else None)
            direct, guiding = exact.surrogates(model, best, world.preferences)
            total = (direct + guiding).sum() + 0.0 * leaf.sum()  # where θ moves nothing that is known, 0
            gradients.append(torch.autograd.grad(total, leaf)[0])
            responses.append(best)
        return torch.cat(gradients), responses
