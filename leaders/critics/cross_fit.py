"""Who judges a batch: critics that were not fitted to what they judge.

A critic's error at a transition that it was fitted to depends on where that transition led, and so does the ∇Q_F or
∇log p that the critic's value multiplies: their product is a bias, at small β a large one. So the episodes of a batch
are dealt into two halves, and each half is judged by a copy of the critic that was fitted to the other (cross-fitting,
Chernozhukov et al., arXiv:1608.00060), beside all earlier batches where the critic keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse, Policy
from bilevel_envs.core.noise import Noise
from leaders.critics.critic import Critic, capabilities_of
from leaders.critics.empirical import Empirical
from leaders.critics.reaction import WithReactions
from leaders.functional.errors import TooFewTransitions

HALVES = 2


def halves(batch: Rollout, keeps: bool) -> Tensor:
    """To which half of its run's batch each step belongs, 0 or 1, int [R, N, T].

    Episodes take turns. A run with a single episode has an empty half, so that earlier batches alone judge it; where
    there are none, or the critic keeps nothing of them, each half of its steps is judged by the other.
    """
    by_episode = batch.starts.flatten(1).cumsum(1) % HALVES
    if keeps:
        return by_episode.view_as(batch.step)
    steps = batch.valid.flatten(1).cumsum(1)
    by_step = (HALVES * (steps - 1) // steps[:, -1:].clamp(min=1)).clamp(min=0)
    several = batch.starts.sum((1, 2))[:, None] > 1
    return torch.where(several, by_episode, by_step).view_as(batch.step)


@dataclass(frozen=True)
class Judges:
    """The values of a batch, by the critic of each of its parts.

    Attributes:
      critics: one for each part, not fitted to it; their capabilities say what they have beside `Critic`'s methods.
      part: to which part each step belongs, int [R, N, T]; all 0 with a single critic.
      whole: the critic that is kept for the next batch, fitted to all of this one unless it has judges of its own.
      gamma: γ_L.
      seen: for tables, the empirical model outside of each part; empty otherwise.
      learnt: whether the critics know no more than that: pairs that were never visited have no benefit then, and
        successors that were never left no temporal-difference error.
    """

    critics: Sequence[Any]
    part: Tensor
    whole: Any
    gamma: float
    seen: Sequence[Empirical] = ()
    learnt: bool = False

    @property
    def fold(self) -> Tensor | None:
        """`part`, where several critics were fitted to parts of the batch."""
        return self.part if self.learnt else None

    @property
    def parts(self) -> list[Tensor]:
        """The steps that each critic judges, bool [R, N, T] each."""
        return [self.part == index for index in range(len(self.critics))]

    def values(self, batch: Rollout, policy: Policy) -> tuple[Tensor, ...]:
        """Q_L(s_k, b_k), V_L(s_k), V_L(next_state_k), [R, N, T] each, of the batch that was dealt."""
        if self.learnt and self.seen:
            values = [self._known(batch, policy, *pair) for pair in zip(self.critics, self.seen, strict=True)]
        else:
            values = [critic.values(batch, policy) for critic in self.critics]
        return tuple(self.by_part(list(each)) for each in zip(*values, strict=True))

    def leader_gradient(self, policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
        """∇V_L as a function of the batch's states and steps."""
        gradients = [critic.leader_gradient(policy) for critic in self.critics]
        return lambda state, step: self.by_part([gradient(state, step) for gradient in gradients])

    def unseen(self, batch: Rollout) -> tuple[float, float]:
        """What the estimate of a batch leaves out, because nothing is known of it outside of its own part.

        Returns:
          The share of valid steps whose pair (s, b) is not known, and the share of an episode's discounted steps that
          lie behind cuts in states that are not.
        """
        pairs = self.by_part([seen.knows(batch.state, batch.action) for seen in self.seen])
        onward = self.by_part([seen.knows(batch.next_state) for seen in self.seen])
        lost = (self.gamma ** (batch.step + 1.0) * (batch.cut & ~onward)).sum() / batch.starts.sum().clamp(min=1)
        return float((batch.valid & ~pairs).sum() / batch.valid.sum().clamp(min=1)), float(lost)

    def by_part(self, each: list[Tensor]) -> Tensor:
        """What the critic of each step's part says, from what all of them say, [R, N, T, ...]."""
        if len(each) == 1:
            return each[0]
        first, second = each
        return torch.where(self.part.view(*self.part.shape, *[1] * (first.ndim - self.part.ndim)) == 0, first, second)

    def _known(self, batch: Rollout, policy: Policy, critic: Critic, seen: Empirical) -> tuple[Tensor, Tensor, Tensor]:
        """A critic's values where the world is known, and what says nothing elsewhere."""
        q, v, v_next = critic.values(batch, policy if critic is seen else seen.reachable)
        q = torch.where(seen.knows(batch.state, batch.action), q, v)
        on_average = (q - batch.r_leader) / self.gamma if self.gamma > 0 else torch.zeros_like(q)
        return q, v, torch.where(seen.knows(batch.next_state), v_next, on_average)


