"""Functions and classes that several test modules use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs import BilevelWrapper, ConfigurableMDP, Preferences, Rollout, TabularEnv, TabularModel
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.noise import Noise
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.games.tables import GameTables, on_the_simplex
from bilevel_envs.parameterizations import Box, Free, Parameterization, Softmax
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.tabular.model import Table
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from leaders.functional.values import Values

# References: slow, plain, independent forms of what the package computes fast ----------------------------------


def unrolled_objective(model: TabularModel, preferences: Preferences, rounds: int = 60) -> Tensor:
    """J_L with gradients through every step of the follower's solver: dense soft policy iteration, no adjoint."""
    return model.initial[0] @ unrolled_values(model, preferences, rounds)[0]


def unrolled_values(
    model: TabularModel, preferences: Preferences, rounds: int = 60, run: int = 0
) -> tuple[Tensor, Tensor]:
    """V_L and V_F of a run, [S] each, with the same gradients."""
    transition, continues, r_leader, r_follower = (
        table[run % len(table)] for table in (model.moves.dense(), model.continues, model.r_leader, model.r_follower)
    )
    kernel = transition * continues[..., None]
    eye = torch.eye(len(kernel), dtype=torch.float64)
    v = torch.zeros(len(kernel), dtype=torch.float64)
    for _ in range(rounds):
        q = r_follower + preferences.gamma_follower * (kernel @ v)
        log_g = torch.log_softmax(q / preferences.beta, -1)
        g = log_g.exp()
        moves = (g[..., None] * kernel).sum(1)
        reward = (g * (r_follower - preferences.beta * log_g)).sum(-1)
        v = torch.linalg.solve(eye - preferences.gamma_follower * moves, reward)
    g = torch.softmax((r_follower + preferences.gamma_follower * (kernel @ v)) / preferences.beta, -1)
    moves = (g[..., None] * kernel).sum(1)
    return torch.linalg.solve(eye - preferences.gamma_leader * moves, (g * r_leader).sum(-1)), v


