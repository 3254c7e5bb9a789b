"""A commuter, a bridge and a toll: the smallest world in which the naive gradient is blind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_shape, keep_numbers
from bilevel_envs.core.mdp import BestKnown, ConfigurableMDP, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Box
from bilevel_envs.rendering.drawing import graph_image
from bilevel_envs.worlds.tabular.model import TabularModel

HOME, BRIDGE, FERRY, WORK = range(4)
CROSS, SAIL = range(2)


@dataclass(frozen=True)
class TollBridge(ConfigurableMDP):
    r"""A commuter takes the bridge or the ferry; the leader sets the bridge's toll.

    Description:
        ::

            HOME --CROSS--> BRIDGE --*--> WORK (the journey ends)
            HOME --SAIL---> FERRY  --*--> WORK

        The leader wants the bridge spared. Neither its reward nor the moves depend on the toll, so the naive
        gradient is 0; only the follower's reaction tells the leader anything:

        .. math::

            g(\text{SAIL} \mid \text{HOME}) = \sigma\big((\text{ferry} - 1 + \theta) / \beta\big), \qquad
            J_L(\theta) = \gamma_L\, g(\text{SAIL} \mid \text{HOME}).

    Action Space:
        ``Discrete(2)``: 0 cross, 1 sail. Only the choice at HOME matters.

    Observation Space:
        ``Discrete(4)``: 0 HOME, 1 BRIDGE, 2 FERRY, 3 WORK.

    Starting State:
        HOME.

    Configuration:
        The toll θ in [0, 2], shape [1], in units of the follower's reward; 0 by default. Parameterisation:
        θ = 2 · sigmoid(raw).

    Reward:
        The follower's: 1 − θ for CROSS at HOME, ``ferry`` for SAIL, else 0.

    Leader Reward:
        1 for the step aboard the ferry, else 0 (``info["leader_reward"]``).

    Episode End:
        On reaching WORK, after two steps.

    Optimum:
        J_L(θ) = γ_L σ((ferry − 1 + θ) / β), so dJ_L/dθ > 0 everywhere and the optimum is θ = 2.

    Information:
        ``leader_reward``, and ``step``, the 0-based index of the step.

    Arguments:
        ``ferry``: what sailing is worth. ``beta``, ``gamma_leader``, ``gamma_follower``: preferences.

    Version History:
        v0: first release.
    """

    ferry: float = 0.5
    beta: float = 0.2
    gamma_leader: float = 0.9
    gamma_follower: float = 0.9

    theta_space: ClassVar[gym.spaces.Box] = gym.spaces.Box(0.0, 2.0, (1,), np.float64)
    default_theta: ClassVar[np.ndarray] = np.zeros(1)

    def __post_init__(self) -> None:
        keep_numbers(self, "ferry")
        _ = self.preferences  # refuses bad ones

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    def model(self, theta: Tensor) -> TabularModel:
        """The commuter's MDP at θ [R, 1]."""
        check_shape(theta, (1,), "theta", "[toll]")
        transition = torch.zeros(1, 4, 2, 4, dtype=theta.dtype)
        transition[0, HOME, CROSS, BRIDGE] = transition[0, HOME, SAIL, FERRY] = 1.0
        transition[0, [BRIDGE, FERRY, WORK], :, WORK] = 1.0
        continues = torch.zeros(1, 4, 2, dtype=theta.dtype)
        continues[0, HOME] = 1.0
        r_leader = torch.zeros(1, 4, 2, dtype=theta.dtype)
        r_leader[0, FERRY] = 1.0
        r_follower = torch.zeros(len(theta), 4, 2, dtype=theta.dtype)
        r_follower[:, HOME, CROSS] = 1.0 - theta[:, 0]
        r_follower[:, HOME, SAIL] = self.ferry
        initial = torch.eye(4, dtype=theta.dtype)[HOME : HOME + 1]
        return TabularModel(transition, initial, r_leader, r_follower, continues)

    def parameterization(self, runs: int, noise: Noise) -> Box:
        """θ = 2 · sigmoid(raw), raw ~ N(−2, 0.1²): a small toll at first."""
        return Box(-2.0 + 0.1 * noise.normal(1), 0.0, 2.0)

    def objective(self, theta: float) -> float:
        """J_L(θ) in closed form."""
        return self.gamma_leader / (1.0 + float(np.exp(-(self.ferry - 1.0 + theta) / self.beta)))

    def best_known(self, preferences: Preferences) -> BestKnown:
        """J_L at θ = 2."""
        at_best = TollBridge(self.ferry, preferences.beta, preferences.gamma_leader, preferences.gamma_follower)
        return BestKnown(at_best.objective(2.0), "J_L rises with θ, up to θ = 2", "closed form", [2.0])

    def draw(self, state: int, theta: np.ndarray) -> np.ndarray:
        """The map with the commuter's place highlighted."""
        positions = np.array([[0.15, 0.5], [0.5, 0.2], [0.5, 0.8], [0.85, 0.5]])
        moves = {(HOME, BRIDGE): 1.0, (HOME, FERRY): 1.0, (BRIDGE, WORK): 0.5, (FERRY, WORK): 0.5}
        return graph_image(positions, ["HOME", f"toll {theta[0]:.2f}", "FERRY", "WORK"], moves, state)
