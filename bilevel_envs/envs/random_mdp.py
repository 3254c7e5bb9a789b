"""Random MDPs in which θ may enter everywhere: the testing ground for estimators."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_memory, check_seed, check_shape, keep_counts, keep_numbers
from bilevel_envs.core.mdp import ConfigurableMDP, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Free
from bilevel_envs.rendering.drawing import graph_image
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.transitions import Transitions


class _Affine(NamedTuple):
    """base + slope · θ for one table."""

    base: Tensor
    slope: Tensor

    def at(self, theta: Tensor) -> Tensor:
        return self.base + torch.einsum("...d,rd->r...", self.slope, theta)


class _Tables(NamedTuple):
    lists: Transitions
    transition: _Affine
    initial: _Affine
    r_leader: _Affine
    r_follower: _Affine


@dataclass(frozen=True)
class RandomMDP(ConfigurableMDP):
    r"""A Garnet MDP whose rewards, transitions and start depend on θ as much as you ask.

    Description:
        Every pair (s, b) has ``branching`` successors, drawn at random. Transition logits, rewards and start logits are
        affine in θ: bases and slopes are N(0, 1), the slopes times their share κ:

        .. math::

            r(s, b; \theta) = R_0 + \kappa_r R_1 \cdot \theta, \quad
            p(\cdot \mid s, b; \theta) = \mathrm{softmax}(\Lambda_0 + \kappa_p \Lambda_1 \cdot \theta), \quad
            \rho_0(\cdot; \theta) = \mathrm{softmax}(\lambda_0 + \kappa_0 \lambda_1 \cdot \theta) .

    Action Space:
        ``Discrete(actions)``.

    Observation Space:
        ``Discrete(states)``.

    Starting State:
        Drawn from softmax of the start logits.

    Configuration:
        θ ∈ R^dim, 0 by default. Parameterisation: θ itself, started at N(0, 0.1²).

    Reward:
        The follower's r_F(s, b; θ).

    Leader Reward:
        r_L = ρ r_F + sqrt(1 − ρ²) · an independent table of the same law, ρ = ``alignment``
        (``info["leader_reward"]``).

    Episode End:
        Never by itself; truncated after 100 steps.

    Information:
        ``leader_reward``, and ``step``, the 0-based index of the step.

    Arguments:
        ``seed``: which MDP. ``states``, ``actions``, ``branching``, ``dim``: its size.
        ``reward_share``, ``transition_share``, ``start_share``: how strongly θ enters each table.
        ``alignment``: ρ ∈ [−1, 1]. ``beta`` (0.2), ``gamma_leader``, ``gamma_follower`` (0.9).

    Best Known:
        None: rewards grow with θ, which is unbounded, so that J_L has no maximum.

    References:
        Archibald, McKinnon, Thomas: On the generation of Markov decision processes, J. Oper. Res. Soc. 46 (1995).

    Version History:
        v0: first release.
    """

    seed: int = 0
    states: int = 10
    actions: int = 3
    branching: int = 4
    dim: int = 5
    reward_share: float = 1.0
    transition_share: float = 1.0
    start_share: float = 1.0
    alignment: float = 0.0
    beta: float = 0.2
    gamma_leader: float = 0.9
    gamma_follower: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        keep_counts(self, "states", "actions", "branching", "dim")
        if self.branching > self.states:
            raise ValueError(f"`branching` must be at most `states` ({self.states}), got {self.branching}")
        entries = self.states * (self.states + self.branching * (1 + self.dim))
        check_memory(entries, "states", self.states, f"tables of {self.actions} actions and {self.dim} entries of θ")
        check_memory(entries * self.actions, "actions", self.actions, f"tables of {self.states} states")
        keep_numbers(self, "reward_share", "transition_share", "start_share", at_least=0)
        keep_numbers(self, "alignment", at_least=-1, at_most=1)
        _ = self.preferences  # refuses bad ones

    @property
    def theta_space(self) -> gym.spaces.Box:
        """R^dim."""
        return gym.spaces.Box(-np.inf, np.inf, (self.dim,), np.float64)

    @property
    def default_theta(self) -> np.ndarray:
        """0."""
        return np.zeros(self.dim)

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    def model(self, theta: Tensor) -> TabularModel:
        """The MDP at θ [R, dim]."""
        check_shape(theta, (self.dim,), "theta")
        tables = self._tables
        probability = tables.transition.at(theta).softmax(-1)
        r_follower = tables.r_follower.at(theta)
        other = np.sqrt(1 - self.alignment**2)
        r_leader = self.alignment * r_follower + other * tables.r_leader.at(theta)
        transition = tables.lists.with_probability(probability)
        return TabularModel(transition, tables.initial.at(theta).softmax(-1), r_leader, r_follower)

    def parameterization(self, runs: int, noise: Noise) -> Free:
        """θ itself, started at N(0, 0.1²)."""
        return Free(0.1 * noise.normal(self.dim))

    def draw(self, state: int, theta: np.ndarray) -> np.ndarray:
        """States on a circle, arrows as dark as the move is likely under a random action."""
        angle = 2 * np.pi * np.arange(self.states) / self.states
        positions = 0.5 + np.stack([0.38 * np.cos(angle), 0.42 * np.sin(angle)], -1)
        likely = self.model(torch.as_tensor(theta)[None]).moves.dense()[0].mean(1).numpy()
        edges = {(int(i), int(j)): float(likely[i, j] / likely.max()) for i, j in np.argwhere(likely > 0)}
        return graph_image(positions, [str(i) for i in range(self.states)], edges, state, (420, 380))

    @cached_property
    def _tables(self) -> _Tables:
        rng = np.random.default_rng(self.seed)
        pairs = (self.states, self.actions)
        successor = rng.permuted(np.tile(np.arange(self.states), (*pairs, 1)), axis=-1)[..., : self.branching]

        def affine(shape: tuple[int, ...], share: float) -> _Affine:
            base, slope = rng.standard_normal(shape), share * rng.standard_normal((*shape, self.dim))
            return _Affine(torch.from_numpy(base), torch.from_numpy(slope))

        return _Tables(
            Transitions.from_lists(successor, np.full(successor.shape, 1 / self.branching)),
            affine((*pairs, self.branching), self.transition_share),
            affine((self.states,), self.start_share),
            affine(pairs, self.reward_share),
            affine(pairs, self.reward_share),
        )
