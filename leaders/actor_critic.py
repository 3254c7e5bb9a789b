"""The published form of the leaders of games: small networks, Adam, replay (arXiv:2603.14867; values from the code)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.follower import BestResponse
from bilevel_envs.model import Preferences, Rollout
from bilevel_envs.noise import Noise
from bilevel_envs.policies import BoltzmannPolicy
from bilevel_envs.tabular import Table
from leaders.networks import through, xavier
from leaders.weights import eligibility_trace

HIDDEN = (64, 64)
CRITIC_RATE = 1e-3
SAMPLE = 64  # transitions per step of either network
DRAWS = 256  # of the follower's action, for the benefit
POLYAK = 0.01
UPDATES = {  # steps of actor and critic per outer iteration, by leader, variant and whether all transitions are kept
    ("bchg", "R2", False): (1, 1),
    ("bchg", "R1", False): (10, 1),
    ("naive-pgd", "R2", False): (1, 20),
    ("naive-pgd", "R1", False): (2, 20),
    ("naive-pgd", "R2", True): (1, 10),
    ("naive-pgd", "R1", True): (5, 1),
    ("bi-ac", "R2", True): (1, 5),
    ("bi-ac", "R1", True): (5, 1),
    ("bi-ac", "R2", False): (1, 5),
    ("bi-ac", "R1", False): (2, 10),
}
USUAL_UPDATES = (1, 1)  # for games that the paper does not show


@dataclass(frozen=True)
class Stored:
    """Transitions, [R, K] each.

    Attributes:
      state, leader_action, action, following: s, a, b, s'.
      reward: r_L.
      step: index inside the episode.
    """

    state: Tensor
    leader_action: Tensor
    action: Tensor
    following: Tensor
    reward: Tensor
    step: Tensor

    def joined(self, other: Stored | None) -> Stored:
        """With another one's before it."""
        if other is None:
            return self
        return Stored(**{name: torch.cat([getattr(other, name), part], 1) for name, part in vars(self).items()})


