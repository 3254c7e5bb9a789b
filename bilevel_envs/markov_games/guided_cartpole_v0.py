"""Cart and pole: the follower pushes the cart, the leader blows at the pole to have the cart where it wants it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

from bilevel_envs.core.checks import check_number
from bilevel_envs.games.guided import GuidedGame
from bilevel_envs.games.pairs import State
from bilevel_envs.games.pettingzoo_env import pettingzoo_forms
from bilevel_envs.rendering.drawing import cart_image

CLASSIC = CartPoleEnv()  # gravity, masses, half-length, force, time step, thresholds
START = 0.05  # first states lie within ± this, entry by entry


@dataclass(frozen=True)
class GuidedCartPole(GuidedGame):
    r"""The follower balances a pole on a cart; the leader, as wind, is paid while the cart is in an interval.

    Description:
        Gymnasium's cart-pole with a force 10 b, b in [−1, 1], and a wind that turns the pole. With M = 1.1 the total
        mass, m = 0.1 the pole's, l = 0.5 half its length, and Euler steps of 0.02 s that use the old velocities:

        .. math::

            u = (10 b + m l \dot\vartheta^2 \sin\vartheta) / M, \qquad
            \ddot\vartheta_0 = \frac{9.8 \sin\vartheta - u \cos\vartheta}{l\,(4/3 - m \cos^2\vartheta / M)}, \\
            \ddot x = u - m l \ddot\vartheta_0 \cos\vartheta / M, \qquad
            \ddot\vartheta = \ddot\vartheta_0 + 2 a w \cos^2\vartheta / m .

        The wind does not act on the cart, neither directly nor by a reaction of the pole: kept as published.

    Action Space:
        ``Box(-1, 1, (1,))``: b; the leader's a likewise. What lies outside is cut to it. With ``discrete=K``
        ``Discrete(K)``: K pushes evenly spaced from −1 to 1.

    Observation Space:
        ``Box(5)``: position, velocity, angle (0 is upright), angular velocity, and the leader's a.

    Starting State:
        Every entry of s uniform in ±0.05; a as the leader's policy draws it.

    Configuration:
        θ: the weights of the leader's policy, a network 4–64–64–1 with ReLU whose output is the mean of a Gaussian that
        tanh squashes into (−1, 1); the last weight is the log standard deviation. Parameterisation: θ itself, started
        Xavier-uniform, biases 0.

    Reward:
        The follower's: 1 at every step, the last one included.

    Leader Reward:
        1 if the step leads to a position strictly inside the interval, else 0.

    Episode End:
        When the cart is farther than 2.4 from the origin or the pole more than 12° from upright; truncated after 200
        steps.

    Information:
        ``leader_reward``; and ``step``, the 0-based index of the step.

    Arguments:
        ``interval``: where the leader wants the cart, (0.25, 0.75); (−0.25, 0.25) is the other published one, where the
        cart begins. ``wind``: w (1). ``flip``: the leader pushes, the follower blows, and the rewards are swapped.
        ``discrete``: K, or None. ``beta`` (0.005), ``gamma_leader`` (0.99), ``gamma_follower`` (0.99).

    Best Known:
        None: no model is known, so that J_L can only be sampled.

    References:
        Barto, Sutton, Anderson: Neuronlike adaptive elements that can solve difficult learning control problems, 1983;
        Gymnasium's CartPole-v1.

    Version History:
        v0: first release.
    """

    interval: tuple[float, float] = (0.25, 0.75)

    low: ClassVar[np.ndarray] = np.full(4, -np.inf)
    high: ClassVar[np.ndarray] = np.full(4, np.inf)
    push_reach: ClassVar[float] = 1.0
    start_size: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if len(self.interval) != 2:
            raise ValueError(f"`interval` must be two numbers, got {self.interval!r}")
        low, high = (check_number(end, "interval") for end in self.interval)
        if low >= high:
            raise ValueError(f"`interval` must begin before it ends, got {self.interval!r}")
        object.__setattr__(self, "interval", (low, high))
        self.check_arguments()

    def start_many(self, uniform: np.ndarray) -> np.ndarray:
        """First states, [N, 4], from uniform numbers [N, 4]."""
        return START * (2 * uniform - 1)

    def blown(self, state: np.ndarray, push: np.ndarray, wind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states that follow; 1 for every step; 1 for those that lead into the interval."""
        c = CLASSIC
        x, speed, angle, spin = np.ascontiguousarray(state.T)  # strided sines may differ in the last bit
        sine, cosine = np.sin(angle), np.cos(angle)
        u = (c.force_mag * push + c.polemass_length * spin**2 * sine) / c.total_mass
        turning = (c.gravity * sine - u * cosine) / (c.length * (4 / 3 - c.masspole * cosine**2 / c.total_mass))
        pulling = u - c.polemass_length * turning * cosine / c.total_mass
        turning = turning + 2 * wind * cosine**2 / c.masspole  # only now: the cart does not feel the wind
        following = (x + c.tau * speed, speed + c.tau * pulling, angle + c.tau * spin, spin + c.tau * turning)
        inside = (self.interval[0] < following[0]) & (following[0] < self.interval[1])
        return np.stack(following, 1), np.ones(len(state)), inside.astype(float)

    def ends(self, state: State) -> np.ndarray:
        """Whether the cart is off the track or the pole has fallen."""
        size = np.abs(state)
        return (size[..., 0] > CLASSIC.x_threshold) | (size[..., 2] > CLASSIC.theta_threshold_radians)

    def picture(self, state: np.ndarray, push: float | None, wind: float | None) -> np.ndarray:
        """Cart, pole, interval, and arrows for what acts."""
        return cart_image(float(state[0]), float(state[2]), self.interval, CLASSIC.x_threshold, push, wind)


env, raw_env, parallel_env = pettingzoo_forms(GuidedCartPole, "guided_cartpole_v0")
