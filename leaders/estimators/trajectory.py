"""Leaders that estimate from trajectories: batch → values → guiding trace → weights → surrogate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.autograd import with_gradients
from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_count, check_memory
from bilevel_envs.core.follower import BestResponse, NotAvailableError, capabilities_of, missing_value, tiled
from bilevel_envs.core.mdp import Model, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Box, Free
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.wrapper import BilevelWrapper
from leaders.config import EstimatorConfig, Forms, is_published, selected
from leaders.critics.critic import Critic
from leaders.critics.critic import capabilities_of as critic_capabilities
from leaders.critics.cross_fit import HALVES, Judges, cross_fitted, fitted_to_all, returns_itself
from leaders.critics.empirical import Empirical
from leaders.critics.network import NetworkCritic
from leaders.critics.reaction import ActionCritic, WithReactions
from leaders.estimate import Estimate
from leaders.estimators.coverage import Coverage
from leaders.estimators.dynamics import LearntDynamics, LearntGuiding, LearntPathwise
from leaders.estimators.guiding import AnalyticGuiding, FittedGuiding, Guiding, NetworkGuiding
from leaders.estimators.restarts import DRAWS, candidates, halved
from leaders.estimators.returns import mean_return, uncut_return
from leaders.estimators.sample import Sample
from leaders.estimators.transition import ClippedScore, Pathwise, Score
from leaders.exact.raw_parameters import RawParameters
from leaders.functional.guiding import ESTIMATORS
from leaders.functional.surrogate import surrogate
from leaders.functional.weights import Weights, discount_weights, weights_from_trace
from leaders.keywords import accepted
from leaders.leader import Leader, check_wrapped
from leaders.paper.actor_critic import ActorCritic
from leaders.paper.games import is_game, published_leader
from leaders.paper.linear_quadratic import LinearActorCritic
from leaders.paper.tables import TableActorCritic
from leaders.worlds.facts import facts_of
from leaders.worlds.resolve import check_config, looks_ahead, resolve
from leaders.worlds.tabular import TABULAR

CUT_OFF = 1e-5  # whole episodes end where max(γ_L, γ_F)^H falls below
LITTLE = 0.05  # rows that are continued go on until max(γ_L, γ_F)^T falls below
UNKNOWN = float("nan")  # what is not counted
CHUNK = 2_000_000  # transitions that `gradient_samples` holds at a time
FEW = 10  # numbers that are held of each transition, whatever is fitted to it

EXPECTED = ("bc_hg", "naive_pgd")  # estimators whose estimates may expect what follows the first step

logger = logging.getLogger("leaders")
SHOWN = ("estimator", "critic", "gradient", "guiding", "batch_size")  # settings that `repr` shows always

GAME_IGNORES = (
    "control_variate",
    "critic",
    "exploration",
    "gradient",
    "sampler",
    "score_weight",
    "tail",
)  # in its published form


class TrajectoryLeader(Leader):
    """A leader that looks at trajectories.

    Args:
      env: the environment with its follower.
      own: the subclass's own arguments, `preset` among them; None stands for nothing.
      keywords: the generated ones.
      forms: the leader's forms, by preset and kind of world.
      estimator: name of another estimator than the forms', as the subclass's own arguments demand.
    """

    gives_samples: ClassVar[bool] = True
    looks_at_trajectories: ClassVar[bool] = True
    warns: ClassVar[bool] = True  # whether it says once when its estimates cannot be trusted yet

    def __init__(
        self,
        env: gym.Env,
        own: Mapping[str, object],
        keywords: Mapping[str, object],
        forms: Forms,
        estimator: str | None = None,
    ) -> None:
        wrapped, name = check_wrapped(env), type(self).__name__
        given = accepted(type(self), {**own, **keywords})
        self.facts = facts_of(wrapped)
        self.actor_critic = self._published(wrapped, given)
        game = None if self.actor_critic is None else self.actor_critic.form
        config, self.estimator_config = resolve(name, forms, given | {"estimator": estimator}, self.facts, game)
        if "exploration" in self.without:  # it has a way of its own, whatever the environment recommends
            self.estimator_config = replace(self.estimator_config, exploration="none")
        super().__init__(wrapped, config, given)
        reads = ESTIMATORS[self.estimator_config.estimator].reads_follower and not self.facts.only_rewards
        if reads and not capabilities_of(wrapped.follower).gives_values:
            raise NotAvailableError(missing_value(wrapped.follower, "V_F").reason)
        if self.contexts is not None and self._restarts:
            raise ValueError('`exploration` must be "none" where contexts are drawn, got "restarts"')
        with self._in_its_contexts():
            self.leader_horizon: int | None = self.env.model(self._theta().detach()).horizon
        check_config(self.estimator_config, self.facts, self.runs, given)
        self.env.check_sampler(self.estimator_config.sampler)
        self.rows, self.horizon = self._batch_shape()
        self.critic = self._make_critic()
        self._untaught = None if self.contexts is None else self.critic.copies(1)
        self.seen = self._seen()
        self.coverage = None if self.seen is None else Coverage(name, self.seen)
        self.dynamics = self._make_dynamics()
        self.transition = self._make_transition()
        self.guiding = self._make_guiding()

    def _chosen(self) -> dict[str, object]:
        estimation = {one.name for one in fields(EstimatorConfig)}
        shared = {name: value for name, value in super()._chosen().items() if name not in estimation}
        chosen = selected(self.estimator_config, SHOWN, without=("network", "network_of"))
        if self.actor_critic is not None:  # which has a critic of its own
            chosen = {name: chosen[name] for name in ("estimator", "batch_size", "rows") if name in chosen}
        return shared | chosen

    def _published(
        self, env: BilevelWrapper, given: Mapping[str, object]
    ) -> TableActorCritic | LinearActorCritic | None:
        """The published form of a game, an actor-critic, where that is asked for."""
        if not is_published(given.get("preset")) or not is_game(env):
            return None
        for name in GAME_IGNORES:
            if given.get(name) is not None:
                raise ValueError(f"`{name}` must be None with the published form of games, got {given[name]!r}")
        return published_leader(self.name, env.problem, bool(given.get("replay")))

    def _estimate(self, theta: Tensor, model: Model, best: BestResponse) -> Estimate:
        if self.actor_critic is not None:
            return self._published_game(self.actor_critic, theta, model, best)
        if self._restarts and self.progress.iterations == 0:
            return self._restarted(best)
        if self.contexts is not None:  # what was seen in other contexts is not true in this one
            self._forget()
        drawn = self._drawn(theta, model.detach(), best)
        if self.dynamics is None:
            return self._estimate_from(drawn, theta, model, best)
        explored = self._learn_dynamics(self.dynamics, drawn, theta.detach(), best)
        estimate = self._estimate_from(drawn, theta, model, best)
        return replace(
            estimate,
            env_steps=estimate.env_steps + explored,
            dynamics_r2=self.dynamics.told,
            dynamics_inside=self.dynamics.inside,
        )

    def _learn_dynamics(self, dynamics: LearntDynamics, drawn: Rollout, theta: Tensor, best: BestResponse) -> int:
        """Goes on learning from a batch at θ and from rows at perturbed θ; the environment steps that those took."""
        own = Noise(self.noise.seeds(1).tolist())
        steps = dynamics.explore(self.env, theta, best, self.horizon, self.estimator_config.batch_size, own)
        dynamics.add(drawn, theta[:, None].expand(-1, self.rows, *theta.shape[1:]))
        dynamics.fit(own)
        return steps

    def _drawn(self, theta: Tensor, fixed: Any, best: BestResponse) -> Rollout:
        """A batch at θ."""
        return self.env.rollout(
            theta.detach(),
            best,
            self.noise,
            rows=self.rows,
            horizon=self.horizon,
            sampler=self.estimator_config.sampler,
            model=fixed,
        )

    def _estimate_from(self, drawn: Rollout, theta: Tensor, model: Any, best: BestResponse) -> Estimate:
        """The estimate that a batch gives."""
        fixed = model.detach()
        # Before anything has been seen there is nothing to expect: every step is judged by the rest of the batch.
        expects = self._expects() and not self._is_first
        batch = drawn.steps(0, 1) if expects else drawn
        judges = self.judges(self.critic, self.seen, batch, best, fixed, self.noise)
        sample = self.sample(theta, model, batch, best, judges, self.noise, self.estimator_config.tail)
        total, further_steps = self.surrogate(sample)
        if self.coverage is not None and self.warns:
            self.coverage.check(judges, batch, drawn, sample.tail, self.progress.iterations + 1)
        if self.seen is not None and expects:
            table = cast(TabularModel, fixed)  # of which alone something is seen
            self.seen.seen.add(drawn.steps(1, None), table.states, table.actions)
        coverage, visits_per_pair = (UNKNOWN, UNKNOWN) if self.coverage is None else self.coverage.columns()
        return Estimate(
            surrogate=total,
            leader_return=uncut_return(drawn, self.env.preferences.gamma_leader),
            env_steps=self.estimator_config.batch_size + further_steps,
            episodes=(drawn.valid & (drawn.terminated | drawn.truncated)).sum((1, 2)),
            coverage=coverage,
            visits_per_pair=visits_per_pair,
        )

    def _forget(self) -> None:
        """Begins anew with a critic that has learnt nothing."""
        assert self._untaught is not None, "there are contexts"
        self.critic = self._untaught.copies(1)
        self.seen = self._seen()
        if self.coverage is not None and self.seen is not None:
            self.coverage.seen = self.seen

    @property
    def _is_first(self) -> bool:
        """Whether nothing was seen before the batch of this iteration."""
        return self.contexts is not None or self.progress.iterations <= self._restarts

    @property
    def _restarts(self) -> int:
        """Outer iterations spent on restarts, 0 or 1."""
        return int(self.estimator_config.exploration == "restarts")

    def _restarted(self, best: BestResponse) -> Estimate:
        """An iteration of trials, which ends at the best of the policy's vertices and of random draws."""
        raw = RawParameters(self.policy, self.runs, self.env.theta_space.shape)
        far = candidates(self.policy, raw.flat(), self.seeds, draws=DRAWS)
        starts = [torch.cat([own[None], found]) for own, found in zip(raw.flat(), far, strict=True)]
        limit = self.env.time_limit or whole_episode_horizon(self.env.preferences)

        def trial(flat: Tensor, episodes: int) -> tuple[Rollout, int]:
            theta = raw.theta(flat).detach()
            response = self._response_at(theta, best)
            sampler = self.estimator_config.sampler
            batch = self.env.rollout(theta, response, self.noise, rows=episodes, horizon=limit, sampler=sampler)
            return batch, response.steps

        gamma = self.env.preferences.gamma_leader
        found = halved(torch.stack(starts, 1), trial, lambda batch: mean_return(batch, gamma))
        return Estimate(
            torch.zeros(self.runs, dtype=torch.float64),
            leader_return=found.mean,
            env_steps=found.steps,
            episodes=found.episodes,
            follower_solves=found.solves,
            follower_steps=found.follower_steps,
            proposal=raw.named(found.raw),
        )

    def _expects(self) -> bool:
        """Whether an estimate samples the first step of each row and expects the rest in the empirical model.

        What lies behind a cut is solved for, in transitions of other episodes, without the noise of a trajectory. With
        the critic that is made of the same transitions, a cut after the first step costs no knowledge; the steps that
        follow are counted for the batches to come.
        """
        sampling = self.estimator_config
        return _named(sampling.critic, "empirical") and sampling.tail == "continue" and sampling.estimator in EXPECTED

    def judges(
        self, critic: Critic, seen: Empirical | None, batch: Rollout, best: BestResponse, model: Model, noise: Noise
    ) -> Judges:
        """Who judges the batch; the critic, and what was seen of a table, learn from it."""
        gamma = self.env.preferences.gamma_leader
        if not self.estimator_config.cross_fit or (seen is None and not critic_capabilities(critic).learns):
            return fitted_to_all(critic, batch, best, model, noise, gamma=gamma, seen=seen)
        first = self._is_first
        return cross_fitted(critic, batch, best, model, noise, gamma=gamma, seen=seen, first=first)

    def _published_game(
        self, actor_critic: ActorCritic[Any, Any], theta: Tensor, model: Model, best: BestResponse
    ) -> Estimate:
        """One outer iteration of a published leader in a game."""
        at = (theta.detach(), model.detach(), best)
        theta, model, best = actor_critic.behaviour(self.env, *at, self.progress.iterations)
        batch = self.env.rollout(theta, best, self.noise, rows=self.rows, horizon=self.horizon, model=model)
        first, *steps = actor_critic.improve(self.policy, batch, best, self.env.preferences, self.noise)
        return Estimate(
            surrogate=first(),
            steps=steps,
            leader_return=uncut_return(batch, self.env.preferences.gamma_leader),
            env_steps=self.estimator_config.batch_size,
            episodes=batch.starts.sum((1, 2)),
        )

    def sample(
        self,
        theta: Tensor,
        model: Any,
        batch: Rollout,
        best: BestResponse,
        judges: Judges,
        noise: Noise,
        tail: str,
    ) -> Sample:
        """A batch with all that the estimate reads of it."""
        preferences = self.env.preferences
        discounts = discount_weights(batch, preferences.gamma_leader, tail)
        if self.leader_horizon is not None:  # its objective is a finite sum
            discounts = discounts * (batch.step < self.leader_horizon)
        rule = self.guiding.rule
        world = model if self.dynamics is None else self.dynamics.model(model)
        return Sample(theta, world, batch, best, judges, discounts, tail, preferences, noise, rule)

    def weights(self, sample: Sample) -> Weights:
        """The weights of a batch's terms, before they are moved to the terms that the transition uses."""
        return weights_from_trace(
            self.guiding.trace(sample),
            sample.batch,
            sample.values,
            sample.discounts,
            sample.preferences,
            tail=sample.tail,
            score_weight=self.estimator_config.score_weight,
            centred=sample.rule.centred,
        )

    def surrogate(self, sample: Sample) -> tuple[Tensor, Tensor | int]:
        """The surrogate of each run, [R], and how many environment steps were drawn beside the batch."""
        weights = self.transition.moved(self.weights(sample), sample)
        onward = self.transition.further(weights, sample, self.guiding.onward)
        further, steps = self.guiding.further(sample)
        return surrogate(sample.terms, weights) + onward + further, steps

    def _slope(self, runs: int) -> Tensor:
        """dθ_j / draw_j at the present θ, for as many runs as are stacked, [R, dim θ]."""
        if not isinstance(self.policy, (Box, Free)):
            raise ValueError(
                "`policy` must act entry by entry (Box or Free) where gradients are clipped in raw parameters, got "
                f"{type(self.policy).__name__}"
            )
        (slope,) = torch.autograd.grad(self.policy().sum(), self.policy.raw)
        return slope.reshape(self.runs, -1).repeat(runs // self.runs, 1)

    def _samples(self, count: int, episodes: int | None, seed: int | None) -> Tensor:
        if self.actor_critic is not None:
            raise ValueError('`gradient_samples` needs another `preset` than "paper" in games, an actor-critic there')
        rows = max(10, self.rows) if episodes is None else check_count(episodes, "episodes")
        horizon = self._whole_episode()
        theta = self._theta().detach()
        best = self.env.best_response(theta, self.progress.best, learn=False)
        room = self.runs * self.guiding.steps_drawn(rows * horizon, horizon)
        room *= 1 + self.guiding.numbers // FEW
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
                sampler=self.estimator_config.sampler,
                model=fixed,
            )
            critic = self.critic.copies(copies)
            seen = critic if self.seen is self.critic else self.seen and self.seen.copies(copies)
            judges = self.judges(critic, seen, batch, response, fixed, noise)  # type: ignore[arg-type]
            if self.coverage is not None and first == 0:
                self.coverage.left_out(judges, batch, "keep", "in gradient_samples")
            total = self.surrogate(self.sample(stacked, model, batch, response, judges, noise, "keep"))[0].sum()
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
        if self.estimator_config.gradient == "analytic":
            return self.leader_horizon  # ∇Q_F is known, whatever lies behind
        gamma = self.env.preferences.gamma_follower
        return self.leader_horizon + whole_episode_horizon(replace(self.env.preferences, gamma_leader=gamma))

    def _make_critic(self) -> Critic:
        config, facts = self.estimator_config, self.facts
        critic = facts.world.critic(config, facts, self._theta_moves(), type(self).__name__)
        known = critic_capabilities(critic)
        if config.guiding != "fitted" or known.is_quadratic:
            return critic
        gamma, how = self.env.preferences.gamma_follower, known.how or config.network
        judges = [cast(ActionCritic, critic), cast(ActionCritic, critic).copies(1)]
        if config.cross_fit and known.learns and judges[0] is judges[1]:
            raise returns_itself(critic)
        reactions = [NetworkCritic(gamma, how, "both", facts.actions) for _ in range(HALVES)]
        return WithReactions(judges, [] if looks_ahead(config) else reactions)

    def _make_guiding(self) -> Guiding:
        """How the guiding term is made."""
        config, rule = self.estimator_config, ESTIMATORS[self.estimator_config.estimator]
        if config.guiding == "fitted":
            if self.facts.world.capabilities(config.critic).is_quadratic:
                return FittedGuiding(rule, numbers=2 * self.facts.features)
            if looks_ahead(config):
                return LearntGuiding(rule, numbers=self.facts.theta_size)
            return NetworkGuiding(rule, added=self.transition.added, numbers=self.facts.theta_size)
        return AnalyticGuiding(rule) if config.gradient == "analytic" else Guiding(rule, config.control_variate)

    def _make_transition(self) -> Score:
        """How θ in transitions is differentiated."""
        if self.dynamics is not None:
            return LearntPathwise() if self.estimator_config.gradient == "pathwise" else Score()
        if self.estimator_config.gradient != "score":
            return Pathwise(self.estimator_config.gradient)
        if self.estimator_config.score_weight == "clipped":
            return ClippedScore(self._slope, self.config.blocks)
        return Score()

    def _make_dynamics(self) -> LearntDynamics | None:
        """What learns how θ moves the next state; None where that is known."""
        config, facts = self.estimator_config, self.facts
        if config.dynamics == "known":
            return None
        if facts.moves_start:
            logger.warning(
                "%s: θ moves the first states of %s, which is not learnt: what that is worth is left out of the "
                "gradient, which should not be trusted where first states matter. CMAES, RandomSearch and ZerothOrder "
                "leave nothing out",
                type(self).__name__,
                facts.problem,
            )
        gamma = self.env.preferences.gamma_follower
        return LearntDynamics(type(self).__name__, facts.actions, self.env.theta_space, config.perturbation, gamma)

    def _seen(self) -> Empirical | None:
        """What the leader has seen of a table, which its critic may be; None where it is not used."""
        if self.facts.world != TABULAR or not (
            self.estimator_config.cross_fit or self.estimator_config.tail == "continue"
        ):
            return None
        if _named(self.estimator_config.critic, "empirical"):
            return self.critic  # type: ignore[return-value]
        return Empirical(self.env.preferences.gamma_leader, self._theta_moves())

    @with_gradients
    def _theta_moves(self) -> bool:
        """Whether θ moves the transitions of a table."""
        with self._in_its_contexts():
            return self.facts.world == TABULAR and self.env.model(self._theta()).theta_moves_transitions

    @with_gradients
    def _start_moves(self) -> bool:
        """Whether θ moves the first state of a table."""
        with self._in_its_contexts():
            return self.facts.world == TABULAR and self.env.model(self._theta()).initial.requires_grad

    def _critic_state(self) -> dict[str, object]:
        if self.actor_critic is not None:
            return self.actor_critic.state_dict()
        critic = {} if self.critic is self.seen else self.critic.state_dict()
        learnt = {} if self.dynamics is None else {"dynamics": self.dynamics.state_dict()}
        return {"critic": critic, "seen": None if self.seen is None else self.seen.state_dict(), **learnt}

    def _load_critic_state(self, state: dict[str, Any]) -> None:
        if self.actor_critic is not None:
            self.actor_critic.load_state_dict(state, self.policy)
        else:
            if self.critic is not self.seen:
                self.critic.load_state_dict(state["critic"])
            if state["seen"] is not None and self.seen is not None:
                self.seen.load_state_dict(state["seen"])
            if self.dynamics is not None:
                self.dynamics.load_state_dict(state["dynamics"])

    def _batch_shape(self) -> tuple[int, int]:
        """Rows and steps per row of a batch."""
        size = check_count(self.estimator_config.batch_size, "batch_size")
        check_memory(float(self.runs) * size * FEW, "batch_size", size, f"transitions of {self.runs} runs")
        rows = self.estimator_config.rows
        if rows is None:
            rows = self._rows_of(size)
        elif size % check_count(rows, "rows"):
            raise ValueError(f"`batch_size` must be a multiple of `rows` ({rows}), got {size}")
        return rows, size // rows

    def _rows_of(self, size: int) -> int:
        """The rows of a batch where the user gives none: equal ones, as few as the time limit allows.

        Without a limit there are ten: a control variate needs episodes. Where cut episodes go on in the empirical
        model, rows are as long as something counts, so that an empirical model of one row has no end of its own.
        """
        limit = self.env.time_limit
        if self.estimator_config.tail == "continue":
            fewest = 1 if self._expects() or limit is not None else min(2, size)
            rows = _divisor(size, max(fewest, -(-size // min(limit or size, self._long_enough()))))
        else:
            least = min(10, size) if limit is None else -(-size // limit)
            rows = next(rows for rows in range(least, size + 1) if size % rows == 0)
        return rows if limit is None else self._rows_of_whole_episodes(size, rows, limit)

    def _rows_of_whole_episodes(self, size: int, rows: int, limit: int) -> int:
        """Where states are no table's, the shortest rows that hold a whole episode, if the batch holds one."""
        if self.facts.world != TABULAR:
            longest = 2 * limit if self.facts.features else size  # features as a control variate need several rows
            whole = [n for n in range(1, size // limit + 1) if size % n == 0 and size // n <= longest]
            rows = max(whole, default=rows)
        if self.facts.features and size >= limit > 2 * (size // rows):
            raise ValueError(
                f"`batch_size` must make whole episodes, a multiple of {limit}, unless `rows` is given: {size} "
                f"would become {rows} rows of {size // rows} steps"
            )
        return rows


def _named(critic: object, name: str) -> bool:
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
