"""SoBiRL: the guiding term estimated at the first step of an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import torch

from bilevel_envs.core.checks import check_choice
from leaders.config import Sampling, given
from leaders.critics.critic import Critic
from leaders.estimators.trajectory import SampledLeader


class SoBiRL(SampledLeader):
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
        critic: as in ``BCHG``.
        critic_learning_rate: as in ``BCHG``.
        cross_fit: as in ``BCHG``.
        tail: as in ``BCHG``.
        score_weight: as in ``BCHG``, for the leader's part.
        batch_size: transitions per outer iteration and run.
        rows: as in ``BCHG``.
        sampler: ``"fused"`` or ``"steps"``.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ, or the name of one that the environment has; None for its default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        Yang, Gao, Yuan (2024) introduced SoBiRL; the form is that of arXiv:2603.14867's code.
    """

    name: ClassVar[str] = "sobirl"

    def __init__(
        self,
        env: gym.Env,
        *,
        modified: bool = False,
        preset: str | None = None,
        critic: str | Critic | None = None,
        critic_learning_rate: Any = None,
        cross_fit: bool | None = None,
        tail: str | None = None,
        score_weight: str | None = None,
        batch_size: int = 100,
        rows: int | None = None,
        sampler: str | None = None,
        learning_rate: Any = None,
        optimizer: str | None = None,
        max_grad_norm: float | None = None,
        policy: torch.nn.Module | str | None = None,
        runs: int | None = None,
        seed: int | Sequence[int] = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = given(locals())
        check_choice(modified, (True, False), "modified")
        default = Sampling("sobirl", control_variate="none")
        paper = replace(default, critic="monte_carlo", tail="reference")
        guiding = "sobirl_modified" if modified else "sobirl"
        super().__init__(env, arguments, {None: default, "paper": paper}, estimator=guiding)
