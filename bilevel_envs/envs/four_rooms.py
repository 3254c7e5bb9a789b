"""Four rooms with penalties that the leader places (arXiv:2603.14867, section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import as_array, check_choice, check_number, check_shape
from bilevel_envs.core.contexts import Contexts
from bilevel_envs.core.leader_networks import CNN, MLP
from bilevel_envs.core.mdp import BestKnown, ConfigurableMDP, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Budget, Parameterization
from bilevel_envs.rendering.drawing import GOAL, START, TARGET, grid_image, shade
from bilevel_envs.worlds.tabular.model import TabularModel

MAP = (
    "#############",
    "#.....#..G..#",
    "#.....#.....#",
    "#.....D.....#",
    "#S....#.....#",
    "#.....#.....#",
    "##D####.....#",
    "#.....###D###",
    "#...T.#.....#",
    "#.....#.....#",
    "#.....D.....#",
    "#.....#.....#",
    "#############",
)
WALLS = np.array([[cell == "#" for cell in line] for line in MAP])
CELLS = np.argwhere(~WALLS)  # [104, 2]; a state is the rank of its cell in row-major order
STATE = {(int(row), int(column)): index for index, (row, column) in enumerate(CELLS)}
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
START_STATE, GOAL_STATE, TARGET_STATE = STATE[4, 1], STATE[1, 9], STATE[8, 4]
CORRIDORS = (STATE[3, 6], STATE[6, 2], STATE[7, 9], STATE[10, 6])  # top, left, right, bottom
AT_TARGET = (torch.arange(len(CELLS)) == TARGET_STATE).double()
BUDGET = 0.2
# Contexts of ``pairs=True``: (start, goal), different cells, none of them the target, int [10506, 2].
PAIRS = np.array([(s, g) for s, g in np.ndindex(len(CELLS), len(CELLS)) if s != g and TARGET_STATE not in (s, g)])
PARAMETERIZATIONS = ("budget", "mlp", "cnn")
# Probability of the intended move: of the world that is simulated, and of the one that is planned in.
# 0.56 applies the classic factor 4/3 twice to a failure rate of 0.33; 0.67 applies it once.
INTENDED = {"published": (0.56, 0.56), "classic": (0.67, 0.67), "mismatched": (0.67, 0.56)}
BEST_KNOWN = {1e-3: 0.768374, 3e-3: 0.616065, 5e-3: 1.622716}  # at θ of the file below
BEST_THETA = "four_rooms_best_known.npz"


@dataclass(frozen=True)
class FourRooms(ConfigurableMDP):
    r"""A follower walks from S to G through four rooms; the leader's penalties are to lead it past T.

    Description:
        ::

            #############
            #.....#..G..#      S start, G goal, T the leader's target,
            #.....#.....#      D the four corridors
            #.....D.....#
            #S....#.....#
            #.....#.....#
            ##D####.....#
            #.....###D###
            #...T.#.....#
            #.....#.....#
            #.....D.....#
            #.....#.....#
            #############

        The shortest way, 11 moves through the top corridor, misses T. The leader spreads at most 0.2 of penalty
        over the cells, which the follower feels at every step, and pays for it when the follower arrives:

        .. math::

            r_F(s; \theta) = 1[s = G] + \theta_s\, 1[s \ne G], \qquad
            r_L(s; \theta) = 1[s = T] - 5\, 1[s = G] \textstyle\sum_i |\theta_i| .

    Action Space:
        ``Discrete(4)``: 0 up, 1 right, 2 down, 3 left. The intended move is made with the probability that
        ``dynamics`` says, each other one with a third of the rest. Walls stop.

    Observation Space:
        ``Discrete(104)``: the rank of the cell among the free ones, row by row. With ``observation="vector"``
        a ``Box`` of (row, column, goal row, goal column).

    Starting State:
        S = (4, 1), state 31.

    Configuration:
        The incentives θ ∈ [−0.2, 0]^104, one per cell, with Σ|θ| ≤ 0.2; −0.2/105 each by default.
        Parameterisation: θ = −0.2 · softmax(raw) without its last entry, raw ∈ R^105, started at N(0, 0.01²):
        ``policy="budget"``. ``"mlp"`` and ``"cnn"`` add to raw what a perceptron, or a convolutional network, makes
        of a picture of walls, start, goal and target; with ``pairs=True``, ``"cnn"`` is the default.

    Reward:
        The follower's: 1 at G, θ of the cell elsewhere, at the cell where the step begins.

    Leader Reward:
        1 for every step begun at T; −5 Σ|θ| for the step begun at G (``info["leader_reward"]``).

    Episode End:
        Terminated by the step taken *at* G, whatever its action: the goal pays once. That step still earns
        its entropy (V_F(G) = 1 + β ln 4); nothing follows it. Truncated after 200 steps; exact values have no time
        limit. At β = 5e-3 the best penalties known keep half of the episodes going for more than 200 steps.

    Information:
        ``leader_reward``, and ``step``, the 0-based index of the step.

    Arguments:
        ``dynamics``: ``"published"`` (default; intended move 0.56 in simulator and planner, so that values
        compare with the paper's), ``"classic"`` (0.67 in both), or ``"mismatched"`` (simulator 0.67, planner and
        exact values 0.56: what the published code did; for reproduction only).

        ``closing``: probability that each corridor (top, left, right, bottom) is shut when tried; 0 by default.

        ``pairs``: with True, start and goal are a context: any two cells but the target, 10,506 pairs in all. Leaders
        draw one in each outer iteration; ``reset(options={"context": k})`` sets one.

        ``beta``: 1e-3, 3e-3 and 5e-3 in the paper. ``gamma_leader``, ``gamma_follower``: 0.99.

    Advised:
        Leaders that look at trajectories begin with ``exploration="restarts"``: from θ ≈ 0 the hypergradient leads to
        a plateau.

    Best Known:
        0.768374, 0.616065, 1.622716 for β = 1e-3, 3e-3, 5e-3 with the published dynamics: lower bounds by multi-start
        of the exact gradient. Most of the budget is on (3, 5), before the top corridor: 77 %, 75 % and 62 %; at
        β = 5e-3 another 25 % on the bottom corridor. From θ ≈ 0 the same ascent ends at J_L ≈ 0.

    References:
        Kudo, Tanabe, Wachi, Akimoto: arXiv:2603.14867, section 5.1. The map is the classic one of Sutton,
        Precup, Singh, Artificial Intelligence 112 (1999).

    Version History:
        v0: first release.
    """

    dynamics: str = "published"
    closing: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    beta: float = 5e-3
    gamma_leader: float = 0.99
    gamma_follower: float = 0.99
    pairs: bool = False

    theta_space: ClassVar[gym.spaces.Box] = gym.spaces.Box(-BUDGET, 0.0, (len(CELLS),), np.float64)
    default_theta: ClassVar[np.ndarray] = np.full(len(CELLS), -BUDGET / (len(CELLS) + 1))

    def __post_init__(self) -> None:
        check_choice(self.dynamics, INTENDED, "dynamics")
        check_choice(self.pairs, (False, True), "pairs")
        closings = as_array(self.closing, "closing").ndim == 1 and len(self.closing) == len(CORRIDORS)
        object.__setattr__(self, "closing", tuple(self.closing) if closings else self.closing)
        if not closings:
            raise ValueError(
                f"`closing` must give one probability per corridor (top, left, right, bottom), got {self.closing}"
            )
        for index, closing in enumerate(self.closing):
            check_number(closing, f"closing[{index}]", at_least=0, at_most=1)
        _ = self.preferences  # refuses bad ones

    def check_theta(self, theta: np.ndarray) -> None:
        """Refuses θ [..., 104] outside [−0.2, 0] or with more than 0.2 spent."""
        super().check_theta(theta)
        spent = np.abs(theta).sum(-1)
        if spent.max() > BUDGET + 1e-6:  # rounding of a float32 parameterisation
            raise ValueError(
                f"`theta` must spend at most {BUDGET} in all; Σ|theta| is {spent.max():.9g}. "
                f"Scale it: theta * {BUDGET} / abs(theta).sum()"
            )

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    @cached_property
    def advised(self) -> dict[str, object]:
        """Restarts, for the published start and goal."""
        return {} if self.pairs else {"exploration": "restarts"}

    @cached_property
    def contexts(self) -> Contexts | None:
        """Start and goal, with ``pairs=True``."""
        return Contexts(len(PAIRS), _pictures) if self.pairs else None

    def model(self, theta: Tensor, context: np.ndarray | None = None) -> TabularModel:
        """The world as the follower plans in it and as `exact` evaluates it, at θ [R, 104]; contexts are int [R]."""
        return self._world(self._planned, theta, context)

    @property
    def simulates_its_model(self) -> bool:
        """False with ``dynamics="mismatched"``."""
        return self._simulated is self._planned

    def simulator(self, theta: Tensor, context: np.ndarray | None = None) -> TabularModel:
        """The world that is simulated; another one only with ``dynamics="mismatched"``."""
        return self._world(self._simulated, theta, context)

    def parameterization(self, runs: int, noise: Noise, name: str | None = None) -> Parameterization:
        """θ = −0.2 · softmax(raw) without its last entry, raw ~ N(0, 0.01²) in R^105, shifted by a network or not.

        Args:
          runs: how many runs.
          noise: draws the first numbers.
          name: "budget", "mlp" or "cnn"; None for "cnn" with ``pairs=True`` and for "budget" without.
        """
        name = ("cnn" if self.pairs else "budget") if name is None else name
        check_choice(name, PARAMETERIZATIONS, "policy")
        budget = Budget(0.01 * noise.normal(len(CELLS) + 1), -BUDGET)
        if name == "budget":
            return budget
        published = PAIRS.tolist().index([START_STATE, GOAL_STATE])
        picture = None if self.pairs else _pictures(np.array([published]))[0]
        if name == "mlp":
            return MLP(budget, noise, 4 * WALLS.size, features=picture)
        return CNN(budget, noise, CELLS, 4, features=picture)

    def best_known(self, preferences: Preferences) -> BestKnown | None:
        """The paper's three β with the published planner; None elsewhere."""
        discounts = (preferences.gamma_leader, preferences.gamma_follower)
        if self.pairs or self.dynamics == "classic" or any(self.closing) or discounts != (0.99, 0.99):
            return None
        value = BEST_KNOWN.get(preferences.beta)
        if value is None:
            return None
        source = "five of five seeds come within 0.01 % of it, and none higher"
        return BestKnown(value, source, "multi-start of the exact gradient", _best_theta()[preferences.beta])

    def observe(self, state: np.ndarray) -> np.ndarray:
        """(row, column, goal row, goal column) of states, float32 [..., 4]."""
        goal = np.broadcast_to(CELLS[GOAL_STATE], (*np.shape(state), 2))
        return np.concatenate([CELLS[state], goal], -1).astype(np.float32)

    @property
    def vector_space(self) -> gym.spaces.Box | None:
        """The space of `observe`; None with ``pairs=True``, where the goal differs from episode to episode."""
        return None if self.pairs else gym.spaces.Box(0.0, float(len(MAP) - 1), (4,), np.float32)

    def grid(self, values: np.ndarray) -> np.ndarray:
        """Values per state on the map, NaN at walls, [13, 13]."""
        picture = np.full(WALLS.shape, np.nan)
        picture[tuple(CELLS.T)] = values
        return picture

    @property
    def landmarks(self) -> dict[str, tuple[int, int]]:
        """(row, column) by letter: S start, G goal, T target."""
        return _landmarks(START_STATE, GOAL_STATE)

    @property
    def last_step_stays(self) -> bool:
        """The episode ends with a step taken at G."""
        return True

    def draw(self, state: int | None, theta: np.ndarray, context: int | None = None) -> np.ndarray:
        """The grid from above: penalties in red, the follower as a disc, start and goal of the context."""
        fill = np.zeros((*WALLS.shape, 3), np.uint8)
        # The square root keeps small penalties visible; the scale is the same for every θ.
        fill[tuple(CELLS.T)] = shade(np.sqrt(np.abs(theta) / BUDGET))
        colours = {"S": START, "G": GOAL, "T": TARGET}
        landmarks = self.landmarks if context is None else _landmarks(*PAIRS[context].tolist())
        marks = {cell: (letter, colours[letter]) for letter, cell in landmarks.items()}
        agent = None if state is None else (int(CELLS[state][0]), int(CELLS[state][1]))
        return grid_image(WALLS, fill, marks, agent)

    def _world(self, base: TabularModel, theta: Tensor, context: np.ndarray | None) -> TabularModel:
        check_shape(theta, (len(CELLS),), "theta", "[cell]")
        start, goal = (START_STATE, GOAL_STATE) if context is None else torch.from_numpy(PAIRS[context]).T
        at_goal = torch.eye(len(CELLS), dtype=torch.bool)[goal]
        r_follower = torch.where(at_goal, 1.0, theta)
        r_leader = torch.where(at_goal, 5.0 * theta.sum(-1, keepdim=True), AT_TARGET)  # θ ≤ 0, so Σ|θ| = −Σθ
        shape = (-1, -1, len(MOVES))
        rewards = r_leader[..., None].expand(shape), r_follower[..., None].expand(shape)
        if context is None:
            return base.with_rewards(*rewards)
        initial = torch.eye(len(CELLS), dtype=torch.float64)[start]
        return TabularModel(base.transition, initial, *rewards, (~at_goal).double()[..., None].expand(shape))

    @cached_property
    def _planned(self) -> TabularModel:
        return self._dynamics(INTENDED[self.dynamics][1])

    @cached_property
    def _simulated(self) -> TabularModel:
        simulated, planned = INTENDED[self.dynamics]
        return self._planned if simulated == planned else self._dynamics(simulated)

    def _dynamics(self, intended: float) -> TabularModel:
        states, actions = len(CELLS), len(MOVES)
        moves = np.zeros((states, actions, states))
        for state, (row, column) in enumerate(CELLS):
            for action, (down, right) in enumerate(MOVES):
                reached = STATE.get((int(row) + down, int(column) + right), state)
                closed = self.closing[CORRIDORS.index(reached)] if reached in CORRIDORS and reached != state else 0.0
                moves[state, action, reached] += 1 - closed
                moves[state, action, state] += closed
        noise = np.full((actions, actions), (1 - intended) / (actions - 1))
        np.fill_diagonal(noise, intended)
        transition = np.einsum("be,set->sbt", noise, moves)
        continues = np.ones((states, actions))
        continues[GOAL_STATE] = 0.0
        zeros = torch.zeros(1, states, actions, dtype=torch.float64)
        initial = torch.eye(states, dtype=torch.float64)[START_STATE : START_STATE + 1]
        return TabularModel(
            torch.from_numpy(transition)[None], initial, zeros, zeros, torch.from_numpy(continues)[None]
        )


def _pictures(context: np.ndarray) -> Tensor:
    """Walls, start, goal and target as ones, float64 [R, 4, 13, 13]."""
    picture = torch.zeros(len(context), 4, *WALLS.shape, dtype=torch.float64)
    picture[:, 0] = torch.from_numpy(WALLS).double()
    picture[:, 3, CELLS[TARGET_STATE, 0], CELLS[TARGET_STATE, 1]] = 1.0
    for channel, states in enumerate(PAIRS[context].T, 1):
        picture[torch.arange(len(context)), channel, CELLS[states, 0], CELLS[states, 1]] = 1.0
    return picture


def _landmarks(start: int, goal: int) -> dict[str, tuple[int, int]]:
    cells = {"S": start, "G": goal, "T": TARGET_STATE}
    return {letter: (int(CELLS[state][0]), int(CELLS[state][1])) for letter, state in cells.items()}


@cache
def _best_theta() -> dict[float, np.ndarray]:
    """θ of the best known value, by β."""
    with files("bilevel_envs.envs").joinpath(BEST_THETA).open("rb") as file, np.load(file) as data:
        return dict(zip(data["beta"].tolist(), data["theta"], strict=True))