def cross_fitted(
    critic: Critic,
    batch: Rollout,
    best: BestResponse[Any, Any],
    model: Any,
    noise: Noise,
    *,
    gamma: float,
    seen: Empirical | None = None,
    first: bool = False,
) -> Judges:
    """Fits a critic to a batch, and copies of it, as it was before, to each half of the batch for the other.

    Args:
      critic: learns from the whole batch; its copies judge, or those of its own do, which go on from batch to batch.
      batch, best, model, noise: what `Critic.fit` takes.
      gamma: γ_L.
      seen: for tables, the world as the leader has seen it before this batch; it learns as the critic does, which may
        be the same. Critics then take expectations over the pairs that are known.
      first: whether there were no earlier batches.

    Raises:
      TypeError: if `critic.copies(1)` is the critic itself.
      TooFewTransitions: if half a batch is too little for what the critic fits.
    """
    half = halves(batch, capabilities_of(critic).keeps and not first)
    if capabilities_of(critic).learns and critic is not seen and critic.copies(1) is critic:
        raise returns_itself(critic)
    parts = [replace(batch, valid=batch.valid & (half != judged)) for judged in range(HALVES)]

    def fitted(one: Critic, part: Rollout, response: BestResponse) -> Critic:
        return _fitted_to_half(one, part, response, model, noise)

    if isinstance(critic, WithReactions):
        parts = critic.recall(batch, half, model)
        kept = [fitted(judge, part, best) for judge, part in zip(critic.judges, parts, strict=True)]
        return Judges(kept, half, critic, gamma, learnt=True)
    if seen is None:
        fresh = [fitted(critic.copies(1), part, best) for part in parts]
        critic.fit(batch, best, model, noise)
        return Judges(fresh, half, critic, gamma, learnt=True)
    seen.fit(batch, best, model, noise)
    worlds = [seen.without(replace(batch, valid=batch.valid & (half == judged))) for judged in range(HALVES)]
    if critic is seen:
        return Judges(worlds, half, seen, gamma, worlds, learnt=True)
    if not capabilities_of(critic).learns:
        critic.fit(batch, best, model, noise)
        return Judges([critic] * HALVES, half, critic, gamma, worlds)
    among = [replace(best, policy=world.reachable) for world in (*worlds, seen)]
    judges = [fitted(critic.copies(1), part, one) for part, one in zip(parts, among[:HALVES], strict=True)]
    critic.fit(batch, among[HALVES], model, noise)
    return Judges(judges, half, critic, gamma, worlds, learnt=True)


def _fitted_to_half(critic: Critic, part: Rollout, best: BestResponse, model: Any, noise: Noise) -> Critic:
    """The critic, fitted to half of a batch."""
    try:
        critic.fit(part, best, model, noise)
    except TooFewTransitions as error:
        raise error.of_half() from None
    return critic


def returns_itself(critic: Critic) -> TypeError:
    """What is wrong with a critic that learns and whose copy is itself."""
    return TypeError(
        f"`critic` must return a new critic from `copies`, or have `learns = False`; {type(critic).__name__} "
        "returns itself"
    )


def fitted_to_all(
    critic: Critic,
    batch: Rollout,
    best: BestResponse[Any, Any],
    model: Any,
    noise: Noise,
    *,
    gamma: float,
    seen: Empirical | None = None,
) -> Judges:
    """The critic itself, fitted to the very batch that it judges; arguments as in `cross_fitted`."""
    for one in {id(one): one for one in (critic, seen) if one is not None}.values():
        one.fit(batch, best, model, noise)
    return Judges([critic], torch.zeros_like(batch.step), critic, gamma, [] if seen is None else [seen])
