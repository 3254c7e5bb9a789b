"""Worlds that are not ours: tables that a user might bring, small enough to solve exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs import BilevelWrapper, ConfigurableMDP, Preferences, TabularEnv, TabularModel
from bilevel_envs.core.noise import Noise
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.games.tables import GameTables, on_the_simplex
from bilevel_envs.parameterizations import Box, Free, Parameterization, Softmax

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


def grid(name: str, **kwargs: object) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
        to, reward, over, initial = grid(self.name, **kwargs)
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


def wrapped(problem: ConfigurableMDP) -> BilevelWrapper:
    """With a soft-optimal follower, without a time limit."""
    return BilevelWrapper(TabularEnv(problem))


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


def policy_at(theta: np.ndarray) -> Free:
    """A parameterisation that is θ itself."""
    return Free(np.asarray(theta, float)[None])
