"""The guiding term centred over repeat visits, by an oracle, or by a fitted ∇V_F."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Unpack

import gymnasium as gym
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_count, check_memory, lacking
from bilevel_envs.networks.temporal_differences import PUBLISHED_FIT
from bilevel_envs.worlds.tabular.model import TabularModel
from leaders.config import LINEAR, PUBLISHED_LINEAR, PUBLISHED_TABLES, EstimatorConfig, Forms, is_published
from leaders.critics.baseline import Baseline, NetworkBaseline, QuadraticBaseline, WithBaseline
from leaders.critics.critic import Critic
from leaders.estimators.guiding import HPGD_RULE, CentredGuiding, Guiding, OracleGuiding, PublishedOracleGuiding
from leaders.estimators.trajectory import FEW, TrajectoryLeader, whole_episode_horizon
from leaders.functional.guiding import ESTIMATORS
from leaders.keywords import EstimatorKeywords
from leaders.leader import check_wrapped
from leaders.worlds.facts import model_of, world_of

VARIANTS = ("mc", "sa", "oracle")
LINEAR_VARIANTS = ("mc", "td")
BASELINE_METHODS = ("fit", "__call__", "copies", "state_dict", "load_state_dict")


class HPGD(TrajectoryLeader):
    r"""Hyper policy gradient descent: the guiding term as a covariance over repeat visits, or from an oracle.

    .. math::

        \mathbb{E}\Big[\sum_t \gamma_L^t \tfrac{1}{\beta} B_L(s_t, b_t)
        \big(\nabla Q_F(s_t, b_t) - \nabla V_F(s_t)\big)\Big]

    In expectation that is BC-HG's; what differs is where the two gradients come from.

    ::

        variants "mc" and "sa", from the batch itself:
            c_k ← γ_L^k B_k / β
            c_k ← mean of c over the visits of (s_k, b_k) − mean of c over the visits of s_k
        variant "oracle", from trajectories that begin where one likes:
            from every visited (s_k, b_k) and from every visited s_k, fresh episodes;
            they carry +c_k and −c_k at their first step
        variants "mc" and "td" where states are vectors and none repeats:
            c_k ← γ_L^k Q_L / β;   fit Û(s) ≈ ∇V_F(s) to what each step adds to ∇Q_F
            θ ← θ + α (∇ Σ_k [γ_L^k r_L + w_k (r_F + δ_F log p)] − Σ_k c_k Û(s_k))

    Where no state repeats with different actions the guiding weight of "mc" and "sa" is identically 0 and HPGD silently
    becomes Naive-PGD; with few repeats the means contain the very sample that they centre, which shrinks them.

    Args:
        env: a ``BilevelWrapper``.
        variant: for tables ``"mc"`` (Q_L and V_L as mean returns of the batch), ``"sa"`` (a SARSA table) or
            ``"oracle"``; where states are vectors ``"td"`` (Q_L from the critic) or ``"mc"`` (Q_L as the return that
            followed, which is biased: it depends on the very moves that ∇Q_F collects).
        preset: None or ``"paper"``: cut episodes summed as far as they go and divided by the finished ones, an
            every-visit direct term, a SARSA table started at N(0, 1), SGD with step 0.1; for the oracle a separate
            batch of 10,000 transitions with uniform starts, whose means replace Q_L, V_L and both gradients. Where
            states are vectors: batches of 10,000, networks fitted by 5,000 full-batch steps each, every ∇log p of the
            direct term clipped at 1 and each block of θ clipped apart, SGD with step 0.001 ("mc") or 0.01 ("td").
        baseline: where states are vectors, how ∇V_F is fitted, whatever the critic: ``"lstd"`` (quadratic features, the
            default), ``"td"`` (a network, the published form's), or an object with the methods of
            ``leaders.critics.baseline.Baseline``.
        oracle_draws: episodes from each visited pair and state (``"oracle"`` without the preset).
        oracle_size: transitions of the published oracle's batch.

    References:
        Thoma, Pásztor, Krause, Ramponi, Hu (2024) introduced HPGD; the variants are those of arXiv:2603.14867, whose
        code weighs by B_L where its equation (7) prints Q_L, with the same expectation.
    """

    name: ClassVar[str] = "hpgd"
    without: ClassVar[frozenset[str]] = frozenset({"control_variate", "gradient", "guiding"})

    def __init__(
        self,
        env: gym.Env,
        variant: str = "mc",
        *,
        preset: str | None = None,
        oracle_draws: int = 1,
        oracle_size: int = 10_000,
        baseline: str | Baseline | None = None,
        **keywords: Unpack[EstimatorKeywords],
    ) -> None:
        vectors = world_of(model_of(check_wrapped(env))).vectors
        check_choice(variant, LINEAR_VARIANTS if vectors else VARIANTS, "variant")
        if baseline is not None and not vectors:
            raise ValueError(f"`baseline` must be None where states are countable, got {baseline!r}")
        self.variant, self.published, self.linear = variant, is_published(preset), vectors
        self.oracle_draws = check_count(oracle_draws, "oracle_draws")
        self.oracle_size = check_count(oracle_size, "oracle_size")
        self._baseline = ("td" if self.published else "lstd") if baseline is None else baseline
        own = {"variant": variant, "preset": preset, "oracle_draws": oracle_draws, "oracle_size": oracle_size}
        super().__init__(env, {**own, "baseline": baseline}, keywords, forms_of(variant))
        if variant == "oracle":
            size, draws = float(self.runs) * FEW * self.oracle_size, float(self.runs) * FEW * self.oracle_draws
            check_memory(size, "oracle_size", oracle_size, f"transitions of {self.runs} runs")
            check_memory(draws, "oracle_draws", oracle_draws, f"episodes of {self.runs} runs")
        if variant == "oracle" and self.published and self.oracle_size % self.rows:
            raise ValueError(
                f"`oracle_size` must be a multiple of the batch's rows ({self.rows}, from `rows` or `batch_size`), "
                f"got {oracle_size}"
            )

    def _make_guiding(self) -> Guiding:
        config, rule = self.estimator_config, ESTIMATORS[self.estimator_config.estimator]
        if self.linear:
            return CentredGuiding(rule, config.control_variate, score_weight=config.score_weight)
        if self.variant != "oracle":
            return Guiding(rule, config.control_variate, HPGD_RULE)

        def simulator(theta: Tensor) -> TabularModel:
            return self.env.unwrapped.simulator(theta).detach()  # type: ignore[attr-defined]

        if self.published:
            return PublishedOracleGuiding(
                rule,
                config.control_variate,
                HPGD_RULE,
                simulator=simulator,
                score_weight=config.score_weight,
                size=self.oracle_size,
                rows=self.rows,
                time_limit=self.env.time_limit,
            )
        return OracleGuiding(
            rule,
            config.control_variate,
            HPGD_RULE,
            simulator=simulator,
            score_weight=config.score_weight,
            draws=self.oracle_draws,
            horizon=whole_episode_horizon(self.env.preferences),
        )

    def _expects(self) -> bool:
        return False  # it centres by visits, or by an oracle

    def _make_critic(self) -> Critic:
        critic = super()._make_critic()
        if not self.linear:
            return critic
        preferences = self.env.preferences
        if isinstance(self._baseline, str):
            check_choice(self._baseline, ("lstd", "td"), "baseline")
            fit = replace(PUBLISHED_FIT, normalised=True) if self.published else None
            learnt = NetworkBaseline(preferences.gamma_follower, fit)
            return WithBaseline(
                critic, learnt if self._baseline == "td" else QuadraticBaseline(preferences.gamma_follower)
            )
        missing = lacking(self._baseline, BASELINE_METHODS)
        if missing or isinstance(self._baseline, type):
            raise TypeError(
                f'`baseline` must be "lstd", "td" or an object with {", ".join(BASELINE_METHODS)}, '
                f"got {self._baseline!r}"
            )
        return WithBaseline(critic, self._baseline)


def forms_of(variant: str) -> Forms:
    """The forms of a variant of HPGD."""
    # The oracle's batch carries its guiding weights itself.
    estimator = "naive_pgd" if variant == "oracle" else "hpgd"
    critic = {"mc": "monte_carlo", "sa": "sarsa"}.get(variant, "expected_sarsa")
    paper = replace(PUBLISHED_TABLES, estimator=estimator, critic="sarsa" if variant == "sa" else "monte_carlo")
    realised = variant == "mc"
    fit = replace(PUBLISHED_FIT, normalised=realised)
    learned, of = ("hpgd_realised", "state") if realised else ("hpgd_learned", "action")
    linear = {
        None: replace(LINEAR, estimator=learned, control_variate="none", gradient="score"),
        "paper": replace(PUBLISHED_LINEAR, estimator=learned, network=fit, network_of=of),
    }
    return Forms(
        {None: EstimatorConfig(estimator, critic=critic, control_variate="none"), "paper": paper},
        linear,
        published_rate=0.001 if realised else 0.01,
    )