class ActorCritic:
    """One outer iteration of a published leader in a finite game.

    The critic is a network of (s, b) with one output per move of the leader, its target greedy in both players'
    policies (or a stage game's, for Bi-AC); the actor follows Q_L less its mean over the leader's own moves, b held
    fixed, and, for BC-HG, the benefit times ∇Q_F along what is left of the stored episode. Target networks move by 1 %
    per outer iteration. Slips of the published code are kept: greedy targets, a baseline that depends on b, ∇Q_F summed
    from the step itself, the stored batch's very first transition without a future.

    Args:
      kind: "bchg", "naive-pgd" or "bi-ac".
      states, leader_actions, actions: S, A, B.
      actor_steps, critic_steps: per outer iteration.
      replay: keep all transitions instead of the last batch.
    """

    def __init__(
        self,
        kind: str,
        states: int,
        leader_actions: int,
        actions: int,
        actor_steps: int,
        critic_steps: int,
        replay: bool,
    ) -> None:
        self.kind, self.replay = kind, replay
        self.states, self.leader_actions, self.actions = states, leader_actions, actions
        self.actor_steps, self.critic_steps = actor_steps, critic_steps
        self.layers: list[Tensor] = []
        self.target: list[Tensor] = []
        self.target_policy: torch.nn.Module | None = None
        self.stored: Stored | None = None
        self._adam: torch.optim.Adam | None = None

    def begin(self, policy: torch.nn.Module, noise: Noise) -> None:
        """Makes the networks, once."""
        if not self.layers:
            sizes = (self.states + self.actions, *HIDDEN, self.leader_actions)
            self.layers = [layer.requires_grad_() for layer in xavier(sizes, noise)]
            self.target = [layer.detach().clone() for layer in self.layers]
            self.target_policy = copy.deepcopy(policy)
        if self._adam is None:
            self._adam = torch.optim.Adam(self.layers, lr=CRITIC_RATE)

    def improve(
        self,
        policy: torch.nn.Module,
        batch: Rollout,
        best: BestResponse,
        preferences: Preferences,
        noise: Noise,
        ascend: Callable[[Tensor], None],
    ) -> Tensor:
        """Fits the critic and takes the actor's steps but the last, whose surrogate is returned, [R].

        Args:
          policy: the leader's; `policy()` is f, [R, S, A].
          batch: what was just drawn, over s̄ = s · A + a.
          best: the follower's response, on whose g and V_F both networks rely.
          preferences: γ_L, γ_F and β.
          noise: draws the samples.
          ascend: takes one step of the actor along a surrogate.
        """
        self.begin(policy, noise)
        assert self.target_policy is not None
        a = self.leader_actions
        now = Stored(
            **{
                "state": batch.state.flatten(1) // a,
                "leader_action": batch.state.flatten(1) % a,
                "action": batch.action.flatten(1),
                "following": batch.next_state.flatten(1) // a,
                "reward": batch.r_leader.flatten(1),
                "step": batch.step.flatten(1),
            }
        )
        self.stored = now.joined(self.stored) if self.replay else now
        shape = (noise.runs, self.states, a)
        g = best.policy.probs.expand(noise.runs, -1, -1).reshape(*shape, self.actions)
        v_follower = best.v.values.expand(noise.runs, -1).reshape(shape)
        with torch.no_grad():
            greedy = self.target_policy().argmax(-1)  # [R, S]
        for _ in range(self.critic_steps):
            self._fit(g.argmax(-1), greedy, preferences.gamma_leader, noise)
        q = self._table(self.layers).detach()
        for _ in range(self.actor_steps - 1):
            ascend(self._surrogate(policy, q, g, v_follower, batch.starts, preferences, noise))
        last = self._surrogate(policy, q, g, v_follower, batch.starts, preferences, noise)
        self._follow(policy)
        return last

    def _table(self, layers: list[Tensor]) -> Tensor:
        """Q_L at every (s, b), [R, S, B, A]."""
        state, action = (torch.eye(size, dtype=torch.float64) for size in (self.states, self.actions))
        x = torch.cat([state.repeat_interleave(self.actions, 0), action.repeat(self.states, 1)], -1)
        q = through(layers, x.expand(len(layers[0]), -1, -1))
        return q.view(-1, self.states, self.actions, self.leader_actions)

    def _fit(self, answer: Tensor, greedy: Tensor, gamma: float, noise: Noise) -> None:
        assert self.stored is not None
        assert self._adam is not None
        data, run = self.stored, torch.arange(noise.runs)[:, None]
        index = self._drawn(noise, None)
        with torch.no_grad():
            later = self._table(self.target)
            # the leader's return at each (s', a') if the follower gives its likeliest answer, [R, S, A]
            promised = later.gather(2, answer[:, :, None]).squeeze(2)
            own = promised.gather(-1, greedy[..., None])[..., 0]
            v = promised.amax(-1) if self.kind == "bi-ac" else own
            wanted = data.reward[run, index] + gamma * v[run, data.following[run, index]]
        at = (run, data.state[run, index], data.action[run, index], data.leader_action[run, index])
        loss = (self._table(self.layers)[at] - wanted).square().mean(-1).sum()
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()

    def _surrogate(
        self,
        policy: torch.nn.Module,
        q: Tensor,
        g: Tensor,
        v_follower: Tensor,
        starts: Tensor,
        preferences: Preferences,
        noise: Noise,
    ) -> Tensor:
        """Its gradient is the actor's, [R]; constants times log f at the drawn steps."""
        assert self.stored is not None
        data, run = self.stored, torch.arange(noise.runs)[:, None]
        log_f = policy().log()
        f = log_f.detach().exp()
        index = self._drawn(noise, preferences.gamma_leader)
        s, a, b = (part[run, index] for part in (data.state, data.leader_action, data.action))
        values = q[run, s, b]  # [R, 64, A]
        taken = values.gather(-1, a[..., None])[..., 0]
        advantage = taken - (f[run, s] * values).sum(-1)
        weight = torch.zeros_like(f)
        weight.index_put_((run.expand_as(s), s, a), advantage / SAMPLE, accumulate=True)
        if self.kind == "bchg":
            others = _sampled(g[run, s, a], noise.uniform(SAMPLE, DRAWS))
            mean = q[run[..., None], s[..., None], others, a[..., None]].mean(-1)
            share = (taken - mean) / preferences.beta / SAMPLE
            kick = torch.zeros_like(data.reward)
            alone = index == 0  # the code's walk through its buffer stops at once where it begins
            kick.scatter_add_(1, index, torch.where(alone, 0.0, share))
            trace = eligibility_trace(kick.view(starts.shape), preferences.gamma_follower, starts).flatten(1)
            trace[:, 0] += torch.where(alone, share, 0.0).sum(1)
            centred = v_follower - (f * v_follower).sum(-1, keepdim=True)
            at = (run.expand_as(data.state), data.state, data.leader_action)
            weight.index_put_(at, trace * centred[at], accumulate=True)
        return (weight * log_f).flatten(1).sum(1)

    def _drawn(self, noise: Noise, gamma: float | None) -> Tensor:
        """Places in the store, [R, 64]: uniform, or in proportion to γ^step."""
        assert self.stored is not None
        count = self.stored.reward.shape[1]
        uniform = noise.uniform(SAMPLE)
        if gamma is None:
            return torch.from_numpy((uniform * count).astype(np.int64))
        weight = gamma ** self.stored.step.double()
        total = weight.cumsum(1)
        return torch.searchsorted(total, torch.from_numpy(uniform) * total[:, -1:]).clamp(max=count - 1)

    @torch.no_grad()
    def _follow(self, policy: torch.nn.Module) -> None:
        """Target networks move by 1 %."""
        assert self.target_policy is not None
        own = zip(self.target, self.layers, strict=True)
        others = zip(self.target_policy.parameters(), policy.parameters(), strict=True)
        for slow, fast in (*own, *others):
            slow.lerp_(fast.detach(), POLYAK)

    def state_dict(self) -> dict[str, Any]:
        """Networks, Adam's memory and what is stored."""
        return {
            "layers": [layer.detach().clone() for layer in self.layers],
            "target": [layer.clone() for layer in self.target],
            "target_policy": copy.deepcopy(self.target_policy.state_dict()) if self.target_policy is not None else None,
            "stored": dict(vars(self.stored)) if self.stored is not None and self.replay else None,
            "adam": copy.deepcopy(self._adam.state_dict()) if self._adam is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any], policy: torch.nn.Module) -> None:
        """Puts back what `state_dict` gave; `policy` is of the target policy's kind."""
        self.layers = [layer.clone().requires_grad_() for layer in state["layers"]]
        self.target = [layer.clone() for layer in state["target"]]
        if state["target_policy"] is not None:
            self.target_policy = copy.deepcopy(policy)
            self.target_policy.load_state_dict(state["target_policy"])
        self.stored = Stored(**state["stored"]) if state["stored"] is not None else None
        if state["adam"] is not None:
            self._adam = torch.optim.Adam(self.layers, lr=CRITIC_RATE)
            self._adam.load_state_dict(state["adam"])


def untrained(runs: int, states: int, actions: int, beta: float) -> BestResponse:
    """The follower before it has learnt: Q_F = 0, so that every action is as likely."""
    q = torch.zeros(runs, states, actions, dtype=torch.float64)
    policy = BoltzmannPolicy(torch.log_softmax(q, -1))
    v = beta * torch.logsumexp(q / beta, -1)
    return BestResponse(policy, Table(q), Table(v), torch.full((runs,), float("nan")), optimal=False)


def _sampled(probs: Tensor, uniform: np.ndarray) -> Tensor:
    """Draws from probabilities [R, K, B] by inverse CDF, [R, K, D]."""
    cdf = probs.cumsum(-1)[..., :-1]
    return (torch.from_numpy(uniform)[..., None] >= cdf[:, :, None]).sum(-1)
