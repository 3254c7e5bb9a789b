"""Leaders that estimate from trajectories: batch → critic → guiding → weights → surrogate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.autograd import with_gradients
from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_count
from bilevel_envs.core.follower import BestResponse, NotAvailableError, tiled
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Box, Free
from bilevel_envs.worlds.linear_quadratic.polynomials import products
from bilevel_envs.wrapper import BilevelWrapper
from leaders.config import Forms
from leaders.critics.critic import Critic, capabilities_of
from leaders.critics.cross_fit import Judges, cross_fitted, fitted_to_all
from leaders.critics.empirical import Empirical
from leaders.estimators.continuation import continuation
from leaders.functional.errors import TooFewTransitions
from leaders.functional.fitted_guiding import fitted_trace
from leaders.functional.guiding import ESTIMATORS, Rule
from leaders.functional.pathwise import analytic_guiding, pathwise
from leaders.functional.per_step import clipped, per_step_gradient
from leaders.functional.surrogate import surrogate
from leaders.functional.values import Values, evaluate
from leaders.functional.weights import Weights, discount_weights, residualised, weights_from_guiding, weights_from_trace
from leaders.keywords import accepted
from leaders.leader import Estimate, Leader, check_wrapped
from leaders.paper.actor_critic import ActorCritic
from leaders.paper.games import is_game, published_leader
from leaders.worlds.facts import facts_of
from leaders.worlds.resolve import check_config, resolve
from leaders.worlds.tabular import TABULAR

CUT_OFF = 1e-5  # whole episodes end where max(γ_L, γ_F)^H falls below
LITTLE = 0.05  # rows that are continued go on until max(γ_L, γ_F)^T falls below
CHUNK = 2_000_000  # transitions that `gradient_samples` holds at a time
FEW = 10  # numbers that are held of each transition, whatever is fitted to it

TRUSTED = 0.3  # share of a batch's steps at pairs seen in no other episode, above which estimates are not trusted
EXPECTED = ("bc_hg", "naive_pgd")  # guiding weights whose estimates may expect what follows the first step
PATIENCE = 10  # outer iterations before that is said

GAME_IGNORES = ("control_variate", "critic", "gradient", "sampler", "score_weight", "tail")  # in its published form
MOST_SCORE = 1.0  # ℓ2 norm to which score_weight="clipped" clips each ∇log p of the direct term, in raw parameters


logger = logging.getLogger("leaders")


class TrajectoryLeader(Leader):
    """A leader that looks at trajectories.

    Args:
      env: the environment with its follower.
      own: the subclass's own arguments, `preset` among them; None stands for nothing.
      keywords: the generated ones.
      forms: the leader's forms, by preset and kind of world.
      estimator: name of another estimator than the forms', as the subclass's own arguments demand.
    """

    looks_at_trajectories: ClassVar[bool] = True

    def __init__(
        self,
        env: gym.Env,
        own: dict[str, Any],
        keywords: Mapping[str, Any],
        forms: Forms,
        estimator: str | None = None,
    ) -> None:
        wrapped, name = check_wrapped(env), type(self).__name__
        given = accepted(type(self), {**own, **keywords})
        self.facts = facts_of(wrapped)
        self.actor_critic = self._published(wrapped, given)
        game = None if self.actor_critic is None else self.actor_critic.form
        config, self.sampling = resolve(name, forms, given | {"estimator": estimator}, self.facts, game)
        super().__init__(wrapped, config, given)
        if ESTIMATORS[self.sampling.estimator].reads_follower and not getattr(wrapped.follower, "gives_values", True):
            raise NotAvailableError(wrapped.follower.missing("V_F").reason)
        self.leader_horizon: int | None = getattr(self.env.model(self._theta().detach()), "horizon", None)
        check_config(self.sampling, self.facts, self.runs, given)
        self.env.check_sampler(self.sampling.sampler)
        self.rows, self.horizon = self._batch_shape()
        self.critic = self._make_critic()
        self.seen = self._seen()
        self._warned = False

    def _published(self, env: BilevelWrapper, given: Mapping[str, Any]) -> ActorCritic | None:
        """The published form of a game, an actor-critic, where that is asked for."""
        if given.get("preset") != "paper" or not is_game(env):
            return None
        for name in GAME_IGNORES:
            if given.get(name) is not None:
                raise ValueError(f"`{name}` must be None with the published form of games, got {given[name]!r}")
        return published_leader(self.name, env.problem, bool(given.get("replay")))

    def _estimate(self, theta: Tensor, model: Any, best: BestResponse) -> Estimate:
        if self.actor_critic is not None:
            return self._published_game(self.actor_critic, theta, model, best)
        fixed = model.detach()
        drawn = self.env.rollout(
            theta.detach(),
            best,
            self.noise,
            rows=self.rows,
            horizon=self.horizon,
            sampler=self.sampling.sampler,
            model=fixed,
        )
        # Before anything has been seen there is nothing to expect: every step is judged by the rest of the batch.
        expects = self._expects() and self.progress.iterations > 0
        batch = drawn.steps(0, 1) if expects else drawn
        judges = self._judges(self.critic, self.seen, batch, best, fixed, self.noise)
        total, further_steps = self._surrogate(theta, model, batch, best, judges, self.noise, self.sampling.tail)
        self._check_seen(judges, batch, drawn)
        if self.seen is not None and expects:
            self.seen.seen.add(drawn.steps(1, None), fixed.states, fixed.actions)
        return Estimate(
            surrogate=total,
            leader_return=mean_return(drawn, self.env.preferences.gamma_leader),
            env_steps=self.sampling.batch_size + further_steps,
            episodes=(drawn.valid & (drawn.terminated | drawn.truncated)).sum((1, 2)),
            **self._coverage(),
        )

    def _expects(self) -> bool:
        """Whether an estimate samples the first step of each row and expects the rest in the world that was seen.

        What lies behind a cut is solved for, in transitions of other episodes, without the noise of a trajectory. With
        the critic that is made of the same transitions, a cut after the first step costs no knowledge; the steps that
        follow are counted for the batches to come.
        """
        sampling = self.sampling
        return _named(sampling.critic, "empirical") and sampling.tail == "continue" and sampling.estimator in EXPECTED

    def _check_seen(self, judges: Judges, batch: Rollout, drawn: Rollout) -> None:
        """Says once that too little has been seen."""
        done = self.progress.iterations + 1
        if self.seen is None or self._warned or done < PATIENCE:
            return
        if batch is not drawn:  # whose other steps are in no world yet
            judges, batch = replace(judges, part=torch.zeros_like(drawn.step), seen=[self.seen]), drawn
        self._warned = self._left_out(judges, batch, self.sampling.tail, f"after {done} iterations")

    def _coverage(self) -> dict[str, Any]:
        """What the history records of it."""
        if self.seen is None:
            return {}
        return dict(zip(("coverage", "visits_per_pair"), self.seen.seen.coverage(), strict=True))

    def _left_out(self, judges: Judges, batch: Rollout, tail: str, when: str) -> bool:
        """Says so if an estimate leaves out too much to be trusted."""
        steps, behind = judges.unseen(batch)
        steps, behind = steps if judges.learnt else 0.0, behind if tail == "continue" else 0.0
        if max(steps, behind) <= TRUSTED:
            return False
        logger.warning(
            "%s, %s: too little has been seen for estimates to be trusted. They leave out %.0f %% of a batch's steps, "
            "at pairs (state, action) that no other episode visited, and %.0f %% of an episode, behind cuts in states "
            'that were never left. Raise `batch_size`, lower `rows`, or go on until history["coverage"] stops growing.',
            type(self).__name__,
            when,
            100 * steps,
            100 * behind,
        )
        return True

    def _judges(
        self, critic: Critic, seen: Empirical | None, batch: Rollout, best: BestResponse, model: Any, noise: Noise
    ) -> Judges:
        """Who judges the batch; the critic, and what was seen of a table, learn from it."""
        gamma = self.env.preferences.gamma_leader
        if not self.sampling.cross_fit or (seen is None and not capabilities_of(critic).learns):
            return fitted_to_all(critic, batch, best, model, noise, gamma=gamma, seen=seen)
        first = self.progress.iterations == 0
        return cross_fitted(critic, batch, best, model, noise, gamma=gamma, seen=seen, first=first)

    def _published_game(self, actor_critic: ActorCritic, theta: Tensor, model: Any, best: BestResponse) -> Estimate:
        """One outer iteration of a published leader in a game."""
        how = (self.env, theta.detach(), model.detach(), best, self.noise, self.progress.iterations)
        batch, best = actor_critic.play(*how, rows=self.rows, horizon=self.horizon)

        def ascend(surrogate: Tensor) -> None:
            self._ascent.zero_grad()
            (-surrogate.sum()).backward()
            self._ascent.step()

        return Estimate(
            surrogate=actor_critic.improve(self.policy, batch, best, self.env.preferences, self.noise, ascend),
            leader_return=mean_return(batch, self.env.preferences.gamma_leader),
            env_steps=self.sampling.batch_size,
            episodes=batch.starts.sum((1, 2)),
        )

    def _surrogate(
        self,
        theta: Tensor,
        model: Any,
        batch: Rollout,
        best: BestResponse,
        judges: Judges,
        noise: Noise,
        tail: str,
    ) -> tuple[Tensor, Tensor | int]:
        """The surrogate of each run, [R], and how many environment steps were drawn beside the batch."""
        rule, gradient, preferences = ESTIMATORS[self.sampling.estimator], self.sampling.gradient, self.env.preferences
        trace = self._fitted_trace(batch, best, judges, tail) if self.sampling.guiding == "fitted" else None
        terms = model.terms(batch, best.policy if rule.centred else None)
        values = evaluate(judges, best, batch, rule.reads_follower, judges.fold)  # once: some critics draw for it
        if gradient == "score":
            weights = self._weights(batch, values, tail, trace)
            total = surrogate(terms, weights)
            if tail == "continue":
                discounts = self.discount_weights(batch, tail)
                how: dict[str, Any] = {"preferences": preferences, "rule": self._rule_behind_cuts()}
                total = total + continuation(judges, model, batch, best, discounts, weights, **how)
            if self.sampling.score_weight == "clipped" and terms.log_arrival is not None:
                total = total + self._clipped_direct(terms.log_arrival, theta, batch, values)
            return total, 0
        if model.noise.requires_grad:
            raise ValueError(f'`gradient` must be "score" where θ moves the noise, got {gradient!r}')
        discounts = self.discount_weights(batch, tail)
        reaction: Tensor | float = 0.0
        if gradient == "analytic":
            guiding = rule.guiding(batch, values, discounts, preferences)
            reaction = analytic_guiding(guiding, batch, model, preferences)
            weights = self._weights(batch, values, tail, torch.zeros_like(guiding))
        else:
            weights = self._weights(batch, values, tail, trace)
        v_leader = judges.leader_gradient(best.policy)
        v_follower = best.v if rule.reads_follower else None
        weights = pathwise(weights, discounts, batch, model.detach(), v_leader, v_follower, preferences)
        return surrogate(terms, weights) + reaction, 0

    def _rule_behind_cuts(self) -> Rule:
        """The estimator by which cut episodes go on."""
        return ESTIMATORS[self.sampling.estimator]

    def discount_weights(self, batch: Rollout, tail: str) -> Tensor:
        """`discount_weights` of the leader, 0 beyond the steps that its objective sums, [R, N, T]."""
        discounts = discount_weights(batch, self.env.preferences.gamma_leader, tail)
        return discounts if self.leader_horizon is None else discounts * (batch.step < self.leader_horizon)

    def _fitted_trace(self, batch: Rollout, best: BestResponse, judges: Judges, tail: str) -> Tensor:
        """Weights of what steps add to ∇Q_F, [R, N, T]; each part of the batch fits its own ∇Q_F."""
        preferences = self.env.preferences
        weight = self.discount_weights(batch, tail) / preferences.beta
        total = torch.zeros_like(weight)
        for critic, part in zip(judges.critics, judges.parts, strict=True):
            own = replace(batch, valid=batch.valid & part)
            try:
                trace = fitted_trace(own, critic.quadratic(), best.policy, weight * part, preferences.gamma_follower)
            except TooFewTransitions as error:
                raise error.of_half() if len(judges.critics) > 1 else error from None
            total = total + trace * part
        return total

    def _weights(self, batch: Rollout, values: Values, tail: str, trace: Tensor | None = None) -> Weights:
        """From a batch to the four weights, with the rule's trace or another; the whole estimator on half a screen."""
        preferences = self.env.preferences
        discounts = self.discount_weights(batch, tail)
        rule = ESTIMATORS[self.sampling.estimator]
        how: dict[str, Any] = {"tail": tail, "score_weight": self.sampling.score_weight, "centred": rule.centred}
        if trace is not None:
            return weights_from_trace(trace, batch, values, discounts, preferences, **how)
        guiding = rule.guiding(batch, values, discounts, preferences)
        if self.sampling.control_variate != "none":
            guiding = residualised(guiding, self._features(batch), batch)
        return weights_from_guiding(guiding, batch, values, discounts, preferences, decay=rule.decay, **how)

    def _clipped_direct(self, log_arrival: Tensor, theta: Tensor, batch: Rollout, values: Values) -> Tensor:
        """What arrives for the leader, with every ∇log p clipped; linear in θ, [R]."""
        discounts = self.discount_weights(batch, self.sampling.tail)
        weight = self.env.preferences.gamma_leader * discounts * values.v_leader_next * ~batch.cut
        blocks = self.common.blocks or {"all": slice(None)}
        score = clipped(per_step_gradient(log_arrival, theta), self._slope(len(theta)), blocks, MOST_SCORE)
        return ((weight[..., None] * score).sum((1, 2)) * theta.flatten(1)).sum(1)

    def _slope(self, runs: int) -> Tensor:
        """dθ_j / draw_j at the present θ, for as many runs as are stacked, [R, dim θ]."""
        if not isinstance(self.policy, (Box, Free)):
            raise ValueError(
                "`policy` must act entry by entry (Box or Free) where gradients are clipped in raw parameters, got "
                f"{type(self.policy).__name__}"
            )
        (slope,) = torch.autograd.grad(self.policy().sum(), self.policy.raw)
        return slope.reshape(self.runs, -1).repeat(runs // self.runs, 1)

    def _features(self, batch: Rollout) -> Tensor:
        if callable(self.sampling.control_variate):
            features = torch.as_tensor(self.sampling.control_variate(batch.state)).to(batch.r_leader.dtype)
            if features.ndim != 4 or features.shape[:3] != batch.r_leader.shape:
                wanted = [*batch.r_leader.shape, "F"]
                raise ValueError(f"`control_variate` must map states to shape {wanted}, got {list(features.shape)}")
            return features
        ones = torch.ones(*batch.r_leader.shape, 1, dtype=batch.r_leader.dtype)
        if self.sampling.control_variate == "constant":
            return ones
        return torch.cat([ones, batch.state, products(batch.state)], -1)

    def _samples(self, count: int, episodes: int | None, seed: int | None) -> Tensor:
        if self.actor_critic is not None:
            raise ValueError('`gradient_samples` needs another `preset` than "paper" in games, an actor-critic there')
        rows = max(10, self.rows) if episodes is None else check_count(episodes, "episodes")
        horizon = self._whole_episode()
        theta = self._theta().detach()
        best = self.env.best_response(theta, self.progress.best, learn=False)
        room = self.runs * self._steps_drawn(rows * horizon, horizon)
        if self.sampling.guiding == "fitted":
            world = self.env.model(theta)
            room *= 1 + (1 + world.state_size + world.action_size) ** 2 // FEW
        if self.seen is not None:
            world = self.env.model(theta)
            room += self.runs * self.seen.seen.numbers(world.states, world.actions) // FEW
        at_once = max(1, CHUNK // room)
        gradients = []
        for first in range(0, count, at_once):
            copies = min(at_once, count - first)
            # Sample j of run i is run j·R + i of a larger stack, with a stream of its own.
            draw = 1 if seed is None else 2 + seed
            streams = [
                [self.seeds[run], draw, self.progress.iterations, first + copy]
                for copy in range(copies)
                for run in range(self.runs)
            ]
            noise = Noise(streams)
            stacked = theta.repeat(copies, *[1] * (theta.ndim - 1)).requires_grad_()
            model, response = self.env.model(stacked), tiled(best, copies)
            fixed = model.detach()
            batch = self.env.rollout(
                stacked.detach(),
                response,
                noise,
                rows=rows,
                horizon=horizon,
                whole_episodes=True,
                sampler=self.sampling.sampler,
                model=fixed,
            )
            critic = self.critic.copies(copies)
            seen = critic if self.seen is self.critic else self.seen and self.seen.copies(copies)
            judges = self._judges(critic, seen, batch, response, fixed, noise)  # type: ignore[arg-type]
            if seen is not None and first == 0:
                self._left_out(judges, batch, "keep", "in gradient_samples")
            total = self._surrogate(stacked, model, batch, response, judges, noise, tail="keep")[0].sum()
            (gradient,) = torch.autograd.grad(total, stacked) if total.requires_grad else (torch.zeros_like(stacked),)
            gradients.append(gradient.view(copies, *theta.shape))
        return torch.cat(gradients)

    def _long_enough(self) -> int:
        """Steps after which a twentieth is left of what either player counts."""
        gamma = max(self.env.preferences.gamma_leader, self.env.preferences.gamma_follower)
        return int(np.ceil(np.log(LITTLE) / np.log(gamma))) if gamma > 0 else 1

    def _whole_episode(self) -> int:
        """Steps of an episode beyond which nothing matters to an estimate."""
        if self.leader_horizon is None:
            return whole_episode_horizon(self.env.preferences)
        if self.sampling.gradient == "analytic":
            return self.leader_horizon  # ∇Q_F is known, whatever lies behind
        gamma = self.env.preferences.gamma_follower
        return self.leader_horizon + whole_episode_horizon(replace(self.env.preferences, gamma_leader=gamma))

    def _steps_drawn(self, steps: int, horizon: int) -> int:
        """At most so many steps are held for a batch of `steps` on-policy ones, episodes being cut at `horizon`."""
        return steps

    def _make_critic(self) -> Critic:
        return self.facts.world.critic(self.sampling, self.facts, self._theta_moves(), type(self).__name__)

    def _seen(self) -> Empirical | None:
        """What the leader has seen of a table, which its critic may be; None where nobody asks for it."""
        if self.facts.world is not TABULAR or not (self.sampling.cross_fit or self.sampling.tail == "continue"):
            return None
        if _named(self.sampling.critic, "empirical"):
            return self.critic  # type: ignore[return-value]
        return Empirical(self.env.preferences.gamma_leader, self._theta_moves())

    @with_gradients
    def _theta_moves(self) -> bool:
        """Whether θ moves the transitions of a table."""
        return self.facts.world is TABULAR and self.env.model(self._theta()).transition.requires_grad

    def _critic_state(self) -> dict[str, Any]:
        if self.actor_critic is not None:
            return self.actor_critic.state_dict()
        critic = {} if self.critic is self.seen else self.critic.state_dict()
        return {"critic": critic, "seen": None if self.seen is None else self.seen.state_dict()}

    def _load_critic_state(self, state: dict[str, Any]) -> None:
        if self.actor_critic is not None:
            self.actor_critic.load_state_dict(state, self.policy)
        else:
            if self.critic is not self.seen:
                self.critic.load_state_dict(state["critic"])
            if state["seen"] is not None and self.seen is not None:
                self.seen.load_state_dict(state["seen"])

    def _batch_shape(self) -> tuple[int, int]:
        """Rows and steps per row of a batch."""
        size = check_count(self.sampling.batch_size, "batch_size")
        limit, rows = self.env.time_limit, self.sampling.rows
        if rows is None:
            # The fewest equal rows that the time limit allows; without one, ten: a control variate needs episodes.
            # Where cut episodes go on in the world that was seen, it must not end where rows do: they are as long as
            # something counts.
            least = min(10, size) if limit is None else -(-size // limit)
            if self.sampling.tail == "continue":
                fewest = 1 if self._expects() or limit is not None else min(2, size)
                rows = _divisor(size, max(fewest, -(-size // min(limit or size, self._long_enough()))))
            else:
                rows = next(rows for rows in range(least, size + 1) if size % rows == 0)
            if self.facts.features and limit is not None and size >= limit > 2 * (size // rows):
                raise ValueError(
                    f"`batch_size` must make whole episodes, a multiple of {limit}, unless `rows` is given: {size} "
                    f"would become {rows} rows of {size // rows} steps"
                )
        elif size % check_count(rows, "rows"):
            raise ValueError(f"`batch_size` must be a multiple of `rows` ({rows}), got {size}")
        return rows, size // rows


def _named(critic: Any, name: str) -> bool:
    """Whether a critic is given by this name."""
    return isinstance(critic, str) and critic == name


def _divisor(size: int, least: int) -> int:
    """The smallest divisor from `least` on, unless it is more than twice that: then the largest up to it."""
    divisors = [rows for rows in range(1, size + 1) if size % rows == 0]
    above = next((rows for rows in divisors if rows >= least), size)
    return above if above <= 2 * least else max(rows for rows in divisors if rows <= max(least, 1))


def whole_episode_horizon(preferences: Preferences) -> int:
    """The step beyond which nothing of an episode matters: max(γ_L, γ_F)^H ≤ 1e-5."""
    gamma = max(preferences.gamma_leader, preferences.gamma_follower)
    return int(np.ceil(np.log(CUT_OFF) / np.log(gamma))) if gamma > 0 else 1


def mean_return(batch: Rollout, gamma: float) -> Tensor:
    """Mean discounted return of the episodes begun, as far as the batch goes, [R]."""
    discounted = (gamma ** batch.step.double() * batch.r_leader * batch.valid).sum((1, 2))
    return discounted / batch.starts.sum((1, 2)).clamp(min=1)
