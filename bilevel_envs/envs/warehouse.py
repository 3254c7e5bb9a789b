"""A warehouse whose leader limits the speed of robots, place by place, to keep them away from people."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_shape, keep_numbers
from bilevel_envs.core.mdp import REPEATABLE, BestKnown, ConfigurableMDP, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Box
from bilevel_envs.envs.warehouse_floors import (
    DROP,
    MOVES,
    PICK,
    SIZES,
    ZONE,
    Cells,
    Floor,
    generated,
    letters_of,
    lines_of,
    marked,
)
from bilevel_envs.rendering.floor_plan import floor_image
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.transitions import Transitions

SLOWEST, FASTEST = 0.2, 1.0  # probabilities of leaving a cell
LIMIT, TOLL = 6.0, 0.5  # largest |x| and |toll|
DEFAULT_SIZE, DEFAULT_COSTS = (5, 7), (0.2, 0.02)  # rows and columns; of the zone and of limits
BEST_KNOWN = 0.749103526
# By the rows of the plan: the upper way is fast, the middle one slow from its two ends on, the lower one as it was.
BEST_THETA = (
    *(6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0),
    *(6.0, -0.953807, 6.0),
    *(6.0, -6.0, -0.639371, -0.790493, -6.0, -6.0, 6.0),
    *(-0.188684, -0.051234, -0.184165),
    *(-0.085297, -0.083025, -0.079827, -0.058005, -0.112826, -0.104345, -0.105051),
)


@dataclass(frozen=True)
class Warehouse(ConfigurableMDP):
    r"""A robot carries items from pick to drop stations; the leader's speed limits are to lead it around the people.

    Description:
        ::

            . . . . . . .
            . # # Z # # .      P pick, D drop, # shelves,
            P . Z Z Z . D      Z the people's zone, . aisles
            . # # Z # # .
            . . . . . . .

        Entering P the robot takes an item, entering D it drops the one it carries, again and again. The shortest way,
        six moves along the middle aisle, leads through the zone; the one along an outer aisle has ten.

        A slow middle aisle keeps robots out of the zone: they go around. But while they still go through it, a faster
        zone is one that they leave sooner, and so the hypergradient at θ = 0 begins by speeding it up. With c the cell
        of s, and c + b the neighbour in direction b, where it is free,

        .. math::

            p(c + b \mid s, b; \theta) = 0.2 + 0.8\, \sigma(x_c), \\
            r_L(s, b; \theta) = r_\text{drop}(s, b) - 0.2\, 1[c \in Z] + (1 - \gamma_L)\, \Phi_L(\theta) .

    Action Space:
        ``Discrete(4)``: 0 up, 1 right, 2 down, 3 left. The robot leaves cell c with probability
        0.2 + 0.8 sigmoid(x_c) and stays otherwise. Shelves and walls stop.

    Observation Space:
        ``Discrete(54)``: the rank of the cell among those without shelves, row by row, plus their number, 27, if the
        robot carries an item. With ``observation="vector"`` a ``Box`` of (row, column, carrying).

    Starting State:
        At P, carrying; with several picks each is as likely.

    Configuration:
        θ = x ∈ [−6, 6]^27, one number per cell in the order of the observations, 0 by default: all robots leave with
        probability 0.6. With ``tolls=True`` four more per cell follow, θ[27 + 4 c + b] ∈ [−0.5, 0.5]: the toll for
        choosing action b in cell c, in units of the follower's reward; negative ones reward a direction.
        Parameterisation: θ = −6 + 12 · sigmoid(raw), tolls −0.5 + sigmoid(raw), raw started at N(0, 0.01²).

    Reward:
        The follower's: 1 for each item dropped, minus tolls. As tables hold expected rewards, a step that would enter D
        pays the probability that it does.

    Leader Reward:
        That of the drops, −0.2 for each step begun in the zone, and the rent (1 − γ_L) Φ_L of the speed limits,
        Φ_L = −0.02 Σ_c (sigmoid(x_c) − ½)² − 0.1 Σ toll² (``info["leader_reward"]``). Nothing ends, so that the
        discounted sum of the rent is Φ_L: J_L is what a robot brings plus Φ_L once. On a floor of several picks, whose
        robots J_L averages, Φ_L is divided by their number.

    Episode End:
        Never by itself; truncated after 200 steps, when discounting has left 4e-5.

    Information:
        ``leader_reward``, and ``step``, the 0-based index of the step.

    Arguments:
        ``floor``: the plan, see `bilevel_envs.envs.warehouse_floors.lines_of`: lines of text in the letters above, an
        array of letters or of booleans (True for a shelf), or a picture, one pixel for each place: black shelf, white
        aisle, red zone, green pick, blue drop. Or ``"small"``, ``"large"``, ``"huge"``: generated floors of 10^4,
        10^5, 10^6 states. ``picks``, ``drops``, ``zone``: cells (row, column) added to a plan.

        ``rows``, ``columns``: the size of a generated floor, which repeats the one above; 5 and 7 by default.

        ``tolls``: whether there are tolls. ``zone_cost`` (0.2), ``limit_cost`` (0.02), ``toll_cost`` (0.1): the
        leader's. ``beta`` (0.02), ``gamma_leader``, ``gamma_follower`` (0.95).

    Best Known:
        0.749104 for the default arguments, a lower bound by multi-start of the exact gradient: one of the outer ways is
        fast, the middle one slow at both ends, the other outer one left alone. J_L is −0.885 at θ = 0, −0.464 with
        x = 3 everywhere, 0.654 with −3 in the zone and 3 elsewhere. From θ = 0 the exact gradient ends at 0.7225, where
        both outer ways are fast. With tolls, for which none is recorded, multi-start reaches 0.9016.

    Version History:
        v0: first release.
    """

    floor: Any = None
    rows: int | None = None
    columns: int | None = None
    picks: Cells = ()
    drops: Cells = ()
    zone: Cells = ()
    tolls: bool = False
    zone_cost: float = 0.2
    limit_cost: float = 0.02
    toll_cost: float = 0.1
    beta: float = 0.02
    gamma_leader: float = 0.95
    gamma_follower: float = 0.95

    actions: ClassVar[int] = len(MOVES)

    def __post_init__(self) -> None:
        if self.floor is not None and (self.rows is not None or self.columns is not None):
            raise ValueError(
                "`rows` and `columns` are those of a generated floor; leave them out where `floor` is given"
            )
        if self.floor is not None and not (isinstance(self.floor, str) and self.floor in SIZES):
            object.__setattr__(self, "floor", lines_of(self.floor))
        for name in ("picks", "drops", "zone"):
            object.__setattr__(self, name, _cells(getattr(self, name), name))
        check_choice(self.tolls, (True, False), "tolls")
        keep_numbers(self, "zone_cost", "limit_cost", "toll_cost", at_least=0)
        _ = self.preferences, self.plan  # refuses bad ones

    @cached_property
    def plan(self) -> Floor:
        """The floor: its cells, their neighbours, what they are."""
        if isinstance(self.floor, tuple):
            letters = letters_of(self.floor)
        else:
            rows, columns = SIZES.get(self.floor, DEFAULT_SIZE)
            rows, columns = rows if self.rows is None else self.rows, columns if self.columns is None else self.columns
            letters = generated(rows, columns)
        return Floor.of(marked(letters, {ZONE: self.zone, PICK: self.picks, DROP: self.drops}))

    @property
    def cells(self) -> int:
        """N, the places where a robot can be."""
        return len(self.plan.cells)

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    @cached_property
    def theta_space(self) -> gym.spaces.Box:
        """[−6, 6] for each cell, then [−0.5, 0.5] for each toll."""
        high = self._largest
        return gym.spaces.Box(-high, high, high.shape, np.float64)

    @property
    def default_theta(self) -> np.ndarray:
        """0."""
        return np.zeros_like(self._largest)

    def model(self, theta: Tensor) -> TabularModel:
        """The robot's MDP at θ [R, N] or, with tolls, [R, 5 N]."""
        check_shape(theta, self._largest.shape, "theta", "[cell, then toll of cell and action]")
        cells, moves, delivers, in_zone = self.cells, self._moves, self._delivers, self._in_zone
        share = theta[:, :cells].sigmoid()
        leaving = (SLOWEST + (FASTEST - SLOWEST) * share).repeat(1, 2)[..., None]  # with and without an item
        goes = leaving * self._open
        transition = moves.with_probability(torch.stack([1 - goes, goes], -1))
        dropped = leaving * delivers
        picks = int(self.plan.pick.sum())
        upkeep = self.limit_cost / picks * (share - 0.5).square().sum(-1)
        r_follower = dropped
        if self.tolls:
            tolls = theta[:, cells:]
            upkeep = upkeep + self.toll_cost / picks * tolls.square().sum(-1)
            r_follower = dropped - tolls.reshape(len(theta), cells, self.actions).repeat(1, 2, 1)
        # (1 − γ_L) Φ_L in every step of a world without an end adds up to Φ_L.
        rent = (1 - self.gamma_leader) * upkeep[:, None, None]
        r_leader = dropped - self.zone_cost * in_zone[:, None] - rent
        return TabularModel(transition, self._initial, r_leader, r_follower, self._continues)

    def parameterization(self, runs: int, noise: Noise) -> Box:
        """θ in the middle of its box, raw ~ N(0, 0.01²)."""
        return Box(0.01 * noise.normal(len(self._largest)), -self._largest, self._largest)

    def best_known(self, preferences: Preferences) -> BestKnown | None:
        """Of the default floor, costs and preferences, without tolls; None elsewhere."""
        costs = (self.zone_cost, self.limit_cost)
        usual = np.array_equal(self.plan.letters, generated(*DEFAULT_SIZE)) and costs == DEFAULT_COSTS
        if self.tolls or not usual or preferences != Preferences(0.95, 0.95, 0.02):
            return None
        source = "five of five seeds come within 0.0003 % of it, at this θ or its mirror image, and none higher"
        return BestKnown(BEST_KNOWN, source, REPEATABLE, BEST_THETA)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """(row, column, carrying) of states, float32 [..., 3]."""
        carrying, cell = np.divmod(state, self.cells)
        return np.concatenate([self.plan.cells[cell], carrying[..., None]], -1).astype(np.float32)

    @property
    def vector_space(self) -> gym.spaces.Box:
        """The space of `observe`."""
        rows, columns = self.plan.letters.shape
        return gym.spaces.Box(np.zeros(3, np.float32), np.array([rows - 1, columns - 1, 1], np.float32))

    def draw(self, state: int | None, theta: np.ndarray) -> np.ndarray:
        """The floor from above: slow cells in red, fast ones in blue, the robot as a disc with what it carries."""
        robots = []
        if state is not None:
            carrying, cell = divmod(int(state), self.cells)
            row, column = self.plan.cells[cell].tolist()
            robots = [(row, column, bool(carrying))]
        return floor_image(self.plan.letters, self._speeds(theta), robots=robots)

    def draw_visits(self, visits: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """The floor with arrows as wide as the flow of robots, from discounted visits of pairs [S, B]."""
        moving = (visits * self._open.numpy()).reshape(2, self.cells, self.actions)
        moving = moving * self._leaving(theta)[:, None]
        flow = np.zeros((2, *self.plan.letters.shape, self.actions))
        flow[:, *self.plan.cells.T] = moving
        return floor_image(self.plan.letters, self._speeds(theta), flow=flow)

    def _leaving(self, theta: np.ndarray) -> np.ndarray:
        """The probability of leaving each cell, [N]."""
        return SLOWEST + (FASTEST - SLOWEST) / (1 + np.exp(-np.asarray(theta)[: self.cells]))

    def _speeds(self, theta: np.ndarray) -> np.ndarray:
        """The same on the plan, NaN at shelves, [rows, columns]."""
        speeds = np.full(self.plan.letters.shape, np.nan)
        speeds[tuple(self.plan.cells.T)] = self._leaving(theta)
        return speeds

    @cached_property
    def _largest(self) -> np.ndarray:
        """The largest θ."""
        return np.repeat([LIMIT, TOLL], [self.cells, self.cells * self.actions * self.tolls])

    @cached_property
    def _moves(self) -> Transitions:
        """What a step may lead to, stay or go; its probabilities are none yet."""
        plan, cells = self.plan, self.cells
        carrying = np.arange(2)[:, None, None]
        entering = plan.open & (plan.pick | plan.drop)[plan.neighbour]
        then = np.where(entering, plan.pick[plan.neighbour], carrying)  # [2, N, B]
        go = plan.neighbour + cells * then
        stay = np.broadcast_to(np.arange(2 * cells).reshape(2, cells, 1), go.shape)
        lists = np.stack([stay, go], -1).reshape(2 * cells, self.actions, 2)
        probability = torch.zeros(1, *lists.shape, dtype=torch.float64)
        return Transitions(lists.astype(np.int32), probability)

    @cached_property
    def _open(self) -> Tensor:
        """1 where the action leads elsewhere, [S, B]."""
        return torch.from_numpy(np.tile(self.plan.open, (2, 1)).astype(float))

    @cached_property
    def _delivers(self) -> Tensor:
        """1 where the action brings an item to a drop, [S, B]."""
        arrives = self.plan.open & self.plan.drop[self.plan.neighbour]
        return torch.from_numpy(np.concatenate([np.zeros_like(arrives), arrives]).astype(float))

    @cached_property
    def _in_zone(self) -> Tensor:
        """1 where the robot is among people, [S]."""
        return torch.from_numpy(np.tile(self.plan.zone, 2).astype(float))

    @cached_property
    def _initial(self) -> Tensor:
        """At a pick, carrying, [1, S]."""
        picks = self.plan.pick / self.plan.pick.sum()
        return torch.from_numpy(np.concatenate([np.zeros_like(picks), picks]))[None]

    @cached_property
    def _continues(self) -> Tensor:
        return torch.ones(1, 2 * self.cells, self.actions, dtype=torch.float64)


def _cells(value: object, name: str) -> tuple[tuple[int, int], ...]:
    """Pairs of whole numbers."""
    array = np.asarray(value if np.size(value) else np.empty((0, 2), int))  # type: ignore[arg-type]
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"`{name}` must be (row, column) of each cell, got {value!r}")
    return tuple((int(row), int(column)) for row, column in array)
