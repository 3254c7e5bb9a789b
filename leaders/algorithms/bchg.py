"""BC-HG: the Boltzmann-covariance hypergradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice
from leaders.config import LINEAR, PUBLISHED_LINEAR, PUBLISHED_TABLES, Sampling, given
from leaders.critics.critic import Critic
from leaders.estimators.trajectory import SampledLeader


class BCHG(SampledLeader):
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
    fitted on other episodes, and cut episodes go on in the world as it was seen. ``preset="paper"`` is the
    published code, choice by choice: critic started at N(0, 1), shuffled SARSA, ∇Q_F averaged over repeat visits, cut
    episodes summed as far as they go and divided by the finished ones, an every-visit direct term, SGD with step 0.1.

    In linear-quadratic worlds (building thermal control) the defaults are a least-squares critic on quadratic features
    and the closed form of ∇Q_F − ∇V_F (``gradient="analytic"``). ``preset="paper"`` there is the published code for
    continuous worlds: batches of 10,000, a network fitted anew by 5,000 full-batch steps (minutes per iteration;
    ``critic="lstd"`` instead takes a tenth of a second), ∇log p clipped one by one in the direct term, blocks of θ
    clipped apart.

    On four rooms, from θ ≈ 0, the exact hypergradient leads to a plateau J_L ≈ 0, and so does the default here. What
    leaves it is noise: the published form's, or that of a critic which judges its own batch (docs: "The plateau in the
    four rooms").

    Args:
        env: a ``BilevelWrapper``.
        preset: None or ``"paper"``; what is given explicitly below wins over it.
        critic: how Q_L is learnt: ``"empirical"`` (the default for tables: solved in the world that all transitions so
            far describe), ``"expected_sarsa"``, ``"sarsa"`` or ``"monte_carlo"`` for tables, ``"lstd"`` for
            linear-quadratic worlds, ``"td"`` (a network) or ``"exact"`` for both, ``"state_values"`` without any policy
            of the follower's (the default with followers that learn or are watched), or an object with the methods of
            ``leaders.critics.critic.Critic``. Games that can only be played take ``"td"`` (their default) and
            ``"state_values"``. Mean returns, ``"monte_carlo"``, are noisy where a state has many successors (docs:
            "Estimators").
        critic_learning_rate: η of learnt tables, a number or one per run.
        critic_start: their first entries, ``"zeros"`` or ``"normal"``.
        shared: average ∇Q_F over repeat visits of (s, b), as Algorithm 1 does; slightly biased.
        control_variate: state control variate, ``"constant"``, ``"quadratic"`` (linear-quadratic worlds), ``"none"`` or
            a function state → [..., F]; it needs two episodes in a batch, else nothing is subtracted. Without effect
            for ``gradient="analytic"``, whose closed form is centred already, and for ``guiding="fitted"``.
        cross_fit: judge each half of a batch's episodes by a critic that was fitted to the other half and to earlier
            batches (the default), or, with False, all of it by one that was fitted to it as well, which is biased. It
            fits a critic three times: with ``critic="td"`` an iteration takes three times as long.
        tail: episodes that the batch cuts: ``"continue"`` continues them in the world as other episodes show it,
            ``"keep"`` counts them as far as they go, ``"drop"`` leaves them out (a batch in which none ends then moves
            nothing), ``"reference"`` is the published form.
        score_weight: weight of ∇log p: ``"td_error"`` or ``"value"``; ``"clipped"`` is the published form for
            continuous worlds.
        batch_size: transitions per outer iteration and run; None for 100, in linear-quadratic worlds 1,000, or what a
            quadratic critic of a larger one needs.
        rows: trajectories side by side that make up a batch; None for the fewest that the time limit allows (10 without
            one); with ``tail="continue"`` for the fewest that go on until discounting has left a twentieth.
        sampler: ``"fused"`` draws from the model itself, ``"steps"`` drives ``reset`` and ``step``.
        gradient: what is used beside trajectories in a linear-quadratic world: ``"score"`` nothing but the score
            ∇log p, ``"pathwise"`` the derivative of the mean of the next state, ``"analytic"`` (the default there) all
            matrices, with ∇Q_F − ∇V_F in closed form. Tables take ``"score"``.
        guiding: ∇Q_F as trajectories collect it, ``"sampled"``, or fitted as a polynomial of (s, b), ``"fitted"``: the
            default in linear-quadratic worlds with a quadratic critic unless ``gradient="analytic"``. It has a tenth to
            a fiftieth of the noise, and a bias where ∇Q_F is no such polynomial, because the follower's policy bends.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ, or the name of one that the environment has; None for its default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        Kudo, Tanabe, Wachi, Akimoto: arXiv:2603.14867, Theorem 1 and Algorithm 1.
    """

    name: ClassVar[str] = "bchg"

    def __init__(
        self,
        env: gym.Env,
        *,
        preset: str | None = None,
        critic: str | Critic | None = None,
        critic_learning_rate: Any = None,
        critic_start: str | None = None,
        shared: bool | None = None,
        control_variate: str | Callable[[Tensor], Tensor] | None = None,
        cross_fit: bool | None = None,
        tail: str | None = None,
        score_weight: str | None = None,
        batch_size: int | None = None,
        rows: int | None = None,
        sampler: str | None = None,
        gradient: str | None = None,
        guiding: str | None = None,
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
        check_choice(shared, (None, True, False), "shared")
        overrides: dict[str, Any] = {} if shared is None else {"estimator": "bc_hg_shared" if shared else "bc_hg"}
        presets = {None: Sampling("bc_hg"), "paper": PUBLISHED_TABLES}
        super().__init__(env, arguments, presets, {None: LINEAR, "paper": PUBLISHED_LINEAR}, **overrides)
