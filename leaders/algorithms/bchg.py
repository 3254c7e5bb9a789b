"""BC-HG: the Boltzmann-covariance hypergradient."""

from __future__ import annotations

from typing import ClassVar, Unpack

import gymnasium as gym

from bilevel_envs.core.checks import check_choice
from leaders.config import DECLARED, LINEAR, PUBLISHED_LINEAR, PUBLISHED_TABLES, EstimatorConfig, Forms
from leaders.estimators.trajectory import TrajectoryLeader
from leaders.keywords import EstimatorKeywords


class BCHG(TrajectoryLeader):
    r"""The Boltzmann-covariance hypergradient: leads a soft-optimal follower from on-policy trajectories alone.

    The follower's Boltzmann policy makes its reaction a covariance under its own actions, so the leader needs neither
    second derivatives nor resets:

    .. math::

        \nabla J_L = \text{direct}
        + \mathbb{E}\Big[\sum_t \gamma_L^t \tfrac{1}{\beta} B_L(s_t, b_t) \nabla Q_F(s_t, b_t)\Big],
        \qquad B_L = Q_L - \mathbb{E}_b[Q_L].

    ::

        each outer iteration:
            g ← follower's response to θ;   draw a batch with g
            fit Q_L;   B ← Q_L − E_b[Q_L]
            c_k ← γ_L^k B_k / β             the guiding weight of each step
            w_k ← γ_F w_{k−1} + c_k         its eligibility trace
            θ ← θ + α ∇ Σ_k [γ_L^k r_L + w_k (r_F + δ_F log p)]

    The default is the recommended form with reduced variance: critics judge only what they were not fitted to, the
    weight of a ∇log p is a temporal-difference error, the guiding weight is centred on features of the state that were
    fitted on other episodes, and cut episodes go on in the empirical model. ``preset="paper"`` is the
    published code, choice by choice: critic started at N(0, 1), shuffled SARSA, ∇Q_F averaged over repeat visits, cut
    episodes summed as far as they go and divided by the finished ones, an every-visit direct term, SGD with step 0.1.

    In linear-quadratic worlds (building thermal control) the defaults are a least-squares critic on quadratic features
    and the closed form of ∇Q_F − ∇V_F (``gradient="analytic"``). ``preset="paper"`` there is the published code for
    continuous worlds: batches of 10,000, a network fitted anew by 5,000 full-batch steps (minutes per iteration;
    ``critic="lstd"`` instead takes a tenth of a second), ∇log p clipped one by one in the direct term, blocks of θ
    clipped apart.

    In the four rooms the exact hypergradient leads from θ ≈ 0 to a plateau J_L ≈ 0. That environment recommends
    ``exploration="restarts"``, which the default takes (docs: "The plateau in the four rooms").

    Args:
        env: a ``BilevelWrapper``.
        preset: None or ``"paper"``; what is given explicitly below wins over it.
        shared: average ∇Q_F over repeat visits of (s, b), as Algorithm 1 does; slightly biased.

    References:
        Kudo, Tanabe, Wachi, Akimoto: arXiv:2603.14867, Theorem 1 and Algorithm 1.
    """

    name: ClassVar[str] = "bchg"

    def __init__(
        self,
        env: gym.Env,
        *,
        preset: str | None = None,
        shared: bool | None = None,
        **keywords: Unpack[EstimatorKeywords],
    ) -> None:
        check_choice(shared, (None, True, False), "shared")
        forms = Forms(
            {None: EstimatorConfig("bc_hg"), "paper": PUBLISHED_TABLES},
            {None: LINEAR, "paper": PUBLISHED_LINEAR},
            DECLARED,
        )
        estimator = None if shared is None else "bc_hg_shared" if shared else "bc_hg"
        super().__init__(env, {"preset": preset, "shared": shared}, keywords, forms, estimator)
