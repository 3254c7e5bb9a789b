"""A building whose insulation and vents the leader chooses (arXiv:2603.14867, section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_shape, keep_counts
from bilevel_envs.core.mdp import BestKnown, ConfigurableMDP, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Box
from bilevel_envs.rendering.drawing import building_image
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel

# Per zone of the paper's building, repeated around larger rings.
TO_NEXT = (0.05, 0.04, 0.06, 0.05)  # share of the next zone's air through an open vent, A0[i, i + 1]
TO_PREVIOUS = (0.05, 0.03, 0.04, 0.03)  # and of the previous one's, A0[i, i − 1]
LOSS = (0.04, 0.03, 0.06, 0.05)  # growth of a deviation without insulation
POWER = (0.10, 0.60, 0.55, 0.30)  # effect of a zone's HVAC unit
DISCOMFORT = (8.0, 1.0, 5.0, 6.0)  # follower's cost of a squared deviation
EFFORT = 0.01  # follower's cost of squared power
NOISE, START = 0.02, 5.0  # standard deviations per step and at the start
LIMIT = 30.0  # deviations are kept within
VARIANCE, ENERGY, INSULATION, AIRFLOW = 1.0, 0.5, 0.1, 0.1  # leader's prices
COMPONENTS = ("stability", "energy", "insulation", "airflow")
OPTIMUM = ((1.0, 0.0, 1.0, 1.0, 0.0, 0.778449, 1.0, 1.0), -162.503452)


@dataclass(frozen=True)
class BuildingThermalControl(ConfigurableMDP):
    r"""An HVAC controller keeps zones at their set points; the leader chooses insulation and the vents between them.

    Description:
        Zones lie on a ring; each HVAC unit serves two neighbours. The state s holds the deviation of each zone from its
        set point, b the power of the units:

        .. math::

            s' = A_\theta s + B b + w, \qquad w \sim N(0, 0.02^2 I).

        An open vent exchanges air between neighbours, missing insulation makes deviations grow: each row of
        :math:`A_\theta` sums to :math:`1 + \delta_i (1 - \alpha_i)`. The follower minds deviations, each zone's at its
        own price, and power hardly at all; the leader minds differences between zones and power. θ touches transitions
        and the leader's costs, but not the follower's rewards.

    Action Space:
        ``Box(-100, 100, (zones/2,))``: the power of each unit. Actions are not clipped to it: the follower plans
        without a limit.

    Observation Space:
        ``Box(-30, 30, (zones,))``: deviations from the set points. The mean of the next state is clipped to it and the
        noise truncated; that is rare (a few steps in a million at θ = 0.5), and solutions take no notice of it.

    Starting State:
        N(0, 25 I), truncated to the observation space.

    Configuration:
        θ = (α, φ) in [0, 1]^(2 · zones): insulation α of each zone and opening φ of the vent between each zone and the
        next; 0.5 each by default. Parameterisation: θ = sigmoid(raw), raw started at N(0, 0.01²).

    Reward:
        The follower's: −sᵀQs − 0.01 ‖b‖², Q = diag(8, 1, 5, 6).

    Leader Reward:
        −Var(s) − 0.5 ‖b‖² − 0.1 ‖α‖² − 0.1 ‖φ‖², the variance being that across the zones at the moment; an offset
        that all zones share costs it nothing.

    Episode End:
        Truncated after 100 steps; exact values have no time limit (the difference is below 1e-3 for θ ≥ 0.5, but large
        at θ = 0, where the closed loop is unstable and only discounting keeps values finite).

    Information:
        ``leader_reward``; its parts before prices, ``stability`` = −Var(s), ``energy`` = ‖b‖², ``insulation`` = ‖α‖²,
        ``airflow`` = ‖φ‖²; and ``step``, the 0-based index of the step.

    Arguments:
        ``zones``: an even number of at least 4; the paper's four zones by default, their constants repeated around
        larger rings. ``beta``, ``gamma_leader``, ``gamma_follower``: preferences.

    Best Known:
        J_L = −162.503 for the default arguments, at α = (1, 0, 1, 1), φ = (0, 0.778, 1, 1), by multi-start of the exact
        gradient. The published BC-HG ends at −196, near θ = 1.

    References:
        Kudo, Tanabe, Wachi, Akimoto: arXiv:2603.14867, section 5.2.

    Version History:
        v0: first release.
    """

    zones: int = 4
    beta: float = 0.1
    gamma_leader: float = 0.9
    gamma_follower: float = 0.9

    def __post_init__(self) -> None:
        keep_counts(self, "zones", at_least=4)
        if self.zones % 2:
            raise ValueError(f"`zones` must be even, because each HVAC unit serves two of them, got {self.zones}")
        _ = self.preferences  # refuses bad ones

    @cached_property
    def theta_space(self) -> gym.spaces.Box:
        """[0, 1]^(2 · zones)."""
        return gym.spaces.Box(0.0, 1.0, (2 * self.zones,), np.float64)

    @cached_property
    def default_theta(self) -> np.ndarray:
        """One half everywhere."""
        return np.full(2 * self.zones, 0.5)

    @cached_property
    def state_space(self) -> gym.spaces.Box:
        """Deviations of the zones."""
        return gym.spaces.Box(-LIMIT, LIMIT, (self.zones,), np.float64)

    @cached_property
    def action_space(self) -> gym.spaces.Box:
        """Power of the units."""
        return gym.spaces.Box(-100.0, 100.0, (self.zones // 2,), np.float32)

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    def model(self, theta: Tensor) -> LinearQuadraticModel:
        """The world at θ [R, 2 · zones]."""
        check_shape(theta, self.theta_space.shape, "theta", "[insulation and vents]")
        n, m = self.zones, self.zones // 2
        closed, effect = self._coupling
        states, actions = torch.eye(n, dtype=theta.dtype)[None], torch.eye(m, dtype=theta.dtype)[None]
        squares = (theta**2).view(-1, 2, n).sum(-1)
        power = torch.zeros(1, n, m, dtype=theta.dtype)
        power[0, torch.arange(n), torch.arange(n) // 2] = _around(POWER, n)
        return LinearQuadraticModel(
            A=closed + torch.einsum("rk,kij->rij", theta, effect),
            B=power,
            noise=NOISE**2 * states,
            initial=START**2 * states,
            state_cost=_around(DISCOMFORT, n).diag()[None],
            action_cost=EFFORT * actions,
            leader_state_cost=VARIANCE * (states - 1 / n) / n,
            leader_action_cost=ENERGY * actions,
            leader_cost=INSULATION * squares[:, 0] + AIRFLOW * squares[:, 1],
            bound=LIMIT,
        )

    def parameterization(self, runs: int, noise: Noise) -> Box:
        """θ = sigmoid(raw), raw ~ N(0, 0.01²)."""
        return Box(0.01 * noise.normal(2 * self.zones), 0.0, 1.0)

    @property
    def blocks(self) -> dict[str, slice]:
        """Where insulation and vents stand in θ, and in the raw parameters."""
        return {"insulation": slice(0, self.zones), "airflow": slice(self.zones, 2 * self.zones)}

    def best_known(self, preferences: Preferences) -> BestKnown | None:
        """For the paper's building and preferences."""
        if self.zones != 4 or preferences != Preferences(0.9, 0.9, 0.1):
            return None
        return BestKnown(
            OPTIMUM[1],
            "gradients at the seven entries on the boundary point outwards",
            "multi-start of the exact gradient",
            OPTIMUM[0],
        )

    def components(self, state: np.ndarray, action: np.ndarray, theta: np.ndarray) -> dict[str, np.ndarray]:
        """The leader's costs and gains before prices, for `info`, at states [K, zones] and θ [K, 2 · zones]."""
        insulation, airflow = np.moveaxis((theta**2).reshape(-1, 2, self.zones).sum(-1), 1, 0)
        parts = (-state.var(-1), (action**2).sum(-1), insulation, airflow)
        return dict(zip(COMPONENTS, parts, strict=True))

    def parts(self, theta: Tensor) -> dict[str, LinearQuadraticModel]:
        """The world at θ with one of the entries of `components` as the leader's reward, by name."""
        theta = theta.reshape(-1, 2 * self.zones)
        model, runs = self.model(theta), len(theta)
        n, m = self.zones, self.zones // 2
        squares = (theta**2).view(runs, 2, n).sum(-1)
        spread, power = torch.eye(n, dtype=theta.dtype)[None], torch.eye(m, dtype=theta.dtype)[None]
        spread, nothing = (spread - 1 / n) / n, torch.zeros(1, dtype=theta.dtype)
        costs = {
            "stability": (spread, 0 * power, nothing),
            "energy": (0 * spread, -power, nothing),
            "insulation": (0 * spread, 0 * power, -squares[:, 0]),
            "airflow": (0 * spread, 0 * power, -squares[:, 1]),
        }
        return {
            name: replace(model, leader_state_cost=states, leader_action_cost=actions, leader_cost=constant)
            for name, (states, actions, constant) in costs.items()
        }

    def draw(self, states: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """The floor plan with temperatures, walls and vents, and the deviations of the episode [k, zones] so far."""
        return building_image(np.atleast_2d(states), theta[: self.zones], theta[self.zones :])

    @cached_property
    def _coupling(self) -> tuple[Tensor, Tensor]:
        """A at θ = 0 [1, n, n], and what each entry of θ adds to it, [2n, n, n]."""
        n = self.zones
        to_next, to_previous, loss = (_around(values, n) for values in (TO_NEXT, TO_PREVIOUS, LOSS))
        zone = torch.arange(n)
        after = (zone + 1) % n
        effect = torch.zeros(2 * n, n, n, dtype=torch.float64)
        effect[zone, zone, zone] = -loss
        vent = n + zone  # joins `zone` and `after`
        effect[vent, zone, after] = to_next
        effect[vent, zone, zone] -= to_next
        effect[vent, after, zone] = to_previous[after]
        effect[vent, after, after] -= to_previous[after]
        return (1 + loss).diag()[None], effect


def _around(values: tuple[float, ...], zones: int) -> Tensor:
    """The paper's four constants repeated around the ring, float64 [zones]."""
    return torch.tensor(values, dtype=torch.float64).repeat(-(-zones // len(values)))[:zones]
