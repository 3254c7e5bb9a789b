r"""How θ moves the next state, where nobody has written it down: learnt from transitions at θ and around it.

The follower's episodes at θ say nothing of what another θ would do, so the leader takes some more at θ that are
perturbed row by row. To the Gaussian that is fitted to all of them (`bilevel_envs.networks.dynamics`) the next state is

.. math::

    s'(\theta) = s + \mu_\theta(s, b) + \sigma_\theta(s, b)\, \epsilon,

with the ε that was observed, so that ∂s'/∂θ carries both players' ∇V(s') back to θ. What a step logs is learnt alike,
c(θ) = μ^c_θ(s, b) + σ^c_θ(s, b) ε^c, for components of s' move with θ, too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout, Terms
from bilevel_envs.core.checks import lacking
from bilevel_envs.core.follower import (
    BestResponse,
    DifferentiableValueFunction,
    NotAvailableError,
    Points,
    Policy,
    ValueFunction,
    action_shape_of,
)
from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.dynamics import DynamicsFit, GaussianDynamics
from bilevel_envs.networks.temporal_differences import Fit, TemporalDifference
from bilevel_envs.worlds.declared.dynamics import DynamicsModel
from bilevel_envs.wrapper import BilevelWrapper
from leaders.critics.cross_fit import HALVES
from leaders.critics.network import action_nodes
from leaders.estimators.guiding import Further, Guiding
from leaders.estimators.sample import Sample
from leaders.estimators.transition import Score
from leaders.functional.guiding import Rule
from leaders.functional.per_step import per_step_gradient
from leaders.functional.weights import Weights

FIRST = 8_000  # transitions at perturbed θ before the first estimate
LATER = 0.25  # transitions at perturbed θ beside each batch, as a share of it
KEPT = 60_000  # transitions that are kept
KEPT_PARTS = ("x", "moved", "logged", "held", "episodes", "warned")
HELD = 5  # every fifth episode is held out
HOW = DynamicsFit()
TRUSTED_R2 = 0.5  # on held-out episodes, in the entry of the state that is told worst
TRUSTED_SHARE = 0.7  # of held-out entries inside 90 % intervals

logger = logging.getLogger("leaders")


@dataclass(frozen=True)
class Rowwise:
    """A policy of R runs, asked for each of their K rows as if it were a run: run i's are i·K to i·K + K − 1.

    Attributes:
      policy: of R runs.
      runs: R.
    """

    policy: Policy
    runs: int

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The policy's."""
        return action_shape_of(self.policy)

    def sample(self, state: Points, uniform: Points) -> Tensor:
        """Actions at states [R·K, 1, ...]."""
        folded = [torch.as_tensor(part) for part in (state, uniform)]
        folded = [part.reshape(self.runs, -1, *part.shape[2:]) for part in folded]
        action = self.policy.sample(*folded)
        return action.reshape(-1, 1, *action.shape[2:])

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """log g(b | s), [R·K, 1]."""
        folded = [part.reshape(self.runs, -1, *part.shape[2:]) for part in (state, action)]
        return self.policy.log_prob(*folded).reshape(-1, 1)


