"""The leaders: each a named choice of kick, critic and defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_envs._checks import check_choice, check_count
from bilevel_envs.follower import BestResponse
from bilevel_envs.model import Rollout
from bilevel_envs.networks import PUBLISHED_FIT
from bilevel_envs.noise import Noise
from leaders import exact
from leaders.baseline import Baseline, NetworkBaseline, QuadraticBaseline, WithBaseline
from leaders.critic import Critic
from leaders.kicks import KICKS, kick_bc_hg
from leaders.oracle import oracle_batch, oracle_weights, published_oracle_batch
from leaders.per_step import per_step_gradient
from leaders.sampled import SampledLeader, is_linear, whole_episode_horizon
from leaders.sampling import LINEAR, PUBLISHED_LINEAR, Sampling
from leaders.search import CMAES, RandomSearch, ZerothOrder
from leaders.surrogate import surrogate
from leaders.train import Common, Estimate, Leader, changed, check_wrapped, given
from leaders.values import evaluate
from leaders.weights import weights_from_kick

# Every choice of the published four-rooms code (arXiv:2603.14867; listed in the docs).
PUBLISHED = Sampling(
    "bc_hg_shared",
    critic="sarsa",
    critic_learning_rate=0.5,
    critic_start="normal",
    features="none",
    tail="reference",
    arrival="value",
)


VARIANTS = ("mc", "sa", "oracle")
LINEAR_VARIANTS = ("mc", "td")
BASELINE_METHODS = ("fit", "__call__", "copies", "state_dict", "load_state_dict")


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
            c_k ← γ_L^k B_k / β             the kick of each step
            w_k ← γ_F w_{k−1} + c_k         its eligibility trace
            θ ← θ + α ∇ Σ_k [γ_L^k r_L + w_k (r_F + δ_F log p)]

    The default is the recommended form with reduced variance: the weight of a ∇log p is a temporal-difference error,
    and the kick is centred on features of the state that were fitted on other episodes. ``preset="paper"`` is the
    published code, choice by choice: critic started at N(0, 1), shuffled SARSA, ∇Q_F averaged over repeat visits, cut
    episodes summed as far as they go and divided by the finished ones, an every-visit direct term, SGD with step 0.1.

    In linear-quadratic worlds (building thermal control) the defaults are a least-squares critic on quadratic features
    and the closed form of ∇Q_F − ∇V_F (``knowledge="model"``). ``preset="paper"`` there is the published code for
    continuous worlds: batches of 10,000, a network fitted anew by 5,000 full-batch steps (minutes per iteration;
    ``critic="lstd"`` instead takes a tenth of a second), ∇log p clipped one by one in the direct term, blocks of θ
    clipped apart.

    On four rooms, from θ ≈ 0, the exact hypergradient leads to a plateau J_L ≈ 0, and so does the default here. What
    leaves it is noise: the published form's, or ``features="none"`` with ``learning_rate=0.02`` (docs: "The plateau in
    the four rooms").

    Args:
        env: a ``BilevelWrapper``.
        preset: None or ``"paper"``; what is given explicitly below wins over it.
        critic: how Q_L is learnt: ``"expected_sarsa"``, ``"sarsa"`` or ``"monte_carlo"`` for tables, ``"lstd"`` for
            linear-quadratic worlds, ``"td"`` (a network) or ``"exact"`` for both, ``"state_values"`` without any policy
            of the follower's (the default with followers that learn or are watched), or an object with the methods of
            ``leaders.critic.Critic``. Games that can only be played take ``"td"`` (their default) and
            ``"state_values"``.
        critic_learning_rate: η of learnt tables, a number or one per run.
        critic_start: their first entries, ``"zeros"`` or ``"normal"``.
        shared: average ∇Q_F over repeat visits of (s, b), as Algorithm 1 does; slightly biased.
        features: state control variate, ``"constant"``, ``"quadratic"`` (linear-quadratic worlds), ``"none"`` or a
            function state → [..., F]; it needs two episodes in a batch, else nothing is subtracted. Without effect for
            ``knowledge="model"``, whose closed form is centred already, and for ``reaction="fitted"``.
        tail: episodes that the batch cuts: ``"bootstrap"`` continues them from other visits of the state reached,
            ``"keep"`` counts them as far as they go, ``"drop"`` leaves them out (a batch in which none ends then moves
            nothing), ``"reference"`` is the published form.
        arrival: weight of ∇log p: ``"td_error"`` or ``"value"``; ``"clipped"`` is the published form for continuous
            worlds.
        batch_size: transitions per outer iteration and run; None for 100, in linear-quadratic worlds 1,000, or what a
            quadratic critic of a larger one needs.
        rows: trajectories side by side that make up a batch; None for the fewest that the time limit allows (10 without
            one). Where episodes seldom end, more rows make better estimates than longer ones.
        sampler: ``"fused"`` draws from the model itself, ``"steps"`` drives ``reset`` and ``step``.
        knowledge: what is used beside trajectories in a linear-quadratic world: ``"simulate"`` nothing but the score
            ∇log p, ``"terms"`` the derivative of the mean of the next state, ``"model"`` (the default there) all
            matrices, with ∇Q_F − ∇V_F in closed form. Tables take ``"simulate"``.
        reaction: ∇Q_F as trajectories collect it, ``"sampled"``, or fitted as a polynomial of (s, b), ``"fitted"``: the
            default in linear-quadratic worlds with a quadratic critic unless ``knowledge="model"``. It has a tenth to a
            fiftieth of the noise, and a bias where ∇Q_F is no such polynomial, because the follower's policy bends.
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
        features: str | Callable[[Tensor], Tensor] | None = None,
        tail: str | None = None,
        arrival: str | None = None,
        batch_size: int | None = None,
        rows: int | None = None,
        sampler: str | None = None,
        knowledge: str | None = None,
        reaction: str | None = None,
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
        overrides: dict[str, Any] = {} if shared is None else {"kick": "bc_hg_shared" if shared else "bc_hg"}
        presets = {None: Sampling("bc_hg"), "paper": PUBLISHED}
        super().__init__(env, arguments, presets, {None: LINEAR, "paper": PUBLISHED_LINEAR}, **overrides)


class NaivePGD(SampledLeader):
    r"""Plain policy gradient for the leader: θ's direct effect, as if the follower would not react.

    .. math::

        \nabla J_L \approx \mathbb{E}\Big[
        \sum_t \gamma_L^t \big(\nabla r_L + V_L(s_t) \nabla \log p(s_t | s_{t-1}, b_{t-1})\big)\Big]

    The kick is 0, so nothing ever weighs ∇r_F. It is the floor that every other leader is measured against; in
    ``TollBridge`` it is exactly 0.

    Args:
        env: a ``BilevelWrapper``.
        preset: None or ``"paper"`` (every-visit average over the start states, cut episodes summed as far as they
            go; in games an actor and a critic as in ``BiAC``).
        replay: in games with the preset, learn from all transitions so far instead of the last batch.
        critic: as in ``BCHG``; it matters only where θ enters transitions or start.
        critic_learning_rate: as in ``BCHG``.
        tail: as in ``BCHG``.
        arrival: as in ``BCHG``.
        batch_size: transitions per outer iteration and run; None for 100, in linear-quadratic worlds 1,000, or what a
            quadratic critic of a larger one needs.
        rows: as in ``BCHG``.
        sampler: ``"fused"`` or ``"steps"``.
        knowledge: as in ``BCHG``.
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
        tail: str | None = None,
        arrival: str | None = None,
        batch_size: int | None = None,
        rows: int | None = None,
        sampler: str | None = None,
        knowledge: str | None = None,
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
        _check_replay(replay, preset)
        default = Sampling("naive_pgd", features="none")
        paper = replace(default, tail="reference", critic="monte_carlo")
        fit = replace(PUBLISHED_FIT, normalised=True)
        linear = {
            None: replace(LINEAR, kick="naive_pgd", features="none"),
            "paper": replace(PUBLISHED_LINEAR, kick="naive_pgd", network=fit, network_of="state"),
        }
        super().__init__(env, arguments, {None: default, "paper": paper}, linear)


