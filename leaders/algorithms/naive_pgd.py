"""Naive-PGD: policy gradient that ignores the follower's reaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import torch

from bilevel_envs.networks.temporal_differences import PUBLISHED_FIT
from leaders.algorithms.replay import check_replay
from leaders.config import LINEAR, PUBLISHED_LINEAR, Sampling, given
from leaders.critics.critic import Critic
from leaders.estimators.trajectory import SampledLeader


class NaivePGD(SampledLeader):
    r"""Plain policy gradient for the leader: θ's direct effect, as if the follower would not react.

    .. math::

        \nabla J_L \approx \mathbb{E}\Big[
        \sum_t \gamma_L^t \big(\nabla r_L + V_L(s_t) \nabla \log p(s_t | s_{t-1}, b_{t-1})\big)\Big]

    The guiding weight is 0, so nothing ever weighs ∇r_F. It is the floor that every other leader is measured against;
    in ``TollBridge`` it is exactly 0.

    Args:
        env: a ``BilevelWrapper``.
        preset: None or ``"paper"`` (every-visit average over the start states, cut episodes summed as far as they
            go; in games an actor and a critic as in ``BiAC``).
        replay: in games with the preset, learn from all transitions so far instead of the last batch.
        critic: as in ``BCHG``; it matters only where θ enters transitions or start.
        critic_learning_rate: as in ``BCHG``.
        cross_fit: as in ``BCHG``.
        tail: as in ``BCHG``.
        score_weight: as in ``BCHG``.
        batch_size: transitions per outer iteration and run; None for 100, in linear-quadratic worlds 1,000, or what a
            quadratic critic of a larger one needs.
        rows: as in ``BCHG``.
        sampler: ``"fused"`` or ``"steps"``.
        gradient: as in ``BCHG``.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ, or the name of one that the environment has; None for its default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        The baseline "Naive-PGD" of arXiv:2603.14867.
    """

    name: ClassVar[str] = "naive-pgd"

    def __init__(
        self,
        env: gym.Env,
        *,
        preset: str | None = None,
        replay: bool | None = None,
        critic: str | Critic | None = None,
        critic_learning_rate: Any = None,
        cross_fit: bool | None = None,
        tail: str | None = None,
        score_weight: str | None = None,
        batch_size: int | None = None,
        rows: int | None = None,
        sampler: str | None = None,
        gradient: str | None = None,
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
        check_replay(replay, preset)
        default = Sampling("naive_pgd", control_variate="none")
        paper = replace(default, tail="reference", critic="monte_carlo")
        fit = replace(PUBLISHED_FIT, normalised=True)
        linear = {
            None: replace(LINEAR, estimator="naive_pgd", control_variate="none"),
            "paper": replace(PUBLISHED_LINEAR, estimator="naive_pgd", network=fit, network_of="state"),
        }
        super().__init__(env, arguments, {None: default, "paper": paper}, linear)
