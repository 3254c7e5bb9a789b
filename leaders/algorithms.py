"""The leaders: each a named choice of kick, critic and defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_envs._checks import check_choice
from bilevel_envs.follower import BestResponse
from bilevel_envs.tabular import TabularModel
from leaders import exact
from leaders.critic import Critic
from leaders.sampled import SampledLeader, Sampling, changed
from leaders.train import Common, Estimate, Leader

PRESETS = (None, "paper")


def _given(scope: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a constructor, from its `locals()`."""
    return {name: value for name, value in scope.items() if name not in ("self", "env", "__class__")}


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

    On four rooms, from θ ≈ 0, the exact hypergradient leads to a plateau J_L ≈ 0, and so does the default here. What
    leaves it is noise: the published form's, or ``features="none"`` with ``learning_rate=0.02`` (docs: "The plateau in
    the four rooms").

    Args:
        env: a ``BilevelWrapper``.
        preset: None or ``"paper"``; what is given explicitly below wins over it.
        critic: how Q_L is learnt: ``"expected_sarsa"``, ``"sarsa"``, ``"monte_carlo"``, ``"exact"`` (needs tables), or
            an object with the methods of ``leaders.critic.Critic``.
        critic_learning_rate: η of the two SARSA tables, a number or one per run.
        critic_start: their first table, ``"zeros"`` or ``"normal"``.
        shared: average ∇Q_F over repeat visits of (s, b), as Algorithm 1 does; slightly biased.
        features: state control variate, ``"constant"``, ``"none"`` or a function state → [..., F]; it needs two
            episodes in a batch, else nothing is subtracted.
        tail: episodes that the batch cuts: ``"bootstrap"`` continues them from other visits of the state reached,
            ``"drop"`` leaves them out (a batch in which none ends then moves nothing), ``"reference"`` is the published
            form.
        arrival: weight of ∇log p: ``"td_error"`` or ``"value"``.
        batch_size: transitions per outer iteration and run.
        rows: trajectories side by side that make up a batch; None for the fewest that the time limit allows (10 without
            one). Where episodes seldom end, more rows make better estimates than longer ones.
        sampler: ``"fused"`` draws from the model's tables, ``"steps"`` drives ``reset`` and ``step``.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ; None for the environment's default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i.
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
        batch_size: int = 100,
        rows: int | None = None,
        sampler: str | None = None,
        learning_rate: Any = None,
        optimizer: str | None = None,
        max_grad_norm: float | None = None,
        policy: torch.nn.Module | None = None,
        runs: int | None = None,
        seed: int = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = _given(locals())
        check_choice(preset, PRESETS, "preset")
        paper = preset == "paper"
        defaults = PUBLISHED if paper else Sampling("bc_hg")
        shared = paper if shared is None else shared
        check_choice(shared, (True, False), "shared")
        sampling = changed(
            defaults,
            kick="bc_hg_shared" if shared else "bc_hg",
            critic=critic,
            critic_learning_rate=critic_learning_rate,
            critic_start=critic_start,
            features=features,
            tail=tail,
            arrival=arrival,
            batch_size=batch_size,
            rows=rows,
            sampler=sampler,
        )
        common = Common(runs, seed, policy, verbose, tensorboard_log, **(PUBLISHED_STEPS if paper else {}))
        steps = {"learning_rate": learning_rate, "optimizer": optimizer, "max_grad_norm": max_grad_norm}
        super().__init__(env, changed(common, **steps), sampling, arguments)


class NaivePGD(SampledLeader):
    r"""Plain policy gradient for the leader: θ's direct effect, as if the follower would not react.

    .. math::

        \nabla J_L \approx \mathbb{E}\Big[
        \sum_t \gamma_L^t \big(\nabla r_L + V_L(s_t) \nabla \log p(s_t | s_{t-1}, b_{t-1})\big)\Big]

    The kick is 0, so nothing ever weighs ∇r_F. It is the floor that every other leader is measured against; in
    ``TollBridge`` it is exactly 0.

    Args:
        env: a ``BilevelWrapper``.
        preset: None or ``"paper"`` (every-visit average over the start states, cut episodes summed as far as they go).
        critic: as in ``BCHG``; it matters only where θ enters transitions or start.
        critic_learning_rate: as in ``BCHG``.
        tail: as in ``BCHG``.
        arrival: as in ``BCHG``.
        batch_size: transitions per outer iteration and run.
        rows: as in ``BCHG``.
        sampler: ``"fused"`` or ``"steps"``.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ; None for the environment's default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i.
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
        policy: torch.nn.Module | None = None,
        runs: int | None = None,
        seed: int = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = _given(locals())
        check_choice(preset, PRESETS, "preset")
        paper = preset == "paper"
        sampling = changed(
            Sampling("naive_pgd", features="none", tail="reference" if paper else "bootstrap"),
            critic=critic or ("monte_carlo" if paper else None),
            critic_learning_rate=critic_learning_rate,
            tail=tail,
            arrival=arrival,
            batch_size=batch_size,
            rows=rows,
            sampler=sampler,
        )
        common = Common(runs, seed, policy, verbose, tensorboard_log, **(PUBLISHED_STEPS if paper else {}))
        steps = {"learning_rate": learning_rate, "optimizer": optimizer, "max_grad_norm": max_grad_norm}
        super().__init__(env, changed(common, **steps), sampling, arguments)


class ExactGradient(Leader):
    """Ascends the exact hypergradient: no samples, tables only; what the estimators would do without noise.

    ::

        each outer iteration:
            g ← follower's response to θ
            solve for V_L, the discounted visits and the adjoint;   θ ← θ + α ∇J_L(θ)

    Args:
        env: a ``BilevelWrapper`` around an environment with tables.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ; None for the environment's default.
        runs: number of stacked runs (different starts); None for a single one without a runs axis.
        seed: run i uses the stream of seed + i.
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
        policy: torch.nn.Module | None = None,
        runs: int | None = None,
        seed: int = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = _given(locals())
        common = Common(runs, seed, policy, verbose, tensorboard_log)
        steps = {"learning_rate": learning_rate, "optimizer": optimizer, "max_grad_norm": max_grad_norm}
        super().__init__(env, changed(common, **steps), arguments)

    def _estimate(self, theta: Tensor, model: TabularModel, best: BestResponse) -> Estimate:
        solves = 0
        if not best.optimal:
            best, solves = exact.best_response(model.detach(), self.env.preferences, best), 1
        weights = exact.table_weights(
            model.detach(), best, self.env.preferences, with_transition=model.transition.requires_grad
        )
        return Estimate(sum(exact.tables_surrogate(model, part) for part in weights), follower_solves=solves)  # type: ignore[arg-type]

    def _samples(self, count: int, episodes: int | None, seed: int | None) -> Tensor:
        """The exact hypergradient, `count` times over: it does not vary."""
        theta = self._theta().detach()
        return torch.from_numpy(exact.hypergradient(self.env, theta)).expand(count, *theta.shape).clone()


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

PUBLISHED_STEPS: dict[str, Any] = {"learning_rate": 0.1, "optimizer": "sgd"}  # and the clip at 1, the default

LEADERS: dict[str, type[Leader]] = {leader.name: leader for leader in (BCHG, NaivePGD, ExactGradient)}
