"""The published leaders of finite games."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.temporal_differences import through
from bilevel_envs.worlds.tabular.model import Table, TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy, TabularResponse
from bilevel_envs.wrapper import BilevelWrapper
from leaders.paper.actor_critic import DRAWS, HIDDEN, SAMPLE, ActorCritic, Drawn, Stored, replayed_trace

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
DEFAULT_UPDATES = (1, 1)  # for games that the paper does not show


class TableActorCritic(ActorCritic[TabularModel, TabularResponse]):
    """In a finite game: a softmax network for f, a critic of (s, b) with one output per move of the leader.

    The critic's target is greedy in both players' policies, or a stage game's for Bi-AC. The first outer iteration is
    played at random by both.

    Args:
      kind: "bchg", "naive-pgd" or "bi-ac".
      states, leader_actions, actions: S, A, B.
      updates: steps of actor and critic per outer iteration.
      replay: keep all transitions instead of the last batch.
    """

    batch_size, rows, policy = 450, 3, "mlp"

    def __init__(
        self, kind: str, states: int, leader_actions: int, actions: int, updates: tuple[int, int], replay: bool
    ) -> None:
        self.states, self.leader_actions, self.actions = states, leader_actions, actions
        super().__init__(kind, (states + actions, *HIDDEN, leader_actions), *updates, 1e-3, replay)

    @property
    def settings(self) -> dict[str, object]:
        """Adam with step 1e-4, gradients not clipped."""
        return {"learning_rate": 1e-4, "optimizer": "adam", "max_grad_norm": float("inf")}

    def behaviour(
        self, env: BilevelWrapper, theta: Tensor, model: TabularModel, best: TabularResponse, iteration: int
    ) -> Drawn[TabularModel, TabularResponse]:
        """Three episodes; the very first ones uniformly at random on both sides."""
        if iteration == 0:
            theta = torch.full_like(theta, 1 / theta.shape[-1])
            best = untrained(len(theta), model.states, model.actions, env.preferences.beta)
            model = env.model(theta)
        return theta, model, best

    def _transitions(self, batch: Rollout) -> Stored:
        a = self.leader_actions
        return Stored(
            state=batch.state.flatten(1) // a,
            leader_action=batch.state.flatten(1) % a,
            action=batch.action.flatten(1),
            following=batch.next_state.flatten(1) // a,
            reward=batch.r_leader.flatten(1),
            step=batch.step.flatten(1),
        )

    def _table(self, layers: list[Tensor]) -> Tensor:
        """Q_L at every (s, b), [R, S, B, A]."""
        state, action = (torch.eye(size, dtype=torch.float64) for size in (self.states, self.actions))
        x = torch.cat([state.repeat_interleave(self.actions, 0), action.repeat(self.states, 1)], -1)
        q = through(layers, x.expand(len(layers[0]), -1, -1))
        return q.view(-1, self.states, self.actions, self.leader_actions)

    def _by_pair(self, table: Tensor) -> Tensor:
        """A follower's table over s̄ for each s and a, [R, S, A, ...]."""
        return table.expand(len(self.layers[0]), *table.shape[1:]).unflatten(1, (self.states, self.leader_actions))

    def _loss(self, index: Tensor, best: TabularResponse, gamma: float) -> Tensor:
        assert self.stored is not None
        assert self.target_policy is not None
        data, run = self.stored, torch.arange(len(index))[:, None]
        with torch.no_grad():
            greedy = self.target_policy().argmax(-1)  # [R, S]
            answer = self._by_pair(best.policy.probs).argmax(-1)
            # the leader's return at each (s', a') if the follower gives its likeliest answer, [R, S, A]
            promised = self._table(self.target).gather(2, answer[:, :, None]).squeeze(2)
            own = promised.gather(-1, greedy[..., None])[..., 0]
            v = promised.amax(-1) if self.kind == "bi-ac" else own
            wanted = data.reward[run, index] + gamma * v[run, data.following[run, index]]
        at = (run, data.state[run, index], data.action[run, index], data.leader_action[run, index])
        return (self._table(self.layers)[at] - wanted).square().mean(-1)

    def _surrogate(
        self, policy: torch.nn.Module, starts: Tensor, best: TabularResponse, preferences: Preferences, noise: Noise
    ) -> Tensor:
        assert self.stored is not None
        data, run = self.stored, torch.arange(noise.runs)[:, None]
        log_f = policy().log()
        f = log_f.detach().exp()
        index = self._drawn(noise, preferences.gamma_leader)
        s, a, b = (part[run, index] for part in (data.state, data.leader_action, data.action))
        q = self._table(self.layers).detach()
        values = q[run, s, b]  # [R, 64, A]
        taken = values.gather(-1, a[..., None])[..., 0]
        advantage = taken - (f[run, s] * values).sum(-1)
        weight = torch.zeros_like(f)
        weight.index_put_((run.expand_as(s), s, a), advantage / SAMPLE, accumulate=True)
        if self.kind == "bchg":
            g, v_follower = self._by_pair(best.policy.probs), self._by_pair(best.v.values)
            others = _sampled(g[run, s, a], noise.uniform(SAMPLE, DRAWS))
            mean = q[run[..., None], s[..., None], others, a[..., None]].mean(-1)
            share = (taken - mean) / preferences.beta / SAMPLE
            trace = replayed_trace(share, index, starts, preferences.gamma_follower)
            centred = v_follower - (f * v_follower).sum(-1, keepdim=True)
            at = (run.expand_as(data.state), data.state, data.leader_action)
            weight.index_put_(at, trace * centred[at], accumulate=True)
        return (weight * log_f).flatten(1).sum(1)


def untrained(runs: int, states: int, actions: int, beta: float) -> TabularResponse:
    """The follower before it has learnt: Q_F = 0, so that every action is as likely."""
    q = torch.zeros(runs, states, actions, dtype=torch.float64)
    policy = BoltzmannPolicy(torch.log_softmax(q, -1))
    v = beta * torch.logsumexp(q / beta, -1)
    return BestResponse(policy, Table(q), Table(v), torch.full((runs,), float("nan")), optimal=False)


def _sampled(probs: Tensor, uniform: np.ndarray) -> Tensor:
    """Draws from probabilities [R, K, B] by inverse CDF, [R, K, D]."""
    cdf = probs.cumsum(-1)[..., :-1]
    return (torch.from_numpy(uniform)[..., None] >= cdf[:, :, None]).sum(-1)
