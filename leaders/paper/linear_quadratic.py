"""The published leaders of the bilevel LQR."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.mdp import Preferences, kind_of
from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.temporal_differences import through
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.linear_quadratic.policy import LinearResponse
from bilevel_envs.wrapper import BilevelWrapper
from leaders.paper.actor_critic import DRAWS, HIDDEN, SAMPLE, ActorCritic, Drawn, Stored, replayed_trace

AT_RANDOM = 11  # outer iterations whose leader draws its moves from N(0, 1) instead of its policy
OWN_DRAWS = 32  # of the leader's move, for the advantage
SEEN = 2  # entries of the state


class LinearActorCritic(ActorCritic[LinearQuadraticModel, LinearResponse]):
    r"""In the bilevel LQR: f = N(K s, W²) and a critic of (s, b, a), its target at the mean moves of both players.

    Further slips that are kept: ten steps of K on one batch, of which the first already moves K a hundred W away;
    scores of order 1e5 in the eleven iterations of random moves; V_F not centred; Naive-PGD without a clip.

    Args:
      kind: "bchg" or "naive-pgd".
      deviation: W.
      replay: keep all transitions instead of the last batch.
    """

    batch_size, rows = 400, 4

    def __init__(self, kind: str, deviation: float, replay: bool) -> None:
        self.deviation = deviation
        super().__init__(kind, (SEEN + 2, *HIDDEN, 1), 2 if replay else 10, 5, 0.1, replay)

    @property
    def settings(self) -> dict[str, object]:
        """Adam with step 0.1; BC-HG alone clips its gradient."""
        clip = 1.0 if self.kind == "bchg" else float("inf")
        return {"learning_rate": 0.1, "optimizer": "adam", "max_grad_norm": clip}

    def behaviour(
        self, env: BilevelWrapper, theta: Tensor, model: LinearQuadraticModel, best: LinearResponse, iteration: int
    ) -> Drawn[LinearQuadraticModel, LinearResponse]:
        """Four episodes; the leader's moves from N(0, 1) at first, answered as if they were its policy's."""
        if kind_of(best.policy) != "linear_quadratic":
            raise TypeError(
                f"`follower` must answer with a GaussianPolicy for the published form, got {type(best.policy).__name__}"
            )
        if iteration < AT_RANDOM:
            model = replace(env.problem, deviation=1.0).model(torch.zeros_like(theta))  # type: ignore[type-var, assignment]
        return theta, model, best

    def _transitions(self, batch: Rollout) -> Stored:
        state = batch.state.flatten(1, 2)
        return Stored(
            state=state[..., :SEEN],
            leader_action=state[..., SEEN:],
            action=batch.action.flatten(1, 2),
            following=batch.next_state.flatten(1, 2)[..., :SEEN],
            reward=batch.r_leader.flatten(1),
            step=batch.step.flatten(1),
        )

    def _q(self, layers: list[Tensor], state: Tensor, action: Tensor, leader_action: Tensor) -> Tensor:
        """Q_L(s, b, a) at [R, ..., d], [R, ...]."""
        x = torch.cat([state, action, leader_action], -1)
        return through(layers, x.flatten(1, -2)).view(x.shape[:-1])

    def _loss(self, index: Tensor, best: LinearResponse, gamma: float) -> Tensor:
        s, a, b, following, reward = self._at(index)
        assert self.target_policy is not None
        with torch.no_grad():
            move = following @ self.target_policy().mT
            answer = best.policy.mean(torch.cat([following, move], -1))
            wanted = reward + gamma * self._q(self.target, following, answer, move)
        return (self._q(self.layers, s, b, a) - wanted).square().mean(-1)

    def _surrogate(
        self, policy: torch.nn.Module, starts: Tensor, best: LinearResponse, preferences: Preferences, noise: Noise
    ) -> Tensor:
        assert self.stored is not None
        theta = policy()
        gain = theta.detach()

        def log_f(state: Tensor, move: Tensor) -> Tensor:
            return -((move - state @ theta.mT)[..., 0] ** 2) / (2 * self.deviation**2)

        index = self._drawn(noise, preferences.gamma_leader)
        s, a, b, _, _ = self._at(index)
        with torch.no_grad():
            taken = self._q(self.layers, s, b, a)
            own = (s @ gain.mT)[:, :, None] + self.deviation * torch.from_numpy(noise.normal(SAMPLE, OWN_DRAWS, 1))
            here, answer = (x[:, :, None].expand(-1, -1, OWN_DRAWS, -1) for x in (s, b))
            advantage = taken - self._q(self.layers, here, answer, own).mean(-1)
        total = (advantage * log_f(s, a)).mean(-1)
        if self.kind == "bchg":
            with torch.no_grad():
                here, move = (x[:, :, None].expand(-1, -1, DRAWS, -1) for x in (s, a))
                others = best.policy.sample(torch.cat([here, move], -1), noise.uniform(SAMPLE, DRAWS, 1))
                benefit = taken - self._q(self.layers, here, others, move).mean(-1)
                trace = replayed_trace(benefit / preferences.beta / SAMPLE, index, starts, preferences.gamma_follower)
                v_follower = best.v(self.stored.state, self.stored.leader_action)
            total = total + (trace * v_follower * log_f(self.stored.state, self.stored.leader_action)).sum(-1)
        return total

    def _at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """s, a, b, s' and r_L of stored transitions."""
        assert self.stored is not None
        data, run = self.stored, torch.arange(len(index))[:, None]
        parts = (data.state, data.leader_action, data.action, data.following, data.reward)
        s, a, b, following, reward = (part[run, index] for part in parts)
        return s, a, b, following, reward