class HPGD(SampledLeader):
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

    Where no state repeats with different actions the kick of "mc" and "sa" is identically 0 and HPGD silently becomes
    Naive-PGD; with few repeats the means contain the very sample that they centre, which shrinks them.

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
            ``leaders.baseline.Baseline``.
        oracle_draws: episodes from each visited pair and state (``"oracle"`` without the preset).
        oracle_size: transitions of the published oracle's batch.
        critic: as in ``BCHG``; it overrides what the variant says (the published oracle has no use for it).
        critic_learning_rate: as in ``BCHG``.
        critic_start: as in ``BCHG``.
        tail: as in ``BCHG``.
        arrival: as in ``BCHG``.
        batch_size: on-policy transitions per outer iteration and run, as in ``BCHG``; an oracle's come on top and are
            counted.
        rows: as in ``BCHG``.
        sampler: ``"fused"`` or ``"steps"``, for the on-policy batch.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ, or the name of one that the environment has; None for its default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        Thoma, Pásztor, Krause, Ramponi, Hu (2024) introduced HPGD; the variants are those of arXiv:2603.14867, whose
        code weighs by B_L where its equation (7) prints Q_L, with the same expectation.
    """

    name: ClassVar[str] = "hpgd"

    def __init__(
        self,
        env: gym.Env,
        variant: str = "mc",
        *,
        preset: str | None = None,
        oracle_draws: int = 1,
        oracle_size: int = 10_000,
        critic: str | Critic | None = None,
        critic_learning_rate: Any = None,
        critic_start: str | None = None,
        baseline: str | Baseline | None = None,
        tail: str | None = None,
        arrival: str | None = None,
        batch_size: int | None = None,
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
        vectors = is_linear(check_wrapped(env))
        check_choice(variant, LINEAR_VARIANTS if vectors else VARIANTS, "variant")
        if baseline is not None and not vectors:
            raise ValueError(f"`baseline` must be None where states are countable, got {baseline!r}")
        self.variant, self.published = variant, preset == "paper"
        self.oracle_draws = check_count(oracle_draws, "oracle_draws")
        self.oracle_size = check_count(oracle_size, "oracle_size")
        self._baseline = ("td" if preset == "paper" else "lstd") if baseline is None else baseline
        kick = "naive_pgd" if variant == "oracle" else "hpgd"  # the oracle's batch carries its kicks itself
        usual = {"mc": "monte_carlo", "sa": "sarsa"}.get(variant, "expected_sarsa")
        paper = replace(PUBLISHED, kick=kick, critic="sarsa" if variant == "sa" else "monte_carlo")
        presets = {None: Sampling(kick, critic=usual, features="none"), "paper": paper}
        realised = variant == "mc"
        fit = replace(PUBLISHED_FIT, normalised=realised)
        learned, of = ("hpgd_realised", "state") if realised else ("hpgd_learned", "action")
        linear = {
            None: replace(LINEAR, kick=learned, features="none", knowledge="simulate"),
            "paper": replace(PUBLISHED_LINEAR, kick=learned, network=fit, network_of=of),
        }
        super().__init__(env, arguments, presets, linear, paper_rate=0.001 if realised else 0.01)
        if variant == "oracle" and self.published and self.oracle_size % self.rows:
            raise ValueError(
                f"`oracle_size` must be a multiple of the batch's rows ({self.rows}, from `rows` or `batch_size`), "
                f"got {oracle_size}"
            )

    def _surrogate(
        self,
        theta: Tensor,
        model: Any,
        batch: Rollout,
        best: BestResponse,
        critic: Critic,
        noise: Noise,
        tail: str,
    ) -> tuple[Tensor, Tensor | int]:
        total, steps = super()._surrogate(theta, model, batch, best, critic, noise, tail)
        if self.linear:
            return total - self._centre(theta, model, batch, best, critic, noise, tail), steps
        if self.variant != "oracle":
            return total, steps
        preferences, policy = self.env.preferences, best.acting
        world = self.env.unwrapped.simulator(theta.detach()).detach()  # type: ignore[attr-defined]
        counts = self.counts(batch, tail)
        if self.published:
            how = {"steps": self.oracle_size, "rows": self.rows, "time_limit": self.env.time_limit}
            oracle, kick = published_oracle_batch(world, policy, noise, batch, counts, preferences, **how)  # type: ignore[arg-type]
        else:
            own = kick_bc_hg(batch, evaluate(critic, best, batch), counts, preferences)
            horizon = whole_episode_horizon(preferences)
            oracle, kick = oracle_batch(world, policy, noise, batch, own, draws=self.oracle_draws, horizon=horizon)
        weights = oracle_weights(oracle, kick, best, preferences, arrival=self.sampling.arrival)
        return total + surrogate(model.terms(oracle), weights), oracle.valid.sum((1, 2))

    def _centre(
        self,
        theta: Tensor,
        model: Any,
        batch: Rollout,
        best: BestResponse,
        critic: Critic,
        noise: Noise,
        tail: str,
    ) -> Tensor:
        """⟨Σ_k c_k Û(s_k), θ⟩ of each run, [R], with Û fitted to the batch."""
        preferences, baseline = self.env.preferences, critic.baseline  # type: ignore[attr-defined]
        values = evaluate(critic, best, batch)
        counts = self.counts(batch, tail)
        kick = KICKS[self.sampling.kick].kick(batch, values, counts, preferences)
        # With a kick of 1 at every step and no decay the follower's weights are what that step alone adds to ∇Q_F.
        alone = weights_from_kick(
            batch.valid.to(kick.dtype),
            batch,
            values,
            torch.zeros_like(kick),
            preferences,
            tail="keep",
            arrival=self.sampling.arrival,
            decay=0.0,
        )
        terms = model.terms(batch)
        pairs = [(terms.r_follower, alone.r_follower), (terms.log_arrival, alone.log_arrival)]
        added = [weight * term for term, weight in pairs if term is not None and weight is not None]
        if not added:
            return torch.zeros(len(theta), dtype=theta.dtype)
        # The published form adds nothing at the last step of an episode, which is no step of the process then.
        used = batch.valid & ~batch.cut if self.sampling.arrival == "clipped" else batch.valid
        baseline.fit(batch, per_step_gradient(torch.stack(added).sum(0), theta), used, noise)
        return ((kick[..., None] * baseline(batch.state)).sum((1, 2)) * theta.flatten(1)).sum(1)

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
        lacking = [name for name in BASELINE_METHODS if not hasattr(self._baseline, name)]
        if lacking or isinstance(self._baseline, type):
            raise TypeError(
                f'`baseline` must be "lstd", "td" or an object with {", ".join(BASELINE_METHODS)}, '
                f"got {self._baseline!r}"
            )
        return WithBaseline(critic, self._baseline)

    def _steps_drawn(self, steps: int, horizon: int) -> int:
        if self.variant != "oracle":
            return steps
        return steps + (self.oracle_size if self.published else 2 * self.oracle_draws * steps * horizon)


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
        tail: as in ``BCHG``.
        arrival: as in ``BCHG``, for the leader's part.
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
        tail: str | None = None,
        arrival: str | None = None,
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
        default = Sampling("sobirl", features="none")
        paper = replace(default, critic="monte_carlo", tail="reference")
        kick = "sobirl_modified" if modified else "sobirl"
        super().__init__(env, arguments, {None: default, "paper": paper}, kick=kick)


class BiAC(SampledLeader):
    r"""Bi-AC: first-order policy gradient for the leader of a game, with the backup of a stage game in its critic.

    .. math::

        Q_L(s, a, b) = r_L + \gamma_L \max_{a'} Q_L(s', a', b^*(s', a')),
        \qquad b^*(s, a) = \arg\max_b g(b | s, a)

    The kick is 0 as in ``NaivePGD``. The critic supposes a leader that commits anew in every state, while the follower
    replies to the policy that the leader has: where only a mixed policy keeps the follower interested, as in the toy
    Markov game, it promises what will not come.

    Args:
        env: a ``BilevelWrapper`` around a finite game whose follower sees the leader's move.
        preset: None or ``"paper"``: networks for policy and critic, Adam, replay, target networks that move by 1 % per
            outer iteration (``leaders.actor_critic`` lists the choices).
        replay: with the preset, learn from all transitions so far (the default) or from the last batch.
        critic_learning_rate: as in ``BCHG``.
        critic_start: as in ``BCHG``.
        tail: as in ``BCHG``.
        arrival: as in ``BCHG``.
        batch_size: transitions per outer iteration and run; None for the environment's advice, or 100.
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
        The baseline "Bi-AC" of arXiv:2603.14867.
    """

    name: ClassVar[str] = "bi-ac"

    def __init__(
        self,
        env: gym.Env,
        *,
        preset: str | None = None,
        replay: bool | None = None,
        critic_learning_rate: Any = None,
        critic_start: str | None = None,
        tail: str | None = None,
        arrival: str | None = None,
        batch_size: int | None = None,
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
        _check_replay(replay, preset)
        replay = True if replay is None and preset == "paper" else replay
        default = Sampling("naive_pgd", critic="stage_game", features="none")
        super().__init__(env, arguments | {"replay": replay}, {None: default, "paper": default})


def _check_replay(replay: bool | None, preset: str | None) -> None:
    check_choice(replay, (None, True, False), "replay")
    if replay is not None and preset != "paper":
        raise ValueError(f'`replay` must be None without `preset="paper"`, got {replay!r}')


class ExactGradient(Leader):
    """Ascends the exact hypergradient: no samples; what the estimators would do without noise.

    ::

        each outer iteration:
            g ← follower's response to θ
            solve for V_L, the discounted visits and the adjoint;   θ ← θ + α ∇J_L(θ)

    Args:
        env: a ``BilevelWrapper`` around an environment with tables or a linear-quadratic model.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ, or the name of one that the environment has; None for its default.
        runs: number of stacked runs (different starts); None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        Theorem 1 of arXiv:2603.14867, with its sums solved (``leaders.exact``).
    """

    name: ClassVar[str] = "exact"

    def __init__(
        self,
        env: gym.Env,
        *,
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
        super().__init__(env, changed(Common(), arguments), arguments)

    def _estimate(self, theta: Tensor, model: Any, best: BestResponse) -> Estimate:
        solves = 0
        if not best.optimal:
            best, solves = exact.best_response(model.detach(), self.env.preferences, best), 1
        direct, guiding = exact.surrogates(model, best, self.env.preferences)
        return Estimate(direct + guiding, follower_solves=solves)

    def _samples(self, count: int, episodes: int | None, seed: int | None) -> Tensor:
        """The exact hypergradient, `count` times over: it does not vary."""
        theta = self._theta().detach()
        return torch.from_numpy(exact.hypergradient(self.env, theta)).expand(count, *theta.shape).clone()


LEADERS: dict[str, type[Leader]] = {
    leader.name: leader
    for leader in (BCHG, NaivePGD, HPGD, SoBiRL, BiAC, ExactGradient, ZerothOrder, CMAES, RandomSearch)
}
