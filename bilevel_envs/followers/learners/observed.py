"""A follower that is observed only, by its transitions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.checks import check_choice, check_count, check_number, check_seed
from bilevel_envs.core.follower import (
    BestResponse,
    Capabilities,
    Follower,
    FollowerTask,
    LearningFollower,
    Policy,
    ValueFunction,
    capabilities_of,
    check_worth,
    is_follower,
    response_of,
    saves,
    task_of_another,
    tiled_part,
)
from bilevel_envs.core.mdp import Model
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers.planners.riccati import Riccati
from bilevel_envs.followers.planners.soft_value_iteration import SoftValueIteration
from bilevel_envs.networks.policies import NetworkCategorical, NetworkGaussian
from bilevel_envs.networks.temporal_differences import Fit, TemporalDifference, through, xavier
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.linear_quadratic.polynomials import lstd, products, relative, symmetric
from bilevel_envs.worlds.responses import response_from, response_state
from bilevel_envs.worlds.tabular.model import Table, TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.world import world_of

METHODS = ("counts", "linear", "network")
DEFAULT_HORIZON = 100
PLANNERS = {"tabular": SoftValueIteration, "linear_quadratic": Riccati}  # the follower observed by default
Estimate = tuple[Policy, ValueFunction, ValueFunction]  # g, Q_F, V_F
WIDE = 1e6  # within which a cloned policy's actions stay


class ObservedFollower:
    r"""Shows of the follower inside nothing but states, actions and rewards, and estimates the rest from them.

    From transitions (s, b, r_F, s') observed at θ it estimates g; and, as at a soft optimum β log g = Q_F − V_F,

    .. math::

        V_F(s) = E\big[r_F - \beta \log g(b|s) + \gamma_F V_F(s')\big], \qquad Q_F = V_F + \beta \log g,

    by evaluating the policy that is seen, not by planning: a follower that is not optimal is taken as it is. What the
    leader needs of Assumption 1 of arXiv:2603.14867, a follower that tells its g and its values, is no longer needed;
    β must still be known, or guessed.

    ``"counts"`` (tables): g from counts, V_F by solving the equation with the frequencies seen. ``"linear"``
    (vectors): g a Gaussian around a linear mean, by least squares, V_F a quadratic by least-squares temporal
    differences; exact in linear-quadratic worlds but for sampling. ``"network"``: g by behaviour cloning, V_F by
    temporal differences, both with small networks that are kept from response to response.

    Leaders learn Q_L and V_L without g by ``critic="state_values"``, their default with this follower.

    Gives estimates of g, log g, Q_F and V_F; trajectories are those of the follower inside. Costs what that one costs
    and `observations` steps, counted as ``follower_steps``. Residual and optimality gap: those of the follower inside.

    Args:
      follower: the one that is observed; it need not give values or a density. None for the exact planner.
      observations: transitions observed per response and run.
      method: "counts", "linear" or "network"; None for counts of tables and "linear" for vectors with vector actions.
      forget: what is forgotten of earlier counts at each response, in (0, 1]; 1 forgets all ("counts" only).
      smoothing: added to each action's count ("counts" only).
      steps: gradient steps of a response ("network" only).
      beta: the β that the leader supposes; None for the problem's. The follower inside has its own.
      seed: run i draws from the stream of seed + i; the leader's own seed has no influence.
    """

    def __init__(
        self,
        follower: Follower | LearningFollower | None = None,
        observations: int = 1_000,
        *,
        method: str | None = None,
        forget: float = 1.0,
        smoothing: float = 0.1,
        steps: int = 500,
        beta: float | None = None,
        seed: int = 0,
    ) -> None:
        if not (follower is None or is_follower(follower)):
            raise TypeError(f"`follower` must be a follower or None, got {follower!r}")
        self.follower = follower
        self.observations = check_count(observations, "observations")
        check_choice(method, (None, *METHODS), "method")
        self.method, self.steps = method, check_count(steps, "steps")
        self.forget = check_number(forget, "forget", above=0, at_most=1)
        self.smoothing = check_number(smoothing, "smoothing", above=0)
        if beta is not None:
            check_number(beta, "beta", above=0, remedy="β is the follower's entropy coefficient")
        self.beta, self.seed = beta, check_seed(seed)
        self.responses = 0
        self._hidden: BestResponse | None = None
        self._counts: dict[str, Tensor] = {}
        self._cloned: list[Tensor] = []
        self._values: TemporalDifference | None = None
        self._saved_values: dict[str, object] | None = None

    def __repr__(self) -> str:
        names = ("observations", "method", "forget", "smoothing", "steps", "beta", "seed")
        settings = {name: getattr(self, name) for name in names}
        return (
            f"ObservedFollower({self.follower!r}, {', '.join(f'{name}={value!r}' for name, value in settings.items())})"
        )

    @property
    def capabilities(self) -> Capabilities:
        """Estimates of everything, in the worlds of the follower inside."""
        kinds = tuple(PLANNERS) if self.follower is None else capabilities_of(self.follower).kinds
        return Capabilities(kinds, learns=True, saves=True, checks=True)

    def check(self, task: FollowerTask) -> None:
        """Lets the follower inside refuse a world."""
        follower = self.follower
        if follower is not None:
            check_worth(follower, task_of_another(task, follower))

    def respond(
        self,
        task: FollowerTask,
        theta: np.ndarray,
        model: Model,
        init: BestResponse | None = None,
        learn: bool = True,
    ) -> BestResponse:
        """Lets the follower inside respond, observes it, and returns the estimates.

        Args:
          task: its world at θ.
          theta: ``[R, *θ.shape]``.
          model: its model at θ; its rewards and moves are not read.
          init: the last response.
          learn: False to observe without remembering.
        """
        if learn:
            return self._watched(task, learn)
        known = dict(vars(self))
        self._values = copy.deepcopy(self._values)  # which fitting changes; all else is replaced
        try:
            return self._watched(task, learn)
        finally:
            vars(self).update(known)

    def _watched(self, task: FollowerTask, learn: bool) -> BestResponse:
        """A response of the follower inside, as it looks from outside."""
        theta, inside = task.theta, self.follower
        if inside is None:
            inside = PLANNERS[task.model.kind]()
        hidden = response_of(inside, task_of_another(task, inside), self._hidden, learn)
        self._hidden = hidden
        noise = Noise([[self.seed + run, self.responses] for run in range(len(theta))])
        horizon = min(task.time_limit or DEFAULT_HORIZON, self.observations)
        rows = -(-self.observations // horizon)
        seen = task.rollout(theta, hidden, noise, rows=rows, horizon=horizon, model=task.model)
        self.responses += 1
        policy, q, v = self._estimated(task, seen, noise)
        steps = hidden.steps + rows * horizon
        return BestResponse(
            policy,
            q,
            v,
            hidden.residual,
            False,
            actual_policy=hidden.behavior_policy,
            steps=steps,
            optimality_gap=hidden.optimality_gap,
            improvement=hidden.improvement,
            drift=hidden.drift,
        )

    def state_dict(self) -> dict[str, object]:
        """Counts, networks, and what the follower inside has learnt."""
        return {
            "responses": self.responses,
            "counts": self._counts,
            "cloned": self._cloned,
            "values": self._saved_values if self._values is None else self._values.state_dict(),
            "hidden": response_state(self._hidden),
            "follower": self.follower.state_dict() if saves(self.follower) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.responses, self._counts = state["responses"], dict(state["counts"])
        self._cloned = list(state["cloned"])
        self._saved_values, self._values = state["values"], None
        self._hidden = response_from(state["hidden"])
        if saves(self.follower) and state["follower"] is not None:
            self.follower.load_state_dict(state["follower"])

    def _estimated(self, task: FollowerTask, seen: Rollout, noise: Noise) -> Estimate:
        """g, Q_F and V_F from a batch."""
        table, beta, gamma = world_of(task.model).countable, task.preferences.beta, task.preferences.gamma_follower
        discrete = seen.action.ndim == 3
        fitting = "counts" if table else "network" if discrete else "linear"
        method = self.method or fitting
        if (method == "counts") != table and method != "network":
            raise ValueError(f'`method` must be "{fitting}" or "network" here, got {method!r}')
        if method == "linear" and discrete:
            raise ValueError('`method` must be "network" for discrete actions at states that are vectors, got "linear"')
        if method == "counts":
            model = cast(TabularModel, task.model)
            return self._from_counts(model.states, model.actions, seen, beta, gamma)
        if method == "linear":
            return _linear(seen, beta, gamma)
        return self._from_networks(task, seen, beta, gamma, noise)

    def _from_counts(
        self, states: int, actions: int, seen: Rollout, beta: float, gamma: float
    ) -> tuple[BoltzmannPolicy, Table, Table]:
        self._remember(_counts(seen, states, actions))
        pairs, moves, rewards = (self._counts[name] for name in ("pairs", "moves", "rewards"))
        visits = pairs.sum(-1)  # [R, S]
        met = visits > 0
        g = (pairs + self.smoothing) / (visits + actions * self.smoothing)[..., None]
        paid = torch.where(met, (rewards - beta * (pairs * g.log()).sum(-1)) / visits.clamp(min=1e-300), 0.0)
        # Successors that were never left themselves say nothing: their weight goes to the others.
        useful = moves * met[:, None]
        goes_on = moves.sum(-1, keepdim=True) / visits.clamp(min=1e-300)[..., None]
        following = goes_on * useful / useful.sum(-1, keepdim=True).clamp(min=1e-300)
        v = torch.linalg.solve(torch.eye(states, dtype=torch.float64) - gamma * following, paid[..., None])[..., 0]
        mean = (v * visits).sum(-1, keepdim=True) / visits.sum(-1, keepdim=True)
        v = torch.where(met, v, mean)
        return BoltzmannPolicy(g.log()), Table(v[..., None] + beta * g.log()), Table(v)

    def _remember(self, new: dict[str, Tensor]) -> None:
        """Adds to what is left of earlier counts."""
        kept = {n: (1 - self.forget) * old for n, old in self._counts.items() if old.shape == new[n].shape}
        self._counts = {name: kept.get(name, 0.0) + part for name, part in new.items()}

    def _from_networks(self, task: FollowerTask, seen: Rollout, beta: float, gamma: float, noise: Noise) -> Estimate:
        inputs = world_of(task.model).inputs(task.observations, task.model)
        x, used = inputs(seen.state).flatten(1, 2), seen.valid.flatten(1)
        count = _action_count(task, discrete=seen.action.ndim == 3)
        size = 2 * seen.action.shape[-1] if count is None else count
        layers = self._clone(x, seen.action.flatten(1, 2), used, size, count is not None, noise)
        policy = _cloned_policy(layers, seen.action, count is not None)
        if count is None:
            log_g = policy.log_prob(x, seen.action.flatten(1, 2))
        else:
            log_g = policy_log_probs(layers, x).gather(-1, seen.action.flatten(1)[..., None])[..., 0]
        if self._values is None:  # its discount is known now
            self._values = TemporalDifference(gamma, Fit(steps=self.steps))
            if self._saved_values is not None:
                self._values.load_state_dict(self._saved_values)
        reward = seen.r_follower.flatten(1) - beta * log_g
        goes_on = (seen.valid & ~seen.terminated).flatten(1)[..., None]
        later = inputs(seen.next_state).flatten(1, 2)
        v = self._values
        v.fit(x, reward[..., None], used, lambda f: f(later) * goes_on, noise)
        if world_of(task.model).countable:
            states = torch.arange(cast(TabularModel, task.model).states)
            every = inputs(states.expand(noise.runs, -1))
            table, values = policy_log_probs(layers, every), v(every)[..., 0]
            return BoltzmannPolicy(table), Table(values[..., None] + beta * table), Table(values)
        value = OneByOne(v)
        return policy, FromDensity(value, policy, beta), value

    def _clone(self, x: Tensor, action: Tensor, used: Tensor, size: int, discrete: bool, noise: Noise) -> list[Tensor]:
        """Maximises the likelihood of what was done; layers [R, in, out], [R, 1, out], ..."""
        if not self._cloned:
            self._cloned = xavier((x.shape[-1], 64, 64, size), noise)
        layers = [layer.detach().clone().requires_grad_() for layer in self._cloned]
        adam, run = torch.optim.Adam(layers, lr=3e-3), torch.arange(len(x))[:, None]
        share = used.double() / used.sum(1, keepdim=True)
        many = min(512, x.shape[1])
        for _ in range(self.steps):
            draw = torch.searchsorted(share.cumsum(1), torch.from_numpy(noise.uniform(many))).clamp(max=x.shape[1] - 1)
            out, done = through(layers, x[run, draw]), action[run, draw]
            if discrete:
                fit = torch.log_softmax(out, -1).gather(-1, done[..., None])[..., 0]
            else:
                mean, log_deviation = out.chunk(2, -1)
                fit = -(((done - mean) / log_deviation.exp()) ** 2 / 2 + log_deviation).sum(-1)
            adam.zero_grad()
            (-fit.mean(1).sum()).backward()
            adam.step()
        self._cloned = [layer.detach() for layer in layers]
        return self._cloned


@dataclass(frozen=True)
class FromDensity:
    """Q_F = V_F + β log g.

    Attributes:
      v: V_F.
      policy: g.
      beta: β.
    """

    v: Callable[[Tensor], Tensor]
    policy: Policy
    beta: float

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """At states and actions of R runs, [R, ...]."""
        return self.v(state) + self.beta * self.policy.log_prob(state, action)

    def tiled(self, copies: int) -> Self:
        """For so many times as many runs."""
        return replace(self, v=tiled_part(self.v, copies), policy=tiled_part(self.policy, copies))


@dataclass(frozen=True)
class OneByOne:
    """The single output of R stacked networks as a function of states.

    Attributes:
      network: the networks.
      copies: how often each run occurs.
    """

    network: TemporalDifference
    copies: int = 1

    def __call__(self, state: Tensor) -> Tensor:
        """At states [R, ..., n], [R, ...]."""
        network = self.network if self.copies == 1 else self.network.copies(self.copies)
        return network(state)[..., 0]

    def gradient(self, state: Tensor) -> Tensor:
        """∇ at states [R, ..., n], shaped like them."""
        network = self.network if self.copies == 1 else self.network.copies(self.copies)
        leaf = state.detach().reshape(len(state), -1, state.shape[-1]).clone().requires_grad_()
        layers = [layer.detach() for layer in network.layers]
        value = through(layers, leaf / network.input_scale) * network.output_scale
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        return slope.view(state.shape)

    def tiled(self, copies: int) -> Self:
        """For so many times as many runs."""
        return replace(self, copies=copies * self.copies)


def policy_log_probs(layers: list[Tensor], x: Tensor) -> Tensor:
    """log g of a cloned policy at inputs [R, K, d], [R, K, B]."""
    return torch.log_softmax(through(layers, x), -1)


def _counts(seen: Rollout, states: int, actions: int) -> dict[str, Tensor]:
    """Visits of (s, b), moves from s to s' that go on, and rewards paid in s, of each run."""
    names: dict[str, list[Tensor]] = {"pairs": [], "moves": [], "rewards": []}
    for run in range(len(seen.state)):
        valid = seen.valid[run]
        s, b, r = (part[run][valid] for part in (seen.state, seen.action, seen.r_follower))
        on = valid & ~seen.terminated[run]
        moves = seen.state[run][on] * states + seen.next_state[run][on]
        names["pairs"].append(torch.bincount(s * actions + b, minlength=states * actions).view(states, actions))
        names["moves"].append(torch.bincount(moves, minlength=states**2).view(states, states))
        names["rewards"].append(torch.bincount(s, weights=r, minlength=states))
    return {name: torch.stack(parts).double() for name, parts in names.items()}


def _linear(seen: Rollout, beta: float, gamma: float) -> Estimate:
    """A Gaussian around a linear mean, and a quadratic V_F."""
    s, b, following = (part.flatten(1, 2) for part in (seen.state, seen.action, seen.next_state))
    used = seen.valid.flatten(1)[..., None].double()
    n = s.shape[-1]
    needed, fewest = max(1 + n * (n + 1) // 2, n + b.shape[-1] + 1), int(used.sum(1).min())
    if fewest < needed:
        raise ValueError(f"`observations` must be at least {needed} to fit g and V_F here, got {fewest}")
    gain = -torch.linalg.lstsq(s * used, b * used).solution.mT
    share = relative(s, used[..., 0])[..., None]  # what a straight line misses far out is no randomness
    off = (b + s @ gain.mT) * share
    policy = GaussianPolicy(gain, off.mT @ off / (share**2).sum(1, keepdim=True))
    reward = seen.r_follower.flatten(1) - beta * policy.log_prob(s, b)
    one, goes_on = torch.ones_like(used), (seen.valid & ~seen.terminated).flatten(1)[..., None]
    phi, later = (torch.cat([one, products(x)], -1) for x in (s, following))
    w = lstd(phi * used, later * goes_on, reward[..., None] * used, gamma)[..., 0]
    v = Quadratic(symmetric(w[:, 1:], s.shape[-1]), w[:, 0])
    return policy, FromDensity(v, policy, beta), v


def _action_count(task: FollowerTask, discrete: bool) -> int | None:
    """How many actions there are to choose from; None where they are vectors."""
    if not discrete:
        return None
    if world_of(task.model).countable:
        return cast(TabularModel, task.model).actions
    return int(cast(gym.spaces.Discrete, task.action_space).n)


def _cloned_policy(layers: list[Tensor], action: Tensor, discrete: bool) -> NetworkCategorical | NetworkGaussian:
    def network(run: int) -> Callable[[Tensor], Tensor]:
        own = [layer[run : run + 1] for layer in layers]
        return lambda x: through(own, x.double()[None])[0]

    def chances(run: int) -> Callable[[Tensor], Tensor]:
        own = network(run)
        return lambda x: torch.log_softmax(own(x), -1)

    runs = range(len(action))
    if discrete:
        return NetworkCategorical(tuple(chances(run) for run in runs))
    reach = torch.full((action.shape[-1],), WIDE, dtype=torch.float64)

    def scaled(run: int) -> Callable[[Tensor], Tensor]:
        own = network(run)

        def parameters(x: Tensor) -> Tensor:
            mean, log_deviation = own(x).chunk(2, -1)
            return torch.cat([mean / reach, log_deviation - reach.log()], -1)

        return parameters

    return NetworkGaussian(tuple(scaled(run) for run in runs), -reach, reach, squashed=False)
