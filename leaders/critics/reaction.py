r"""∇Q_F of (s, b), learnt by a network: what a follower's values gain or lose when θ moves.

It obeys a Bellman equation of its own, with what θ does to a step in the place of a reward,

.. math::

    \nabla Q_F(s, b) = E\big[\nabla r_F + \gamma_F (\text{what } \theta \text{ does to the move})
        + \gamma_F \nabla Q_F(s', b')\big],

so that temporal differences learn it, one output per entry of θ. For r_F = ⟨θ, c⟩ these are the successor features of c
(Barreto et al., arXiv:1606.05312).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse, Policy
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from leaders.critics.critic import Critic, capabilities_of
from leaders.critics.network import NetworkCritic


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
    """A critic that carries networks of ∇Q_F along, one per part of a batch, so that all are copied and saved together.

    Attributes:
      critic: estimates Q_L.
      reactions: estimate ∇Q_F.
    """

    def __init__(self, critic: ActionCritic, reactions: list[NetworkCritic]) -> None:
        self.critic, self.reactions = critic, reactions
        own = capabilities_of(critic)
        self.keeps, self.learns, self.reads_action = own.keeps, own.learns, own.reads_action

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """The critic's; ∇Q_F is fitted where it is known what each step adds to it."""
        self.critic.fit(batch, best, model, noise)

    def values(self, batch: Rollout, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
        """The critic's."""
        return self.critic.values(batch, policy)

    def action_values(self, state: Tensor, action: Tensor, policy: Policy) -> Tensor:
        """The critic's."""
        return self.critic.action_values(state, action, policy)

    def leader_gradient(self, policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
        """The critic's, where dynamics are learnt."""
        return cast(NetworkCritic, self.critic).leader_gradient(policy)

    def copies(self, count: int) -> WithReactions:
        """Of all."""
        return WithReactions(self.critic.copies(count), [one.copies(count) for one in self.reactions])

    def state_dict(self) -> dict[str, object]:
        """Of all."""
        return {"critic": self.critic.state_dict(), "reactions": [one.state_dict() for one in self.reactions]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.critic.load_state_dict(state["critic"])
        for one, saved in zip(self.reactions, state["reactions"], strict=True):
            one.load_state_dict(saved)