def central_differences(function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Fourth-order central differences, coordinate by coordinate."""
    gradient = np.empty_like(x)
    for i in range(len(x)):
        e = np.zeros_like(x)
        e[i] = step
        near, far = function(x + e) - function(x - e), function(x + 2 * e) - function(x - 2 * e)
        gradient[i] = (8 * near - far) / (12 * step)
    return gradient


def z_scores(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(mean − truth) / standard error, per coordinate; a coordinate that never varies must be exactly right."""
    error, miss = samples.std(0, ddof=1) / len(samples) ** 0.5, samples.mean(0) - truth
    return np.divide(miss, error, out=np.where(np.abs(miss) > 1e-12, np.inf, 0.0), where=error > 0)


# Environments of this package with a follower ------------------------------------------------------------------


def wrapped_env(name: str, follower: Any = None, **arguments: Any) -> BilevelWrapper:
    """`wrapped_env("FourRooms", beta=1e-3)`: the environment with a follower, by default the one that solves it."""
    return BilevelWrapper(gym.make(f"BiLevel/{name}-v0", **arguments), follower)


def toll_bridge(follower: Any = None, **arguments: Any) -> BilevelWrapper:
    """The toll bridge with a follower."""
    return wrapped_env("TollBridge", follower, **arguments)


def random_mdp(follower: Any = None, **arguments: Any) -> BilevelWrapper:
    """The random MDP with a follower."""
    return wrapped_env("RandomMDP", follower, **arguments)


def building(follower: Any = None, **arguments: Any) -> BilevelWrapper:
    """The building with a follower."""
    return wrapped_env("BuildingThermalControl", follower, **arguments)


def bilevel_lqr(**arguments: Any) -> BilevelWrapper:
    """The game of linear moves with its own follower."""
    return wrapped_env("BilevelLQR", **arguments)


def wrapped(problem: ConfigurableMDP) -> BilevelWrapper:
    """With a soft-optimal follower, without a time limit."""
    return BilevelWrapper(TabularEnv(problem))


# Policies, responses and batches -------------------------------------------------------------------------------


def policy_at(theta: np.ndarray) -> Free:
    """A parameterisation that is θ itself."""
    return Free(np.asarray(theta, float)[None])


def toy_policy(p: float) -> np.ndarray:
    """The leader's policy in the toy game with f(0|A) = p, [3, 2]."""
    return np.array([[0.5, 0.5], [p, 1 - p], [0.5, 0.5]])


def leader_at_fixed_theta(leader_class: Any, env: BilevelWrapper, policy: Free, **settings: Any) -> Any:
    """A leader that estimates in every iteration and never moves: a step is as good as nothing."""
    steps = {"optimizer": "sgd", "learning_rate": 1e-300, "max_grad_norm": float("inf")}
    return leader_class(env, policy=policy, **steps, **settings)


def training_estimates(leader: Any, iterations: int) -> np.ndarray:
    """The hypergradient estimates of the leader's next iterations, [iterations, R, *θ]."""
    found: list[np.ndarray] = []
    leader.learn(iterations, callback=lambda *_: found.append(-leader.policy.raw.grad.numpy().copy()))
    return np.array(found)


def leader_at_half(leader: Any) -> Any:
    """The leader with raw parameters of 0, where every opening of a vent is 1/2."""
    torch.nn.init.zeros_(leader.policy.raw)
    return leader


def response(probs: Any) -> BestResponse:
    """A follower with this policy [R, S, B]; its values are not looked at."""
    probs = torch.as_tensor(probs, dtype=torch.float64)
    table = Table(torch.zeros_like(probs))
    return BestResponse(BoltzmannPolicy(probs.log()), table, table, torch.zeros(1), True)


def rollout(
    state: Any, action: Any = None, terminated: Any = None, next_state: Any = None, r_leader: Any = None
) -> Rollout:
    """A batch from lists [R][N][T]; an episode ends where `terminated` says."""
    state = torch.tensor(state)
    shape = state.shape
    terminated = torch.zeros(shape, dtype=torch.bool) if terminated is None else torch.tensor(terminated).bool()
    if next_state is None:
        next_state = torch.cat([state[..., 1:], state[..., -1:]], -1)
    step = torch.zeros(shape, dtype=torch.long)
    for k in range(1, shape[-1]):
        step[..., k] = torch.where(terminated[..., k - 1], 0, step[..., k - 1] + 1)
    zeros = torch.zeros(shape).double()
    return Rollout(
        state,
        torch.zeros(shape, dtype=torch.long) if action is None else torch.tensor(action),
        torch.as_tensor(next_state),
        zeros if r_leader is None else torch.tensor(r_leader, dtype=torch.float64),
        zeros,
        terminated,
        torch.zeros(shape, dtype=torch.bool),
        step,
        torch.ones(shape, dtype=torch.bool),
    )


def values_like(batch: Rollout, seed: int = 0) -> Values:
    """Random values of every kind at the steps of a batch."""
    draw = np.random.default_rng(seed).normal
    return Values(*(torch.from_numpy(draw(size=batch.state.shape)) for _ in range(5)))


def two_episodes() -> Rollout:
    """0 → 1 → end, with rewards 1 and 2; then 0 → 2 with reward 4, cut."""
    return rollout(
        state=[[[0, 1, 0]]],
        action=[[[0, 1, 1]]],
        terminated=[[[0, 1, 0]]],
        next_state=[[[1, 2, 2]]],
        r_leader=[[[1.0, 2.0, 4.0]]],
    )


# Worlds of users: tables and matrices that somebody might bring, small enough to solve exactly -----------------


class ForeignEnv(gym.Env):
    """Somebody's environment, known by its methods alone, around one of ours."""

    def __init__(self, inner: Any, names: tuple[str, ...] = ("theta_space", "preferences", "configure", "model")):
        self.inner = inner
        self.observation_space, self.action_space = inner.observation_space, inner.action_space
        for name in names:
            setattr(self, name, getattr(inner, name))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.inner.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self.inner.step(action)


@dataclass(frozen=True)
class Pendulums(ConfigurableMDP):
    """Two coupled swings with noise as large as the states: here the score form is precise enough to be tested."""

    preferences = Preferences(0.8, 0.7, 1.0)
    theta_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
    default_theta = np.array([0.3, -0.2])
    state_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def model(self, theta: Tensor) -> LinearQuadraticModel:
        one, two = torch.eye(1).double()[None], torch.eye(2).double()[None]
        a = torch.diag_embed(theta) + 0.5 * two.flip(-1)
        b = torch.tensor([[[1.0], [0.4]]], dtype=torch.float64)
        # the leader minds the power far more than the states: how the follower reacts is most of the gradient
        return LinearQuadraticModel(a, b, two, two, two, 0.5 * one, 0.02 * two, 2 * one, torch.zeros(1).double())

    def parameterization(self, runs: int, noise: Noise) -> Free:
        return Free(np.tile(self.default_theta, (runs, 1)))


MOVES = 4  # of toy-text grids: each action's neighbours in this order are the moves to its sides


class InABox(ConfigurableMDP):
    """θ in [0, 1]^dim, started near a point."""

    start: tuple[float, ...]

    @property
    def theta_space(self) -> gym.spaces.Box:
        return gym.spaces.Box(0.0, 1.0, (len(self.start),), np.float64)

    @property
    def default_theta(self) -> np.ndarray:
        return np.array(self.start)

    def parameterization(self, runs: int, noise: Noise) -> Box:
        logit = np.log(self.default_theta) - np.log1p(-self.default_theta)
        return Box(logit + 0.1 * noise.normal(len(self.start)), 0.0, 1.0)


def toy_text_grid(name: str, **kwargs: object) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A deterministic toy-text grid: where each action leads [B, S], its reward, whether it ends there, and ρ0."""
    world = gym.make(name, **kwargs).unwrapped
    table = [[world.P[s][b][0] for s in range(len(world.P))] for b in range(MOVES)]
    to, reward, over = (np.array([[entry[i] for entry in row] for row in table]) for i in (1, 2, 3))
    return to, reward, over, world.initial_state_distrib


@dataclass(frozen=True)
class Slippery(InABox):
    """A toy-text grid: θ[0] is the probability of a step to a side, half each; θ[1:] are penalties of some cells.

    The leader is paid for each step taken in some cells. An episode ends where the grid's does.
    """

    name: str
    paid: tuple[int, ...]
    step: float
    fall: float
    goal: float
    beta: float
    slips: bool
    fined: tuple[int, ...] = ()
    gamma: float = 0.95
    start: tuple[float, ...] = (0.3,)

    @property
    def preferences(self) -> Preferences:
        return Preferences(self.gamma, self.gamma, self.beta)

    @cached_property
    def _grid(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kwargs = {"is_slippery": False} if self.name.startswith("FrozenLake") else {}
        kwargs |= {"map_name": "8x8"} if self.name == "FrozenLake8x8-v1" else {}
        to, reward, over, initial = toy_text_grid(self.name, **kwargs)
        states = to.shape[1]
        move = torch.nn.functional.one_hot(torch.from_numpy(to), states).double().transpose(0, 1)  # [S, B, S]
        # What ends an episode in the grid ends it here after one more step, which brings nothing.
        ends = torch.zeros(states, dtype=torch.bool)
        ends[to[over]] = True
        pays = torch.full((MOVES, states), self.step, dtype=torch.float64)
        pays[torch.from_numpy(reward < -1)] -= self.fall
        pays[torch.from_numpy(reward > 0)] += self.goal
        return move, ends, pays.T, torch.from_numpy(initial)

    def model(self, theta: Tensor) -> TabularModel:
        move, ends, pays, initial = self._grid
        states = len(ends)
        slip = (theta[:, 0] if self.slips else torch.zeros_like(theta[:, 0]))[:, None, None]
        sides = [(b - 1) % MOVES for b in range(MOVES)], [(b + 1) % MOVES for b in range(MOVES)]
        either = (move[:, sides[0]] + move[:, sides[1]]) / 2
        pays_either = (pays[:, sides[0]] + pays[:, sides[1]]) / 2
        transition = (1 - slip[..., None]) * move + slip[..., None] * either
        r_follower = (1 - slip) * pays + slip * pays_either
        fines = torch.zeros(len(theta), states, dtype=torch.float64)
        for index, cell in enumerate(self.fined):
            fines[:, cell] = fines[:, cell] + theta[:, index + self.slips]
        r_follower = torch.where(ends[:, None], 0.0, r_follower - fines[..., None])
        r_leader = torch.zeros(1, states, MOVES, dtype=torch.float64)
        r_leader[:, list(self.paid)] = 1.0
        continues = (~ends).double()[None, :, None].expand(1, states, MOVES).contiguous()
        return TabularModel(transition, initial[None], r_leader, r_follower, continues)


CLIFF = Slippery("CliffWalking-v1", tuple(range(12)), step=-1.0, fall=9.0, goal=0.0, beta=0.5, slips=True, start=(0.6,))
CLIFF_PENALTIES = Slippery(
    "CliffWalking-v1",
    paid=tuple(range(12)),
    step=-1.0,
    fall=9.0,
    goal=0.0,
    beta=0.5,
    slips=False,
    fined=tuple(range(12, 36)),
    start=(0.3,) * 24,
)
LAKE_BOTH = Slippery(
    "FrozenLake8x8-v1",
    paid=(5, 6, 7, 13, 14, 15, 23, 31),
    step=-0.05,
    fall=0.0,
    goal=2.0,
    beta=0.1,
    slips=True,
    fined=(16, 24, 32),
    start=(0.3, 0.2, 0.2, 0.2),
)


@dataclass(frozen=True)
class Stock(InABox):
    """A shop orders 0 to 3 units; the supplier sets the price, how fast it delivers, and a fee for a full store.

    States: stock 0 … 20 and market 0 … 9, 210 in all, without end. θ = (price, speed, fee): an order arrives whole with
    probability 0.2 + 0.7 · speed, else it is lost. Demand is binomial with a mean that grows with the market, which
    moves up or down by one or stays. The supplier earns price · order and pays speed² for its vans.
    """

    start: tuple[float, ...] = (0.1, 0.2, 0.8)
    preferences: ClassVar[Preferences] = Preferences(0.95, 0.9, 0.3)
    room: int = 21
    markets: int = 10
    most: int = 3

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """p(s' | s, b units arrived) [S, B, S], sales [S, B] and stock [S]."""
        room, markets, orders = self.room, self.markets, self.most + 1
        moved = np.zeros((room, markets, orders, room, markets))
        sales = np.zeros((room, markets, orders))
        demand = np.arange(5)
        for market in range(markets):
            mean = 0.1 + 0.5 * market / (markets - 1)
            chance = np.array([1, 4, 6, 4, 1]) * mean**demand * (1 - mean) ** (4 - demand)
            for stock in range(room):
                for arrived in range(orders):
                    there = min(stock + arrived, room - 1)
                    for wanted, p in zip(demand, chance, strict=True):
                        sold = min(there, wanted)
                        sales[stock, market, arrived] += p * sold
                        for shift, q in ((-1, 0.3), (0, 0.4), (1, 0.3)):
                            to = min(max(market + shift, 0), markets - 1)
                            moved[stock, market, arrived, there - sold, to] += p * q
        states = room * markets
        stock_of = np.repeat(np.arange(room), markets).astype(float)
        tables = moved.reshape(states, orders, states), sales.reshape(states, orders), stock_of
        return tuple(torch.from_numpy(table) for table in tables)  # type: ignore[return-value]

    def model(self, theta: Tensor) -> TabularModel:
        moved, sales, stock = self._parts
        price, speed, fee = (part[:, None, None] for part in theta.unbind(-1))
        arrives = 0.2 + 0.7 * speed
        transition = arrives[..., None] * moved + (1 - arrives[..., None]) * moved[:, :1]
        order = torch.arange(self.most + 1, dtype=torch.float64)
        income = arrives * sales + (1 - arrives) * sales[:, :1]
        r_follower = 1.5 * income - price * order - fee * 0.1 * stock[:, None]
        r_leader = price * order - speed**2 + torch.zeros_like(r_follower)
        initial = torch.zeros(1, len(stock), dtype=torch.float64)
        initial[0, self.markets // 2] = 1.0
        return TabularModel(transition, initial, r_leader, r_follower)


@dataclass(frozen=True)
class Queue(InABox):
    """Up to 30 customers wait; the server works slow, fast or rests; the leader sets a wage for speed and a gate.

    θ = (wage for working fast, share of arrivals turned away). The leader earns for each customer served, and dislikes
    long queues; the server is paid for work and hates effort.
    """

    start: tuple[float, ...] = (0.2, 0.5)
    preferences: ClassVar[Preferences] = Preferences(0.95, 0.95, 0.2)
    longest: int = 30

    def model(self, theta: Tensor) -> TabularModel:
        size = self.longest + 1
        wage, gate = (part[:, None, None] for part in theta.unbind(-1))
        arrive = (0.6 * (1 - 0.9 * gate)).expand(-1, size, 3)
        serve = torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64).expand(len(theta), size, 3).clone()
        serve[:, 0] = 0.0
        up, down = torch.eye(size, dtype=torch.float64).roll(1, 1), torch.eye(size, dtype=torch.float64).roll(-1, 1)
        up[-1], down[0] = up[-2].roll(1), down[1]
        up[-1] = torch.eye(size, dtype=torch.float64)[-1]
        stay = torch.eye(size, dtype=torch.float64)
        grows, shrinks = arrive * (1 - serve), serve * (1 - arrive)
        transition = (
            grows[..., None] * up[:, None]
            + shrinks[..., None] * down[:, None]
            + (1 - grows - shrinks)[..., None] * stay[:, None]
        )
        effort = torch.tensor([0.0, 0.1, 0.6], dtype=torch.float64)
        works = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        length = torch.arange(size, dtype=torch.float64)[:, None] / size
        r_follower = wage * works - effort - 0.3 * length
        r_leader = 2 * serve - 2 * length - wage * works
        initial = torch.zeros(1, size, dtype=torch.float64)
        initial[0, size // 2] = 1.0
        return TabularModel(transition, initial, r_leader, r_follower)


@dataclass(frozen=True)
class Pursuit(ConfigurableMDP):
    """A guard and a thief on a ring of 135 places and doors; the thief sees the guard's move: 405 pairs (s, a).

    The state is how far the guard is from the thief. The guard runs, walks or waits; the thief flees left, flees right,
    or steals, which pays the more the farther the guard is. θ is the guard's policy where places fall into nine zones.
    """

    places: int = 135
    zones: int = 9
    preferences: ClassVar[Preferences] = Preferences(0.9, 0.9, 0.2)

    @property
    def theta_space(self) -> gym.spaces.Box:
        return gym.spaces.Box(0.0, 1.0, (self.zones, 3), np.float64)

    @property
    def default_theta(self) -> np.ndarray:
        return np.full((self.zones, 3), 1 / 3)

    @cached_property
    def tables(self) -> GameTables:
        places = self.places
        transition = torch.zeros(places, 3, 3, places, dtype=torch.float64)
        r_leader, r_follower = torch.zeros(2, places, 3, 3, dtype=torch.float64)
        for s in range(places):
            near = 1 - 2 * min(s, places - s) / places
            for a, stride in enumerate((-4, -1, 0)):
                for b, flight in enumerate((-2, 3, 0)):
                    for slip, p in ((-1, 0.2), (0, 0.6), (1, 0.2)):
                        transition[s, a, b, (s + stride + flight + slip) % places] += p
                    steals = b == 2
                    r_follower[s, a, b] = steals * (1.0 - 1.6 * near * (a == 0)) - 0.1 * (b == 1)
                    r_leader[s, a, b] = -1.0 * steals - 0.25 * (a == 0) - 0.1 * (a == 1)
        initial = torch.zeros(places, dtype=torch.float64)
        initial[:: places // self.zones] = 1 / self.zones
        return GameTables(transition, initial, r_leader, r_follower)

    def model(self, theta: Tensor) -> TabularModel:
        zone = torch.arange(self.places) * self.zones // self.places
        return self.tables.seen(on_the_simplex(theta)[:, zone])

    def parameterization(self, runs: int, noise: Noise) -> Softmax:
        return Softmax(0.2 * noise.normal(self.zones, 3))


class BoundedRandomMDP(RandomMDP):
    """θ in [−1, 1]^dim, so that what can be won is bounded."""

    def parameterization(self, runs: int, noise: Noise) -> Parameterization:  # type: ignore[override]
        return Box(0.1 * noise.normal(self.dim), -1.0, 1.0)


STRANGERS: dict[str, Callable[[], BilevelWrapper]] = {
    "cliff, slip": lambda: wrapped(CLIFF),
    "cliff, penalties": lambda: wrapped(CLIFF_PENALTIES),
    "lake, both": lambda: wrapped(LAKE_BOTH),
    "stock": lambda: wrapped(Stock()),
    "queue": lambda: wrapped(Queue()),
    "random, transitions": lambda: wrapped(BoundedRandomMDP(seed=3, states=200, reward_share=0.0, start_share=0.0)),
    "random, everywhere": lambda: wrapped(BoundedRandomMDP(seed=4, states=200)),
    "pursuit": lambda: wrapped(Pursuit()),
}
