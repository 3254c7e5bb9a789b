"""A linear leader and a linear-quadratic follower who push one point around (arXiv:2603.14867, section 5.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_number, check_shape, keep_numbers
from bilevel_envs.core.mdp import BestKnown, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Free
from bilevel_envs.followers.planners.riccati import Riccati
from bilevel_envs.games.game import Path
from bilevel_envs.games.pairs import State
from bilevel_envs.games.pettingzoo_env import pettingzoo_forms
from bilevel_envs.games.vector import VectorGame
from bilevel_envs.networks.leader_policies import GaussianNetwork
from bilevel_envs.rendering.drawing import plane_image
from bilevel_envs.worlds.declared.model import SimulatedModel
from bilevel_envs.worlds.linear_quadratic.model import Bump, LinearQuadraticModel, block

MOVES = ((0.0, 1.0), (0.0, 0.0))  # A
FOLLOWER_PUSH, LEADER_PUSH = (0.0, 0.1), (0.1, 0.0)  # B and C
START = (1.0, 0.0)
TARGET = (-0.8, 0.0)  # s*
WIDTHS = (0.2, 0.01)  # of the leader's reward around s*
HORIZON = 100
FARTHEST = 1_000.0  # nominal bounds of both actions, to which nothing is clipped
HIDDEN = (64, 64)  # of the leader's network
HEAVIEST = 100.0  # entry of K, or weight of the network
OPTIMUM = ((-9.961465, -10.0), 11.309047)


@dataclass(frozen=True)
class BilevelLQR(VectorGame):
    r"""Leader and follower push one point; the leader is paid where it passes a target, the follower for staying put.

    Description:
        The state s is a point in the plane. The leader draws a ~ N(K s, W²), the follower, who sees a, answers with b:

        .. math::

            s' = A s + B b + C a, \qquad A = \begin{pmatrix} 0 & 1 \\ 0 & 0 \end{pmatrix},
            \quad B = (0, 0.1)^\top, \quad C = (0.1, 0)^\top .

        There is no other noise. The follower wants s and b small. The leader wants the point near s* = (−0.8, 0), and
        gets it there, again and again, with K near (−10, −10), where the loop is nearly unstable: s_1 changes its sign
        at every step and hardly shrinks. Around K = 0 the objective is flat, behind K_1 = −10 there is a cliff.

    Action Space:
        ``Box(-1000, 1000, (1,))``: b. The leader's likewise. Nothing is clipped to these bounds.

    Observation Space:
        ``Box(3)``, unbounded: s_1, s_2 and the leader's a.

    Starting State:
        s = (1, 0); a as the leader's policy draws it.

    Configuration:
        θ = K, [1, 2], within ±100; 0 by default. Parameterisation: K itself, started at N(0, 1). With ``policy="mlp"``
        the mean of a is a network 2–64–64–1 with ReLU of s, and θ its weights, one vector, started Xavier-uniform with
        biases 0. Nothing is solved then: leaders treat the game as one that can only be sampled, and the default
        follower is one that learns.

    Reward:
        The follower's: −‖s‖² − b².

    Leader Reward:
        exp(−½ (s − s*)ᵀ Σ (s − s*)), Σ = diag(25, 10⁴), at the state before the move.

    Episode End:
        Never by itself; truncated after 100 steps, which are what the leader's objective sums.

    Information:
        ``leader_reward``; and ``step``, the 0-based index of the step.

    Arguments:
        ``deviation``: W, the leader's standard deviation (0.001). ``target``: s*. ``policy``: "linear" or "mlp".
        ``beta`` (0.1), ``gamma_leader`` (0.99), ``gamma_follower`` (0.95).

    Best Known:
        J_L = 11.309 (100 steps, discounted) at K = (−9.961, −10), by multi-start of the exact gradient, and by a grid
        and Nelder–Mead on the exact objective; 18.426 undiscounted at (−9.965, −10).

    Advised:
        Where θ is K, leaders draw one episode per iteration (``batch_size=100``), use the exact critic, which knows the
        world, do not clip gradients (their size tells the ridge from the plain) and take ``learning_rate=0.05``
        here by default: larger steps fall over the cliff now and then.

    References:
        Kudo, Tanabe, Wachi, Akimoto: arXiv:2603.14867, section 5.4.

    Version History:
        v0: first release.
    """

    deviation: float = 1e-3
    target: tuple[float, float] = field(default=TARGET)
    beta: float = 0.1
    gamma_leader: float = 0.99
    gamma_follower: float = 0.95
    policy: str = "linear"

    state_space: ClassVar[gym.spaces.Box] = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space: ClassVar[gym.spaces.Box] = gym.spaces.Box(-FARTHEST, FARTHEST, (1,), np.float32)
    leader_actions: ClassVar[gym.Space] = action_space
    follower_actions: ClassVar[gym.Space] = action_space
    game_states: ClassVar[gym.Space] = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    seen_space: ClassVar[gym.Space] = state_space
    horizon: ClassVar[int] = HORIZON
    start_size: ClassVar[int] = 0  # uniform numbers that a first state takes

    def __post_init__(self) -> None:
        keep_numbers(self, "deviation", above=0)
        check_choice(self.policy, ("linear", "mlp"), "policy")
        if len(self.target) != 2:
            raise ValueError(f"`target` must be two numbers, got {self.target!r}")
        for entry in self.target:
            check_number(entry, "target")
        object.__setattr__(self, "target", tuple(float(entry) for entry in self.target))
        _ = self.preferences  # refuses bad ones

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    @cached_property
    def network(self) -> GaussianNetwork | None:
        """The leader's policy; None where it is linear."""
        return GaussianNetwork((2, *HIDDEN, 1), self.deviation) if self.policy == "mlp" else None

    @cached_property
    def theta_space(self) -> gym.spaces.Box:
        """K, or the weights of the network, within ±100."""
        shape = (1, 2) if self.network is None else (self.network.count,)
        return gym.spaces.Box(-HEAVIEST, HEAVIEST, shape, np.float64)

    @cached_property
    def default_theta(self) -> np.ndarray:
        """0, or a fixed random start."""
        return np.zeros((1, 2)) if self.network is None else self.network.start(Noise([0]))[0]

    @property
    def advised(self) -> dict[str, object]:
        """For K."""
        if self.network is not None:
            return {}
        return {"batch_size": 100, "critic": "exact", "learning_rate": 0.05, "max_grad_norm": float("inf")}

    @cached_property
    def bump(self) -> Bump:
        """The leader's reward as a function of the state."""
        return Bump(torch.tensor(self.target).double(), torch.tensor([w**-2 for w in WIDTHS]).double())

    def model(self, theta: Tensor) -> LinearQuadraticModel | SimulatedModel:
        """The follower's world over s̄ = (s, a) at the leader's θ, [R, 1, 2] or [R, P]."""
        return self._linear_model(theta) if self.network is None else SimulatedModel(self.network, theta)

    def _linear_model(self, theta: Tensor) -> LinearQuadraticModel:
        """a' = K s' + W ξ follows from s'."""
        check_shape(theta, self.theta_space.shape, "theta", "[leader's gain]")
        moves, push, lead = (torch.tensor(x, dtype=theta.dtype) for x in (MOVES, FOLLOWER_PUSH, LEADER_PUSH))
        now = torch.cat([moves, lead[:, None]], 1)[None].expand(len(theta), -1, -1)  # s' from (s, a)
        answer = push[None, :, None].expand(len(theta), -1, -1)
        start = torch.tensor(START, dtype=theta.dtype)
        first = torch.cat([start.expand(len(theta), -1), (theta @ start)], 1)
        nothing = torch.zeros(1, 3, 3, dtype=theta.dtype)
        spread = nothing.clone()
        spread[0, 2, 2] = self.deviation**2
        one = torch.ones(1, 1, 1, dtype=theta.dtype)
        return LinearQuadraticModel(
            A=torch.cat([now, theta @ now], 1),
            B=torch.cat([answer, theta @ answer], 1),
            noise=spread,
            initial=spread,
            state_cost=block(torch.eye(2, dtype=theta.dtype)[None], 0 * one),
            action_cost=one,
            leader_state_cost=nothing,
            leader_action_cost=0 * one,
            leader_cost=torch.zeros(1, dtype=theta.dtype),
            start=first,
            bump=self.bump,
            horizon=HORIZON,
        )

    def parameterization(self, runs: int, noise: Noise) -> Free:
        """θ itself: K started at N(0, 1), or the network's first weights."""
        return Free(noise.normal(1, 2) if self.network is None else self.network.start(noise))

    def best_known(self, preferences: Preferences) -> BestKnown | None:
        """For the paper's game."""
        if (self.deviation, self.target, self.policy) != (1e-3, TARGET, "linear") or preferences != Preferences(
            0.99, 0.95, 0.1
        ):
            return None
        return BestKnown(
            OPTIMUM[1],
            f"also by a grid and Nelder–Mead on the exact objective, at K = {OPTIMUM[0]}",
            "multi-start of the exact gradient",
            [OPTIMUM[0]],
        )

    def draw(self, states: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """The path in the plane, with s* and the contours of the leader's reward."""
        return plane_image(np.atleast_2d(states)[:, :2], np.array(self.target), np.array(WIDTHS))

    # The game itself, for two players -------------------------------------------------------------------------

    def default_follower(self) -> Riccati | None:
        """The exact one; None where the leader is a network: one has to learn."""
        return Riccati() if self.network is None else None

    def start_many(self, uniform: np.ndarray) -> np.ndarray:
        """(1, 0), for as many games as `uniform` has rows, [N, 2]."""
        return np.tile(START, (len(uniform), 1))

    def advance_many(
        self, state: np.ndarray, leader_action: np.ndarray, action: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states that follow [N, 2], r_L and r_F [N], from states [N, 2] and actions [N]."""
        push = action[:, None] * FOLLOWER_PUSH + leader_action[:, None] * LEADER_PUSH
        following = state @ np.array(MOVES).T + push
        return following, self.bump(torch.from_numpy(state)).numpy(), -(state**2).sum(1) - action**2

    def draw_game(self, path: Path, state: State) -> np.ndarray:
        """The path so far."""
        return self.draw(np.stack([*(step[0] for step in path), state]), self.default_theta)


env, raw_env, parallel_env = pettingzoo_forms(BilevelLQR, "bilevel_lqr_v0")
