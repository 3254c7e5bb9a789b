"""The published form of the leaders of games: small networks, Adam, replay (arXiv:2603.14867; values from the code)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.temporal_differences import xavier
from bilevel_envs.wrapper import BilevelWrapper
from leaders.config import PublishedGame
from leaders.functional.weights import eligibility_trace

HIDDEN = (64, 64)
SAMPLE = 64  # transitions per step of either network
DRAWS = 256  # of the follower's action, for the benefit
POLYAK = 0.01


@dataclass(frozen=True)
class Stored:
    """Transitions, [R, K] each, or [R, K, d] for vectors.

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


M = TypeVar("M", bound=Model)
B = TypeVar("B", bound=BestResponse)
Drawn: TypeAlias = tuple[Tensor, M, B]  # θ, the model there and the response that a batch is drawn with


class ActorCritic(Generic[M, B]):
    """One outer iteration of a published leader in a game; subclasses know the game's spaces.

    The actor follows Q_L less its mean over the leader's own moves, b held fixed, and, for BC-HG, the benefit times
    ∇Q_F along what is left of the stored episode. Target networks move by 1 % per outer iteration. Slips of the
    published code are kept: targets at likeliest moves, a baseline that depends on b, ∇Q_F summed from the step itself,
    the stored batch's very first transition without a future.

    Args:
      kind: "bchg", "naive-pgd" or "bi-ac".
      sizes: widths of the critic's network, its inputs and outputs included.
      actor_steps, critic_steps: per outer iteration.
      critic_rate: step size of the critic's Adam.
      replay: keep all transitions instead of the last batch.

    Attributes:
      batch_size, rows: transitions and episodes drawn per outer iteration.
      settings: of the leader's ascent.
      policy: name of the leader's parameterisation; None for the environment's default.
    """

    batch_size: ClassVar[int]
    rows: ClassVar[int]
    policy: ClassVar[str | None] = None

    def __init__(
        self, kind: str, sizes: tuple[int, ...], actor_steps: int, critic_steps: int, critic_rate: float, replay: bool
    ) -> None:
        self.kind, self.sizes, self.replay = kind, sizes, replay
        self.actor_steps, self.critic_steps, self.critic_rate = actor_steps, critic_steps, critic_rate
        self.layers: list[Tensor] = []
        self.target: list[Tensor] = []
        self.target_policy: torch.nn.Module | None = None
        self.stored: Stored | None = None
        self._adam: torch.optim.Adam | None = None

    @property
    def form(self) -> PublishedGame:
        """The settings that go with it."""
        return PublishedGame(self.settings, self.policy, self.batch_size, self.rows)

    # What a subclass provides ---------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, object]:
        """Fields of `LeaderConfig` that the published code sets."""
        raise NotImplementedError

    def behaviour(self, env: BilevelWrapper, theta: Tensor, model: M, best: B, iteration: int) -> Drawn[M, B]:
        """θ, the world and the follower's response that a batch is drawn with: random ones while the code explores.

        Args:
          env: the game.
          theta: the leader's policy.
          model: the follower's world at θ.
          best: its response.
          iteration: outer iterations done.
        """
        raise NotImplementedError

    def _transitions(self, batch: Rollout) -> Stored:
        """A batch over s̄ as transitions of the game, rows one after another."""
        raise NotImplementedError

    def _loss(self, index: Tensor, best: B, gamma: float) -> Tensor:
        """The critic's mean squared error at stored transitions `index` [R, 64], [R]."""
        raise NotImplementedError

    def _surrogate(
        self, policy: torch.nn.Module, starts: Tensor, best: B, preferences: Preferences, noise: Noise
    ) -> Tensor:
        """Its gradient is the actor's, [R]; constants times log f at the drawn steps."""
        raise NotImplementedError

    # What all share -------------------------------------------------------------------------------------------

    def begin(self, policy: torch.nn.Module, noise: Noise) -> None:
        """Makes the networks, once."""
        if not self.layers:
            self.layers = [layer.requires_grad_() for layer in xavier(self.sizes, noise)]
            self.target = [layer.detach().clone() for layer in self.layers]
            self.target_policy = copy.deepcopy(policy)
        if self._adam is None:
            self._adam = torch.optim.Adam(self.layers, lr=self.critic_rate)

    def improve(
        self,
        policy: torch.nn.Module,
        batch: Rollout,
        best: B,
        preferences: Preferences,
        noise: Noise,
    ) -> list[Callable[[], Tensor]]:
        """Fits the critic; returns the surrogates of the actor's steps, each to be made where the step before has led.

        Args:
          policy: the leader's; `policy()` is θ.
          batch: what was just drawn, over s̄ = (s, a).
          best: the follower's response, on whose g and V_F both networks rely.
          preferences: γ_L, γ_F and β.
          noise: draws the samples.
        """
        self.begin(policy, noise)
        assert self._adam is not None
        now = self._transitions(batch)
        self.stored = now.joined(self.stored) if self.replay else now
        for _ in range(self.critic_steps):
            loss = self._loss(self._drawn(noise, None), best, preferences.gamma_leader).sum()
            self._adam.zero_grad()
            loss.backward()
            self._adam.step()

        def step() -> Tensor:
            return self._surrogate(policy, batch.starts, best, preferences, noise)

        def last() -> Tensor:
            surrogate = step()
            self._follow(policy)
            return surrogate

        return [*[step] * (self.actor_steps - 1), last]

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

    def state_dict(self) -> dict[str, object]:
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
            self._adam = torch.optim.Adam(self.layers, lr=self.critic_rate)
            self._adam.load_state_dict(state["adam"])


def replayed_trace(share: Tensor, index: Tensor, starts: Tensor, gamma: float) -> Tensor:
    """Σ_j share_j γ^(k − j) over the drawn steps j of the episode of step k, j itself included, [R, K].

    Args:
      share: what each drawn step adds, [R, 64].
      index: where they are stored, [R, 64].
      starts: where episodes begin, [R, N, T] with N · T = K.
      gamma: γ_F.
    """
    guiding = torch.zeros(starts.shape, dtype=share.dtype).flatten(1)
    alone = index == 0  # the code's walk through its buffer stops at once where it begins
    guiding.scatter_add_(1, index, torch.where(alone, 0.0, share))
    trace = eligibility_trace(guiding.view(starts.shape), gamma, starts).flatten(1)
    trace[:, 0] += torch.where(alone, share, 0.0).sum(1)
    return trace
