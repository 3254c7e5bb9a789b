"""Q_L by a network: for any environment, tables or vectors, and any follower that can be sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.follower import BestResponse, Policy, action_shape_of, has_nodes
from bilevel_envs.core.mdp import Model, kind_of
from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.temporal_differences import Fit, TemporalDifference
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy

DRAWS = 64
Values = Callable[[Tensor], Tensor]  # of what a network reads
AT_ONCE = 20_000  # states whose expectations are taken together, of one output


class NetworkCritic:
    r"""Fits f(s, b) ≈ Q_L by temporal differences with a target network; V_L(s) = E_b[f(s, b)].

    The expectation is a sum over the actions of a table's policy, Gauss–Hermite quadrature for up to three Gaussian
    actions, and a mean over draws otherwise. States and actions of tables enter one-hot.

    Args:
      gamma: γ_L.
      how: how the network is fitted.
      actions: how many discrete actions there are at states that are vectors, which then enter one-hot; 0 for numbers.
      of: "action" for f(s, b); "state" for f(s) ≈ V_L, for leaders that do without Q_L: V_L stands in for it; "both"
        for f(s) ≈ V_L and a second network of the advantage, fitted to r_L + γ_L V_L(s') − V_L(s) as a function of
        (s, b), so that what an action matters is not lost beside V_L. Its expectation under g is subtracted: a benefit
        whose mean is off by ε in every state would add ε ∇V_F / β to the hypergradient.
    """

    gives_action_values: ClassVar[bool] = True

    def __init__(self, gamma: float, how: Fit | None = None, of: str = "action", actions: int = 0) -> None:
        check_choice(of, ("action", "state", "both"), "of")
        self.gamma, self.how = gamma, how or Fit()
        self.of, self.actions = of, actions
        self.network = TemporalDifference(gamma, self.how)
        self.pairs = TemporalDifference(0.0, self.how) if of == "both" else None
        self._noise = Noise([])

    @property
    def takes_steps(self) -> bool:
        """Unless its policy's expectation is the action that came next."""
        return not self.how.on_sample

    @property
    def reads_action(self) -> bool:
        """Whether Q_L depends on the action: not where V_L stands in for it."""
        return self.of != "state"

    def fit(self, batch: Rollout, best: BestResponse, model: Model | None, noise: Noise) -> None:
        """Some Adam steps on the batch, from where the last fit ended."""
        self.fit_to(batch.r_leader[..., None], batch, best.policy, noise)

    def fit_to(self, reward: Tensor, batch: Rollout, policy: Policy, noise: Noise) -> None:
        """The same for whatever steps bring, [R, N, T, D], in the place of r_L: D returns side by side."""
        self._noise = Noise(noise.seeds(1).tolist())
        goes_on = (batch.valid & ~batch.terminated).flatten(1)
        used = batch.valid.flatten(1)
        if self.how.on_sample:
            used = used & ~(batch.truncated | batch.terminated | batch.cut).flatten(1)
            x_next = _shifted(self._inputs(batch.state, batch.action, policy))

            def following(f: Values) -> Tensor:
                return f(x_next) * used[..., None]
        else:

            def following(f: Values) -> Tensor:
                return self._average(batch.next_state, policy, f) * goes_on[..., None]

        x = self._inputs(batch.state, batch.action, policy)
        reward = reward.flatten(1, 2)
        self.network.fit(x, reward, used, following, noise)
        if self.pairs is not None:
            wanted = reward + self.gamma * following(self.network) - self._average(batch.state, policy, self.network)
            pairs = self._joined(batch.state.flatten(1, 2), batch.action.flatten(1, 2), policy)
            self.pairs.fit(pairs, wanted, used, lambda f: torch.zeros_like(wanted), noise)

    def values(self, batch: Rollout, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
        """At the visited steps."""
        shape = batch.r_leader.shape
        v, v_next = (
            self._average(state, policy, self.network)[..., 0].view(shape) for state in (batch.state, batch.next_state)
        )
        if self.of == "state":
            return v, v, v_next
        if self.pairs is not None:
            x = self._joined(batch.state.flatten(1, 2), batch.action.flatten(1, 2), policy)
            advantage = self.pairs(x) - self._over_actions(batch.state, policy, self.pairs)
            return v + advantage.view(shape), v, v_next
        q = self.network(self._inputs(batch.state, batch.action, policy))
        return q.view(shape), v, v_next

    def state_value(self, state: Tensor) -> Tensor:
        """V_L at any states that are vectors, [R, ...], of a network that reads them alone."""
        return self.network(state.double())[..., 0]

    def leader_gradient(self, policy: Policy) -> Callable[[Tensor, Tensor], Tensor]:
        """∇V_L as a function of states that are vectors; the step has no influence."""
        if self.of == "action":
            raise ValueError(
                '`critic` must have a network of the state, of="state" or "both", for ∇V_L; got of="action"'
            )
        return lambda state, step: self.network.gradient(state.double())

    def nodes(self, state: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
        """Actions at states [R, K, ...], [R, K, J, ...], whose sums by the weights [R|1, K|1, J] are expectations."""
        return action_nodes(policy, state, self._noise, self.how.draws)

    def action_values(self, state: Tensor, action: Tensor, policy: Policy) -> Tensor:
        """At states [R, K, ...] and each of J actions [R, K, J, ...], [R, K, J, D]."""
        x = self._at(state, action, policy)
        if self.pairs is None:
            return self.network(x)
        return self.network(self._joined(state, None, policy))[:, :, None] + self.pairs(x)

    def at_once(self, state: Tensor) -> int:
        """So many states of a run are looked at together that memory is no concern."""
        return max(1, AT_ONCE // (len(state) * self.network.outputs))

    def copies(self, count: int) -> NetworkCritic:
        """With the weights as they are now."""
        other = NetworkCritic(self.gamma, self.how, self.of, self.actions)
        other.network = self.network.copies(count)
        other.pairs = None if self.pairs is None else self.pairs.copies(count)
        return other

    def state_dict(self) -> dict[str, object]:
        """The networks'."""
        pairs = {} if self.pairs is None else {"pairs": self.pairs.state_dict()}
        return self.network.state_dict() | pairs

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.network.load_state_dict(state)
        if self.pairs is not None:
            self.pairs.load_state_dict(state["pairs"])

    def _average(self, state: Tensor, policy: Policy, f: Values) -> Tensor:
        """V(s) at states [R, N, T, ...], [R, N·T, D]: E_b[f(s, b)], or f(s)."""
        if self.of == "action":
            return self._over_actions(state, policy, f)
        parts = state.flatten(1, 2).split(self.at_once(state), 1)
        return torch.cat([f(self._joined(part, None, policy)) for part in parts], 1)

    def _over_actions(self, state: Tensor, policy: Policy, f: Values) -> Tensor:
        """E_b[f(s, b)] at states [R, N, T, ...], [R, N·T, D]."""
        means = []
        for part in state.flatten(1, 2).split(self.at_once(state), 1):
            action, weight = self.nodes(part, policy)
            means.append((f(self._at(part, action, policy)) * weight[..., None]).sum(2))
        return torch.cat(means, 1)

    def _inputs(self, state: Tensor, action: Tensor, policy: Policy) -> Tensor:
        """What the network reads at the steps of a batch, [R, N·T, d]."""
        read = action.flatten(1, 2) if self.of == "action" else None
        return self._joined(state.flatten(1, 2), read, policy)

    def _at(self, state: Tensor, action: Tensor, policy: Policy) -> Tensor:
        """What it reads at states [R, K, ...] with each of J actions [R, K, J, ...], [R, K, J, d]."""
        return self._joined(state[:, :, None].expand(*action.shape[:3], *state.shape[2:]), action, policy)

    def _joined(self, state: Tensor, action: Tensor | None, policy: Policy) -> Tensor:
        """Inputs of a network, of the state alone where there is no action."""
        table = kind_of(policy) == "tabular"
        if table:
            states, actions = cast(BoltzmannPolicy, policy).log_probs.shape[-2:]
            state = torch.nn.functional.one_hot(state, states)
        if action is None:
            return state.double()
        if table:
            action = torch.nn.functional.one_hot(action, actions)
        elif action.ndim < state.ndim:  # discrete actions at states that are vectors
            action = torch.nn.functional.one_hot(action, self.actions) if self.actions else action[..., None]
        return torch.cat([state, action], -1).double()


def action_nodes(policy: Policy, state: Tensor, noise: Noise, draws: int | None = None) -> tuple[Tensor, Tensor]:
    """Actions at states [R, K, ...], [R, K, J, ...], whose sums by the weights [R|1, K|1, J] are expectations under g.

    Args:
      policy: g.
      state: [R, K, ...].
      noise: draws actions where they are no nodes.
      draws: how many at each state, of actions that are vectors; None for quadrature where there is one, else `DRAWS`.
    """
    few = draws is None or action_shape_of(policy) == ()
    nodes = policy.action_nodes(state) if few and has_nodes(policy) else None
    if nodes is not None:
        return nodes
    count = draws or DRAWS
    uniform = noise.uniform(state.shape[1], count, *action_shape_of(policy))
    many = state[:, :, None].expand(-1, -1, count, -1)
    return policy.sample(many, uniform), torch.full((1, 1, count), 1 / count, dtype=torch.float64)


def _shifted(x: Tensor) -> Tensor:
    """The input of the step after, [R, K, d]; of the last one, its own."""
    return torch.cat([x[:, 1:], x[:, -1:]], 1)
