"""A pendulum: the follower swings it up, the leader blows to keep it out of one half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from gymnasium.envs.classic_control import PendulumEnv

from bilevel_envs.games.guided import GuidedGame
from bilevel_envs.games.pettingzoo_env import pettingzoo_forms
from bilevel_envs.rendering.drawing import pendulum_image

CLASSIC = PendulumEnv()  # gravity, mass, length, time step, bounds of speed and torque
START = np.array([np.pi, 1.0])  # first angles and angular velocities lie within ± these


@dataclass(frozen=True)
class GuidedPendulum(GuidedGame):
    r"""The follower swings a pendulum up; the leader, as wind, is charged while it is in the half where sin ϑ > 0.

    Description:
        Gymnasium's pendulum (g = 10, mass and length 1, steps of 0.05 s) with a torque b and a wind:

        .. math::

            \ddot\vartheta = 15 \sin\vartheta + 3 b + 2 a w \cos^2\vartheta .

        ϑ = 0 is upright and ϑ' the angular velocity. The angle moves with the new ϑ' before that is cut to ±8 (in
        Gymnasium, after): kept as published.

    Action Space:
        ``Box(-2, 2, (1,))``: b; the leader's a in [−1, 1]. What lies outside is cut to it. With ``discrete=K``
        ``Discrete(K)``: K torques evenly spaced from −2 to 2.

    Observation Space:
        ``Box(4)``: cos ϑ, sin ϑ, ϑ', and the leader's a.

    Starting State:
        ϑ uniform in ±π, ϑ' in ±1; a as the leader's policy draws it.

    Configuration:
        θ: the weights of the leader's policy, a network 3–64–64–1 with ReLU whose output is the mean of a Gaussian that
        tanh squashes into (−1, 1); the last weight is the log standard deviation. Parameterisation: θ itself, started
        Xavier-uniform, biases 0.

    Reward:
        The follower's: −(ϑ² + 0.1 ϑ'² + 0.001 b²) with ϑ in ±π, at the state before the move.

    Leader Reward:
        −max(sin ϑ, 0), at the state before the move.

    Episode End:
        Never by itself; truncated after 200 steps.

    Information:
        ``leader_reward``; and ``step``, the 0-based index of the step.

    Arguments:
        ``wind``: w (1). ``flip``: the leader turns, with actions in [−2, 2], the follower blows, and the rewards are
        swapped. ``discrete``: K, or None. ``beta`` (0.005), ``gamma_leader`` (0.99), ``gamma_follower`` (0.99).

    Best Known:
        None: no model is known, so that J_L can only be sampled.

    References:
        Gymnasium's Pendulum-v1.

    Version History:
        v0: first release.
    """

    low: ClassVar[np.ndarray] = np.array([-1.0, -1.0, -float(CLASSIC.max_speed)])
    high: ClassVar[np.ndarray] = np.array([1.0, 1.0, float(CLASSIC.max_speed)])
    push_reach: ClassVar[float] = CLASSIC.max_torque
    start_size: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.check_arguments()

    def start_many(self, uniform: np.ndarray) -> np.ndarray:
        """First states, [N, 3], from uniform numbers [N, 2]."""
        return _state_at(*np.ascontiguousarray((START * (2 * uniform - 1)).T))

    def blown(self, state: np.ndarray, push: np.ndarray, wind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states that follow; what angle, speed and torque cost; what the leader's half costs."""
        c = CLASSIC
        cosine, sine, spin = np.ascontiguousarray(state.T)  # strided sines may differ in the last bit
        angle = np.arctan2(sine, cosine)
        control = -(angle**2 + 0.1 * spin**2 + 0.001 * push**2)
        turning = 3 * c.g / (2 * c.l) * sine + 3 / (c.m * c.l**2) * push + 2 * wind * cosine**2
        faster = spin + turning * c.dt
        following = _state_at(angle + faster * c.dt, np.clip(faster, -c.max_speed, c.max_speed))
        return following, control, np.minimum(-sine, 0.0)

    def picture(self, state: np.ndarray, push: float | None, wind: float | None) -> np.ndarray:
        """The pendulum, the leader's half, and arrows for what acts."""
        share = None if push is None else push / self.push_reach
        return pendulum_image(float(state[0]), float(state[1]), share, wind)


def _state_at(angle: np.ndarray, spin: np.ndarray) -> np.ndarray:
    """(cos ϑ, sin ϑ, ϑ'), [N, 3]."""
    return np.stack([np.cos(angle), np.sin(angle), spin], 1)


env, raw_env, parallel_env = pettingzoo_forms(GuidedPendulum, "guided_pendulum_v0")
