r"""∇Q_F of (s, b), learnt by a network: what a follower's values gain or lose when θ moves.

It obeys a Bellman equation of its own, with what θ does to a step in the place of a reward,

.. math::

    \nabla Q_F(s, b) = E\big[\nabla r_F + \gamma_F (\text{what } \theta \text{ does to the move})
        + \gamma_F \nabla Q_F(s', b')\big],

so that temporal differences learn it, one output per entry of θ. For r_F = ⟨θ, c⟩ these are the successor features of c
(Barreto et al., arXiv:1606.05312).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse, Policy
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.declared.problem import RewardModel
from leaders.critics.critic import Critic, capabilities_of
from leaders.critics.network import NetworkCritic

PAST = 4  # batches before the present one that networks learn from


class ActionValues(Protocol):
    """What is multiplied: functions of the state and any action."""

    def action_values(self, state: Tensor, action: Tensor, policy: Policy) -> Tensor:
        """At states [R, K, ...] and each of J actions [R, K, J, ...], [R, K, J, D]."""


class ActionCritic(Critic, ActionValues, Protocol):
    """A critic that says `gives_action_values = True`."""

    def copies(self, count: int) -> ActionCritic:
        """As of every critic."""


def covariance(
    q_leader: ActionValues, reaction: NetworkCritic, state: Tensor, policy: Policy, weight: Tensor
) -> Tensor:
    """Σ weight Cov_b(Q_L, ∇Q_F)(s) over states [R, N, T, ...], [R, dim θ], over all discrete actions.

    Vector actions are Gauss–Hermite nodes or draws, as a `NetworkCritic` has them.
    """
    size, total = reaction.at_once(state), torch.zeros(())
    for here, count in zip(state.flatten(1, 2).split(size, 1), weight.flatten(1).split(size, 1), strict=True):
        action, share = reaction.nodes(here, policy)
        q, slope = (one.action_values(here, action, policy) for one in (q_leader, reaction))
        benefit = q - (share[..., None] * q).sum(2, keepdim=True)
        total = total + (count[..., None, None] * share[..., None] * benefit * slope).sum((1, 2))
    return total


class WithReactions:
    """Critics and networks of ∇Q_F, one of each per half of every batch, so that all are copied and saved together.

    What a half has taught stays in its own networks from batch to batch: a critic and the ∇Q_F that it is multiplied by
    have never seen the same step. With a single critic for all, what earlier batches taught both is an error that they
    have in common, whose square is no noise but a bias.

    Where rewards are functions of components that steps log, each half learns from its last batches, too, with the
    rewards that their steps have at the present θ: what an action matters is little beside what a step happens to
    bring, and a single batch does not tell it. Their policies, and moves that θ hides, are taken for the present ones,
    which have moved little. A network of ∇Q_F keeps to the batch where θ hides moves.

    Attributes:
      judges: estimate Q_L; the first judges alone where no half is kept apart.
      reactions: estimate ∇Q_F, if they are networks of (s, b).
      learnt: the steps that the present estimate learns from, and to which half each belongs.
      past: the same where the next one goes on with them, [R, K, 1]; None where it does not.
    """

    def __init__(self, judges: Sequence[ActionCritic], reactions: Sequence[NetworkCritic]) -> None:
        self.judges, self.reactions = judges, reactions
        self.learnt: tuple[Rollout, Tensor]
        self.past: tuple[Rollout, Tensor] | None = None
        own = capabilities_of(judges[0])
        self.keeps, self.learns, self.reads_action = own.keeps, own.learns, own.reads_action

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """The first critic's; ∇Q_F is fitted where it is known what each step adds to it."""
        self.learnt = batch, torch.zeros_like(batch.step)
        self.judges[0].fit(batch, best, model, noise)

    def recall(self, batch: Rollout, half: Tensor, model: Model | None) -> list[Rollout]:
        """Adds a batch to what is to be learnt from; the steps of either half, for the critic that judges the other.

        Args:
          batch: the steps.
          half: to which half each belongs, int [R, N, T].
          model: the world at the present θ.
        """
        new = batch
        hidden = bool(self.reactions) and cast(RewardModel, model).hides_moves  # what θ adds is known of `batch` alone
        if batch.components is not None and self._takes_steps and not hidden:
            new, half = flat(batch), half.flatten(1, 2)[..., None]
            if self.past is not None:
                old, dealt = self.past
                size = PAST * half.shape[1]
                new, half = joined(old, new, size), torch.cat([dealt[:, -size:], half], 1)
            r_follower, r_leader = cast(RewardModel, model).rewards(cast(Tensor, new.components))
            new = replace(new, r_follower=r_follower, r_leader=r_leader)
            self.past = new, half
        self.learnt = new, half
        return [replace(new, valid=new.valid & (half != judged)) for judged in range(len(self.judges))]

    def values(self, batch: Rollout, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
        """The first critic's."""
        return self.judges[0].values(batch, policy)

    def action_values(self, state: Tensor, action: Tensor, policy: Policy) -> Tensor:
        """The first critic's."""
        return self.judges[0].action_values(state, action, policy)

    def state_value(self, state: Tensor) -> Tensor:
        """The first critic's, where dynamics are learnt."""
        return cast(NetworkCritic, self.judges[0]).state_value(state)

    def leader_gradient(self, policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
        """The first critic's, where dynamics are learnt."""
        return cast(NetworkCritic, self.judges[0]).leader_gradient(policy)

    @property
    def _takes_steps(self) -> bool:
        """Whether all learn from single steps, whatever came before and after them."""
        return all(capabilities_of(one).takes_steps for one in (*self.judges, *self.reactions))

    def copies(self, count: int) -> WithReactions:
        """Of all."""
        judges, reactions = ([one.copies(count) for one in each] for each in (self.judges, self.reactions))
        other = WithReactions(cast(list[ActionCritic], judges), cast(list[NetworkCritic], reactions))
        if self.past is not None:
            steps, half = self.past
            other.past = steps.copies(count), half.repeat(count, 1, 1)
        return other

    def state_dict(self) -> dict[str, object]:
        """Of all."""
        networks = {name: [one.state_dict() for one in getattr(self, name)] for name in ("judges", "reactions")}
        kept = None if self.past is None else {"steps": self.past[0].parts(), "half": self.past[1]}
        return networks | {"past": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        for name in ("judges", "reactions"):
            for one, saved in zip(getattr(self, name), state[name], strict=True):
                one.load_state_dict(saved)
        kept = state["past"]
        self.past = None if kept is None else (Rollout(**kept["steps"]), kept["half"])


def flat(batch: Rollout) -> Rollout:
    """The same steps, each a row of its own, [R, N·T, 1]."""
    return Rollout(**{name: part.flatten(1, 2)[:, :, None] for name, part in batch.parts().items()})


def joined(old: Rollout, new: Rollout, size: int) -> Rollout:
    """Rows of a batch behind the last ones of another."""
    past = old.parts()
    return Rollout(**{name: torch.cat([past[name][:, -size:], part], 1) for name, part in new.parts().items()})
