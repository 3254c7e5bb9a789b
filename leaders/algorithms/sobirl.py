"""SoBiRL: the guiding term estimated at the first step of an episode."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack

import gymnasium as gym

from bilevel_envs.core.checks import check_choice
from leaders.config import EstimatorConfig, Forms
from leaders.estimators.trajectory import TrajectoryLeader
from leaders.keywords import EstimatorKeywords


class SoBiRL(TrajectoryLeader):
    r"""SoBiRL's first-step estimator of the guiding term, for leaders that move the follower's rewards alone.

    .. math::

        \mathbb{E}\Big[\tfrac{1}{\beta} Q_L(s_0, b_0)
        \sum_k \big(\nabla r_F(s_k, b_k) - \mathbb{E}_b[\nabla r_F(s_k, b)]\big)\Big]

    ::

        c_0 ← Q_L(s_0, b_0) / β at the first step of each episode, else 0;   w_k ← w_{k−1} + c_k  (no decay)
        θ ← θ + α ∇ Σ_k [γ_L^k r_L + w_k (r_F(s_k, b_k) − E_b r_F(s_k, b))]

    The sum over k is undiscounted, as published, and knows nothing of θ in transitions or start. **Where r_F does not
    depend on the action, as in four rooms, the guiding term is identically 0 and SoBiRL coincides with Naive-PGD**: the
    comparison there carries no information about it. It is biased elsewhere, too: only the first step's choice is
    weighed.

    Args:
        env: a ``BilevelWrapper``.
        modified: weigh each step's own difference by γ_L^k Q_L(s_k, b_k) / β instead (not in the paper's figures).
        preset: None or ``"paper"``: Q_L as mean returns, cut episodes summed as far as they go, an every-visit direct
            term, SGD with step 0.1.

    References:
        Yang, Gao, Yuan (2024) introduced SoBiRL; the form is that of arXiv:2603.14867's code.
    """

    name: ClassVar[str] = "sobirl"
    without: ClassVar[frozenset[str]] = frozenset({"control_variate", "critic_start", "gradient", "guiding"})

    def __init__(
        self, env: gym.Env, *, modified: bool = False, preset: str | None = None, **keywords: Unpack[EstimatorKeywords]
    ) -> None:
        check_choice(modified, (True, False), "modified")
        default = EstimatorConfig("sobirl_modified" if modified else "sobirl", control_variate="none")
        forms = Forms({None: default, "paper": replace(default, critic="monte_carlo", tail="reference")})
        super().__init__(env, {"modified": modified, "preset": preset}, keywords, forms)
