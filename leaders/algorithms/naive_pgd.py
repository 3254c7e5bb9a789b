"""Naive-PGD: policy gradient that ignores the follower's reaction."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack

import gymnasium as gym

from bilevel_envs.networks.temporal_differences import PUBLISHED_FIT
from leaders.algorithms.replay import check_replay
from leaders.config import DECLARED, LINEAR, PUBLISHED_LINEAR, EstimatorConfig, Forms
from leaders.estimators.trajectory import TrajectoryLeader
from leaders.keywords import EstimatorKeywords


class NaivePGD(TrajectoryLeader):
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

    References:
        The baseline "Naive-PGD" of arXiv:2603.14867.
    """

    name: ClassVar[str] = "naive-pgd"
    without: ClassVar[frozenset[str]] = frozenset({"control_variate", "critic_start", "guiding"})

    def __init__(
        self,
        env: gym.Env,
        *,
        preset: str | None = None,
        replay: bool | None = None,
        **keywords: Unpack[EstimatorKeywords],
    ) -> None:
        check_replay(replay, preset)
        default = EstimatorConfig("naive_pgd", control_variate="none")
        fit = replace(PUBLISHED_FIT, normalised=True)
        linear = {
            None: replace(LINEAR, estimator="naive_pgd", control_variate="none"),
            "paper": replace(PUBLISHED_LINEAR, estimator="naive_pgd", network=fit, network_of="state"),
        }
        forms = Forms(
            {None: default, "paper": replace(default, tail="reference", critic="monte_carlo")},
            linear,
            replace(DECLARED, estimator="naive_pgd"),
        )
        super().__init__(env, {"preset": preset, "replay": replay}, keywords, forms)