class LearntDynamics:
    """Transitions at θ and around it, and the Gaussian that they tell.

    Args:
      leader: the leader's class, for messages.
      actions: discrete ones, which are read one-hot; 0 for vectors.
      space: what θ may be.
      share: how far θ is perturbed, as a share of its interval: uniformly in [−share, share] times high − low, inside
        the space. Where θ has no bounds, of twice the larger of 1 and |θ|.
      gamma: γ_F.
    """

    def __init__(self, leader: str, actions: int, space: gym.spaces.Box, share: float, gamma: float) -> None:
        self.leader, self.actions, self.space, self.share = leader, actions, space, share
        self.network, self.logs = GaussianDynamics(HOW), GaussianDynamics(HOW)
        self.reactions = [TemporalDifference(gamma, Fit()) for _ in range(HALVES)]
        self.x = self.moved = self.logged = torch.empty(0)  # (s, b, θ) [R, K, d], s' − s [R, K, n], c [R, K, C]
        self.held = torch.empty(0)  # bool [R, K]
        self.episodes = torch.empty(0)  # begun so far, [R]
        self.told, self.inside = np.array(np.nan), np.array(np.nan)
        self.warned = False

    def perturbed(self, theta: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """θ near by, from θ ``[R, *θ.shape]`` and uniform numbers ``[R, K, *θ.shape]``, shaped like them."""
        low, high = self.space.low, self.space.high
        bounded = np.isfinite(low) & np.isfinite(high)
        width = np.where(bounded, np.where(bounded, high, 0) - np.where(bounded, low, 0), 2 * np.abs(theta).clip(1))
        least, most = np.maximum(theta - self.share * width, low), np.minimum(theta + self.share * width, high)
        return least[:, None] + (most - least)[:, None] * uniform

    def explore(
        self, env: BilevelWrapper, theta: Tensor, best: BestResponse, horizon: int, batch: int, noise: Noise
    ) -> int:
        """Adds rows of the follower's that are taken at perturbed θ; the environment steps of each run."""
        rows = -(-(int(LATER * batch) if len(self.x) else FIRST) // horizon)
        at = self.perturbed(theta.numpy(), noise.uniform(rows, *theta.shape[1:]))
        each = torch.from_numpy(at).flatten(0, 1)
        policy = Rowwise(best.behavior_policy, len(theta))
        streams = Noise(noise.seeds(rows).flatten().tolist())
        drawn = env.rollout(
            each,
            replace(best, policy=policy, actual_policy=None),
            streams,
            rows=1,
            horizon=horizon,
            sampler="steps",
            model=env.model(each),
        )
        self.add(drawn.of_runs(len(theta)), torch.from_numpy(at))
        return rows * horizon

    def add(self, batch: Rollout, theta: Tensor) -> None:
        """Keeps the transitions of a batch, taken at θ ``[R, N, *θ.shape]``; every fifth episode is held out."""
        runs = len(batch.state)
        begun = batch.starts.flatten(1).cumsum(1)
        if not len(self.x):
            self.episodes = torch.zeros(runs, dtype=torch.int64)
            self.held = torch.empty(runs, 0, dtype=torch.bool)
            self.x = self.moved = self.logged = torch.empty(runs, 0, 0, dtype=torch.float64)
        held = (begun + self.episodes[:, None]) % HELD == 0
        self.episodes = self.episodes + begun[:, -1]
        x = self.inputs(batch, theta.flatten(2)[:, :, None]).flatten(1, 2)
        moved = (batch.next_state - batch.state).double().flatten(1, 2)
        assert batch.components is not None, "black boxes log them"
        logged = batch.components.double().flatten(1, 2)
        for name, part in (("x", x), ("moved", moved), ("held", held), ("logged", logged)):
            old = getattr(self, name)
            old = old if old.shape[1] else part[:, :0]
            setattr(self, name, torch.cat([old, part], 1)[:, -KEPT:].detach())

    def fit(self, noise: Noise) -> None:
        """Goes on with the network, and says once if it cannot be trusted."""
        self.network.fit(self.x, self.moved, ~self.held, noise)
        self.logs.fit(self.x, self.logged, ~self.held, noise)
        told, inside = self.network.quality(self.x, self.moved, self.held)
        self.told, self.inside = told.numpy(), inside.numpy()
        if not self.warned and ((told < TRUSTED_R2) | (inside < TRUSTED_SHARE)).any():
            self.warned = True
            logger.warning(
                "%s: the dynamics learnt so far should not be trusted, nor estimates that use them. On held-out "
                "episodes R² of the next state is %.2f (%.2f is wanted) in the entry that is told worst, and 90 %% "
                "intervals hold %.0f %% (%.0f %% are wanted). Raise `batch_size`, or show the follower what is missing "
                "in its observation; a world whose own noise is that large may be led by CMAES.",
                self.leader,
                told.min(),
                TRUSTED_R2,
                100 * inside.min(),
                100 * TRUSTED_SHARE,
            )

    def inputs(self, batch: Rollout, theta: Tensor) -> Tensor:
        """(s, b, θ) at the steps of a batch, [R, N, T, d], from θ [R, 1|N, 1, P]."""
        return torch.cat([self.pairs(batch.state, batch.action), theta.expand(*batch.step.shape, -1)], -1)

    def pairs(self, state: Tensor, action: Tensor) -> Tensor:
        """(s, b) side by side, discrete actions one-hot, [R, ..., d]."""
        if action.ndim < state.ndim:
            action = torch.nn.functional.one_hot(action, self.actions)
        return torch.cat([state.double(), action.double()], -1)

    def model(self, model: DynamicsModel) -> LearntModel:
        """A model with the dynamics as they are known now, also for so many times as many runs.

        Raises:
          ValueError: if nothing has been learnt.
        """
        if not len(self.x):
            raise ValueError("`dynamics` have not been learnt yet: let the leader `learn` first")
        count = model.runs // len(self.x)
        if count == 1:
            return LearntModel(model, self, self.network, self.logs, self.reactions)
        copies = self.network.copies(count), self.logs.copies(count)
        return LearntModel(model, self, *copies, [one.copies(count) for one in self.reactions])

    def state_dict(self) -> dict[str, object]:
        """The network, and what it was fitted to."""
        kept = {name: getattr(self, name) for name in KEPT_PARTS}
        reactions = [one.state_dict() for one in self.reactions]
        return kept | {"network": self.network.state_dict(), "logs": self.logs.state_dict(), "reactions": reactions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        self.logs.load_state_dict(state["logs"])
        for one, saved in zip(self.reactions, state["reactions"], strict=True):
            one.load_state_dict(saved)
        for name in KEPT_PARTS:
            setattr(self, name, state[name])


@dataclass(frozen=True)
class LearntModel:
    """A declared model, with dynamics that were learnt.

    Attributes:
      model: of which both rewards are known.
      dynamics: how inputs are made.
      network: what was learnt of s', for the model's runs.
      logs: of components.
      reactions: networks of ∇V_F, one for each part of a batch; they go on learning.
    """

    model: DynamicsModel
    dynamics: LearntDynamics
    network: GaussianDynamics
    logs: GaussianDynamics
    reactions: Sequence[TemporalDifference]

    def ahead(self, state: Tensor, action: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
        """Where other actions would have led, with the same ε, and what they would have logged.

        Args:
          state: [R, K, n].
          action: J of them at each, [R, K, J, ...].
          white: ε, [R, K, n].

        Returns:
          s' as θ moves it, [R, K, J, n], and components' means as θ moves them, [R, K, J, C].
        """
        runs, steps, many = action.shape[:3]
        wide = state[:, :, None].expand(runs, steps, many, -1)
        x = self.dynamics.pairs(wide, action)
        theta = self.model.theta.flatten(1)[:, None, None].expand(runs, steps, many, -1)
        at = torch.cat([x, theta], -1).flatten(1, 2)
        mean, log_deviation = (part.view(wide.shape) for part in self.network(at))
        components = self.logs(at)[0].view(runs, steps, many, -1)
        return wide + mean + log_deviation.exp() * white[:, :, None], components

    def white(self, rollout: Rollout) -> Tensor:
        """ε as it was seen, [R, N, T, n]."""
        with torch.no_grad():
            return self._moves(rollout)[2]

    def terms(self, rollout: Rollout, policy: Policy | None = None) -> Terms:
        """The model's terms, log p of the moves seen, and the next state as θ moves it; first states are free of θ."""
        mean, log_deviation, white = self._moves(rollout)
        return replace(
            self.model.terms(rollout, policy),
            log_arrival=-(white.square() / 2 + log_deviation).sum(-1),
            mean_next=rollout.state + mean + log_deviation.exp() * white.detach(),
        )

    def rewards(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """r_F and r_L of the components seen, as θ moves these, too, [R, N, T] each.

        The scores' weights hold what moving components bring; `terms` are for them.
        """
        seen = cast(Tensor, rollout.components).double()
        x = self.dynamics.inputs(rollout, self.model.theta.flatten(1)[:, None, None]).flatten(1, 2)
        mean, log_deviation = (part.view(seen.shape) for part in self.logs(x))
        return self.model.rewards(mean + log_deviation.exp() * ((seen - mean) * (-log_deviation).exp()).detach())

    def _moves(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """μ, log σ and ε of s' − s, [R, N, T, n] each."""
        x = self.dynamics.inputs(rollout, self.model.theta.flatten(1)[:, None, None]).flatten(1, 2)
        mean, log_deviation = (part.view(rollout.state.shape) for part in self.network(x))
        moved = (rollout.next_state - rollout.state).double()
        return mean, log_deviation, (moved - mean) * (-log_deviation).exp()


@dataclass(frozen=True)
class LearntPathwise(Score):
    """∇V(s') of both players, taken along ∂s'/∂θ of learnt dynamics; needs no ∇log p."""

    def moved(self, weights: Weights, sample: Sample) -> Weights:
        goes_on = (sample.batch.valid & ~sample.batch.terminated)[..., None]
        slope = sample.judges.leader_gradient(sample.best.policy)(sample.batch.next_state, sample.batch.step + 1)
        arrives = (sample.preferences.gamma_leader * sample.discounts)[..., None] * slope
        if sample.rule.reads_follower:
            arrives = arrives + weights.r_follower[..., None] * self._follower(sample)
        return replace(weights, log_arrival=None, mean_next=arrives * goes_on)

    def added(self, sample: Sample) -> Tensor:
        """What a step adds to ∇Q_F: ∇r_F + γ_F ∇V_F(s') ∂s'/∂θ, as the gradient of a term [R, N, T]."""
        goes_on = sample.batch.valid & ~sample.batch.terminated
        following = sample.terms.mean_next
        assert following is not None, "a learnt model moves it"
        arrives = (self._follower(sample) * following).sum(-1) * goes_on
        return arrives + sample.model.rewards(sample.batch)[0] * sample.batch.valid

    def further(self, weights: Weights, sample: Sample, onward: Rule) -> Tensor | float:
        """What components bring that move with θ, [R]: all that rewards change by beyond θ's own place in them."""
        r_follower, r_leader = sample.model.rewards(sample.batch)
        gain = weights.r_leader * (r_leader - sample.terms.r_leader)
        return (gain + weights.r_follower * (r_follower - sample.terms.r_follower)).sum((1, 2))

    def _follower(self, sample: Sample) -> Tensor:
        """γ_F ∇V_F where the steps led, [R, N, T, n]."""
        return sample.preferences.gamma_follower * slope_of(sample.best.v, sample.batch.next_state)


@dataclass(frozen=True)
class LearntGuiding(Guiding):
    r"""Σ_t γ_L^t Cov_b(Q_L, ∇Q_F)(s_t) / β, both one step ahead in what was learnt; states alone are sampled.

    ::

        s'(b) = s + μ_θ(s, b) + σ_θ(s, b) ε           with the ε of the step for Q_L, of the step after for ∇Q_F
        Q_L(s, b) = r_L(s, b) + γ_L V_L(s'(b))
        ∇Q_F(s, b) = ∇r_F(s, b) + γ_F (∇V_F(s'(b)) ∂s'(b)/∂θ + U(s'(b))),     U = ∇_θ V_F, by temporal differences

    Actions differ by what they do in one step, beside which networks of (s, b) are coarse. Each V_L is multiplied by a
    U that was fitted to the steps which that V_L has not seen. Where a step ended its episode, none of its actions is
    taken to go on; where it did not, all are.
    """

    def trace(self, sample: Sample) -> Tensor:
        return torch.zeros_like(sample.discounts)

    def further(self, sample: Sample) -> Further:
        batch, policy, prefs = sample.batch, sample.best.policy, sample.preferences
        model: LearntModel = sample.model
        state, onward = batch.state.double().flatten(1, 2), (batch.valid & ~batch.terminated).flatten(1)
        action, share = action_nodes(policy, state, sample.noise)
        white, goes_on = model.white(batch).flatten(1, 2), onward[..., None].double()
        led = model.ahead(state, action, white)[0].detach()
        reached, components = model.ahead(state, action, white.roll(-1, 1))  # no noise is common to both factors
        arrived = reached.detach()
        r_follower, r_leader = model.model.rewards(components)
        slope = prefs.gamma_follower * slope_of(sample.best.v, arrived) * goes_on[..., None]
        added = per_step_gradient(r_follower + (slope * reached).sum(-1), sample.theta)
        brought = per_step_gradient(LearntPathwise().added(sample), sample.theta).flatten(1, 2)
        weight = sample.discounts.flatten(1) / prefs.beta / len(sample.judges.critics)
        later = batch.next_state.double().flatten(1, 2)
        total = torch.zeros_like(sample.theta.detach().flatten(1))
        for critic, reaction, part in zip(sample.judges.critics, model.reactions, sample.judges.parts, strict=False):
            used = (batch.valid & part).flatten(1)
            reaction.fit(state, brought, used, lambda f: f(later) * goes_on, sample.noise)
            q = r_leader.detach() + prefs.gamma_leader * critic.state_value(led) * goes_on
            benefit = q - (share * q).sum(-1, keepdim=True)
            reacts = added + prefs.gamma_follower * reaction(arrived) * goes_on[..., None]
            total = total + ((weight[..., None] * share * benefit)[..., None] * reacts).sum((1, 2))
        return (total * sample.theta.flatten(1)).sum(1), 0


def slope_of(v: ValueFunction, state: Tensor) -> Tensor:
    """∇V_F at states, shaped like them; refuses a V_F that has none."""
    if lacking(v, ["gradient"]):
        raise NotAvailableError(
            f'`gradient` must be "score" with a follower whose V_F has no `gradient`, here {type(v).__name__}'
        )
    return cast(DifferentiableValueFunction, v).gradient(state.double())
