"""A government that taxes households of several kinds (arXiv:2406.01575, the macro-economic example)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_number, check_shape, keep_counts, keep_numbers
from bilevel_envs.core.contexts import Contexts
from bilevel_envs.core.leader_networks import MLP
from bilevel_envs.core.mdp import BestKnown, ConfigurableMDP, Numbers, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.parameterizations import Box, Parameterization
from bilevel_envs.rendering.drawing import household_image
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.transitions import Transitions

HOUSEHOLDS = ((0.6, 0.3, 0.1), (0.1, 0.7, 0.2))  # the two published tastes
HIGHEST_RATE = 2.0
FIRST_RATE = 0.3
SAVINGS = 20.0  # assets that add ln 2 to the value of savings, per unit of their weight
START_DEVIATION = 2.0**0.5
REACH = 6.0  # standard deviations of the noise that the grid follows: 2e-9 of the mass lies beyond
Best: TypeAlias = dict[float, tuple[tuple[float, ...], float]]  # θ and the value there, by β
BEST: Best = {
    0.1: ((0.6385, 0.0, 0.0, 0.0), 38.1527),
    0.2: ((0.6245, 0.0, 0.0, 0.2282), 39.0558),
    0.3: ((0.601, 0.009, 0.0, 0.5478), 40.6523),
}
BEST_SMALL: Best = {0.1: ((0.8743372, 0.0, 0.0, 0.0), 26.599203)}


class Lumped(NamedTuple):
    """Actions at θ, those that move the assets alike taken together; without what assets themselves are worth.

    Attributes:
      share: how a household divides a total among bundles, [R, types, totals, bundles].
      r_follower: −0.1 h² + β log Σ exp(U / β) over the bundles of the total, [R, types, hours, totals].
      r_leader: the welfare of hours and bundle, averaged by `share`, [R, types, hours, totals].
    """

    share: Tensor
    r_follower: Tensor
    r_leader: Tensor


@dataclass(frozen=True)
class TaxDesign(ConfigurableMDP):
    r"""A government sets an income tax and a value-added tax on each good; households work, save and spend.

    Description:
        A household's state is its assets s. It chooses hours h and what to spend on each good, c:

        .. math::

            s' = m + w, \qquad m = \mathrm{clip}(s + (1 - x) h - \textstyle\sum_i c_i, -100, 100), \qquad
            w \sim N(0, 5^2),

        the noise being truncated so that s' stays within ±100. Its taste ν is drawn anew in each episode and does not
        change within one: the context of contextual bilevel reinforcement learning. θ touches the transitions by the
        income tax x, the follower's rewards by the value-added taxes y, and the leader's rewards by both.

        Planners, ``exact`` and leaders see the same world on a grid of assets, ``model(theta)``: states are
        type · points + point, the truncated normal density is summed by the trapezoidal rule. Bundles of the same total
        move the assets alike, so the choice among them is solved in closed form and an action of the table is (hours,
        total): r_F holds β log Σ exp(U/β) over the bundles of that total, r_L its expectation under their softmax. This
        loses nothing, but it holds for the environment's β only; part of the reaction to y thereby counts as direct.

    Action Space:
        ``actions="multi"`` (default): ``MultiDiscrete([10, 5, 5, 5])``, hours in steps of 0.89 and spending in steps of
        1.25. ``"flat"``: ``Discrete(1250)``, the same in row-major order. ``"totals"``: ``Discrete(130)``, the table's
        actions; the bundle is drawn from the softmax, and the reward is the table's, so that the softly optimal
        household of the table is softly optimal here, too.

    Observation Space:
        ``Box(-100, 100, (1,))``: the assets. With ``observe_type=True`` the household's type follows, as ones and
        zeros. The step's number is not seen; Gymnasium's ``TimeAwareObservation(env)`` adds it.

    Starting State:
        Assets from N(0, 2), truncated to ±100; the type by ``probabilities``. ``reset(options={"context": k})`` fixes
        the type of the episode that begins.

    Configuration:
        θ = (x, y₁, y₂, y₃) in [0, 2]⁴; 0.3 each by default. Parameterisation: θ = 2 · sigmoid(raw), started at 0.3.

    Reward:
        The follower's, before the entropy: A(s) − 0.1 h² + Π (cᵢ / (pᵢ (1 + yᵢ)))^νᵢ with A(s) = ln(1 + s/20) for
        s > 0 and s for debt. Where a cᵢ is 0 the product is 0, and so is its derivative.

    Leader Reward:
        min(s, 0) + 15 · meanᵢ(cᵢ / (1 + yᵢ)) / 5 + 5 · ln(1 + Σ yᵢ cᵢ / (1 + yᵢ) + x h). The published weight of the
        leader's on assets is 0, but it scales the positive branch only, so that debt still costs it.

    Episode End:
        Never by itself; truncated after 200 steps. The release reports the time limit as an end of the world.

    Information:
        ``leader_reward``; ``hours``; ``spending``, one entry per good; ``context``, the type, which ``reset`` tells,
        too; and ``step``, the 0-based index of the step.

    Arguments:
        ``households``: the exponents ν of each type. ``probabilities``: of the types; equal by default.
        ``hour_levels``, ``hour_step``, ``spend_levels``, ``spend_step``: the choices. ``wage`` (1) of an hour.
        ``prices`` of the goods (1 each). ``disutility`` of work (0.1). ``follower_assets`` (1), ``leader_assets`` (0):
        weights of ln(1 + s/20). ``scale_debt_branch``: let them weigh debt, too. ``consumption_weight`` (15),
        ``revenue_weight`` (5): the leader's. ``noise`` (5): its standard deviation. ``limit`` (100) of assets.
        ``spacing`` (2) of the grid: at most twice the noise, and 2.8; at 2, F is 0.01 above its value on finer grids.
        ``beta`` (0.1), ``gamma_leader``, ``gamma_follower`` (0.9).

    Best Known:
        F = 38.153 at θ = (0.6385, 0, 0, 0) for the default arguments; with ``beta=0.2`` 39.056 at (0.6245, 0, 0, 0.228)
        and with ``beta=0.3`` 40.652 at (0.601, 0.009, 0, 0.548): by multi-start of the exact gradient. L-BFGS from
        eight starts ends there every time. (On a grid of spacing 1: 38.140, 39.043 and 40.640.) Income tax does nearly
        all the work; beyond 0.75 F falls off a cliff, because households work for little and slide into debt.

    Advised:
        Leaders draw 2,000 households for 50 steps each per iteration (``batch_size=100_000``, ``rows=2_000``,
        ``tail="keep"``; drawing them takes less time than making the table), use the exact critic and take
        ``learning_rate=0.03`` by default. Estimates of the slope in x have heavy tails near the optimum,
        where the edge of the cliff is not far; a critic learnt in a table of 26,260 entries leads over it.

    References:
        Thoma, Pásztor, Krause, Ramponi, Hu: Contextual bilevel reinforcement learning for incentive alignment,
        arXiv:2406.01575.

    Version History:
        v0: first release.
    """

    households: tuple[tuple[float, ...], ...] = HOUSEHOLDS
    probabilities: tuple[float, ...] | None = None
    hour_levels: int = 10
    hour_step: float = 0.89
    spend_levels: int = 5
    spend_step: float = 1.25
    wage: float = 1.0
    prices: tuple[float, ...] | None = None
    disutility: float = 0.1
    follower_assets: float = 1.0
    leader_assets: float = 0.0
    scale_debt_branch: bool = False
    consumption_weight: float = 15.0
    revenue_weight: float = 5.0
    noise: float = 5.0
    limit: float = 100.0
    spacing: float = 2.0
    beta: float = 0.1
    gamma_leader: float = 0.9
    gamma_follower: float = 0.9

    best: ClassVar[Best] = BEST
    environment: ClassVar[str] = "bilevel_envs.envs.tax_env:TaxEnv"
    on_grid: ClassVar[bool] = True
    advised: ClassVar[dict[str, object]] = {
        "batch_size": 100_000,
        "rows": 2_000,
        "tail": "keep",
        "critic": "exact",
        "learning_rate": 0.03,
    }

    def __post_init__(self) -> None:
        self._check_households()
        keep_counts(self, "hour_levels", "spend_levels", at_least=2)
        keep_numbers(self, "hour_step", "spend_step", "wage", "noise", "limit", "spacing", above=0)
        keep_numbers(self, "disutility", "follower_assets", "leader_assets", "consumption_weight", "revenue_weight")
        check_choice(self.scale_debt_branch, (False, True), "scale_debt_branch")
        coarsest = min(2 * self.noise, 2 * START_DEVIATION)
        check_number(
            self.spacing, "spacing", at_most=coarsest, remedy="The grid must resolve the noise and the first assets"
        )
        if abs(self.limit / self.spacing - round(self.limit / self.spacing)) > 1e-9:
            raise ValueError(f"`spacing` must divide `limit` ({self.limit:g}), so that 0 is a point: {self.spacing:g}")
        _ = self.preferences  # refuses bad ones

    def _check_households(self) -> None:
        """Makes tuples of the households, their probabilities and prices, and refuses what is none."""
        try:
            tastes = np.asarray(self.households)
        except (TypeError, ValueError):  # of ragged lists
            tastes = np.array(None)
        tastes = tastes.astype(float) if tastes.dtype.kind in "fiu" else np.array(np.nan)
        if len(tastes.shape) != 2 or tastes.size == 0 or not (tastes > 0).all() or not np.isfinite(tastes).all():
            raise ValueError(
                f"`households` must give each type an exponent above 0 for each good, [types, goods]; got "
                f"{self.households!r}"
            )
        types, goods = tastes.shape
        sizes = {"probabilities": (self.probabilities, types, 1 / types), "prices": (self.prices, goods, 1.0)}
        object.__setattr__(self, "households", tuple(map(tuple, tastes.tolist())))
        for name, (values, count, default) in sizes.items():
            values = (default,) * count if values is None else values
            if np.shape(values) != (count,):
                raise ValueError(f"`{name}` must be {count} numbers, got {values!r}")
            object.__setattr__(self, name, tuple(check_number(value, name, above=0) for value in values))
        if abs(sum(self._probabilities) - 1) > 1e-9:
            raise ValueError(f"`probabilities` must sum to 1, got {self.probabilities}")

    # What there is to choose ----------------------------------------------------------------------------------

    @property
    def types(self) -> int:
        """How many kinds of household there are."""
        return len(self.households)

    @property
    def goods(self) -> int:
        """How many goods there are."""
        return len(self.households[0])

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Levels of the hours and of the spending on each good."""
        return (self.hour_levels, *[self.spend_levels] * self.goods)

    @cached_property
    def hours(self) -> Tensor:
        """Hours by level."""
        return self.hour_step * torch.arange(self.hour_levels, dtype=torch.float64)

    @cached_property
    def bundles(self) -> Tensor:
        """What each bundle spends on each good, [bundles, goods]; the last good varies fastest."""
        return self.spend_step * self._bundle_levels.double()

    @cached_property
    def totals(self) -> Tensor:
        """Total spending by level."""
        return self.spend_step * torch.arange(self.goods * (self.spend_levels - 1) + 1, dtype=torch.float64)

    @cached_property
    def points(self) -> Tensor:
        """Assets at the points of the grid."""
        return torch.linspace(-self.limit, self.limit, 2 * round(self.limit / self.spacing) + 1, dtype=torch.float64)

    @cached_property
    def theta_space(self) -> gym.spaces.Box:
        """Rates in [0, 2]: the income tax, then the value-added tax of each good."""
        return gym.spaces.Box(0.0, HIGHEST_RATE, (1 + self.goods,), np.float64)

    @cached_property
    def default_theta(self) -> np.ndarray:
        """0.3 each."""
        return np.full(1 + self.goods, FIRST_RATE)

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    # Rewards and transitions for assets of any size -------------------------------------------------------------

    def reward_follower(self, assets: Numbers, action: Numbers, context: Numbers, theta: Numbers) -> Tensor:
        """r_F, differentiable in θ.

        Args:
          assets: before the step, [...].
          action: levels of the hours and of the spending on each good, int [..., 1 + goods].
          context: the household's type, int [...].
          theta: rates, [..., 1 + goods]. All leading axes broadcast.
        """
        hours, spending = self._decoded(action)
        return (
            self.worth(_tensor(assets), self.follower_assets)
            - self.disutility * hours**2
            + self.utility(spending, context, _tensor(theta))
        )

    def reward_leader(self, assets: Numbers, action: Numbers, theta: Numbers) -> Tensor:
        """r_L, arguments as in `reward_follower`; it does not depend on the household's type."""
        hours, spending = self._decoded(action)
        return self.worth(_tensor(assets), self.leader_assets) + self.welfare(hours, spending, _tensor(theta))

    def log_prob_transition(self, assets: Numbers, action: Numbers, next_assets: Numbers, theta: Numbers) -> Tensor:
        """Log-density of the next assets, arguments as in `reward_follower`; −inf beyond the limit."""
        hours, spending = self._decoded(action)
        mean, arrived = self.mean_next(_tensor(assets), hours, spending.sum(-1), _tensor(theta)), _tensor(next_assets)
        inside = torch.special.ndtr((self.limit - mean) / self.noise) - torch.special.ndtr(
            (-self.limit - mean) / self.noise
        )
        log_density = -(((arrived - mean) / self.noise) ** 2) / 2 - np.log(self.noise * np.sqrt(2 * np.pi))
        return torch.where(arrived.abs() <= self.limit, log_density - inside.log(), -torch.inf)

    def utility(self, spending: Tensor, context: Numbers, theta: Tensor) -> Tensor:
        """U = Π (c_i / (p_i (1 + y_i)))^ν_i of spending [..., goods]; 0 with derivative 0 where a c_i is 0."""
        taste = _tensor(self.households)[torch.as_tensor(context)]
        cost = _tensor(self._prices) * (1 + theta[..., 1:])
        return (spending**taste).prod(-1) * (-(taste * cost.log()).sum(-1)).exp()

    def welfare(self, hours: Tensor, spending: Tensor, theta: Tensor) -> Tensor:
        """The leader's reward apart from assets: what households consume after tax, and the log of what taxes bring."""
        income, vat = theta[..., 0], theta[..., 1:]
        received = spending / (1 + vat)
        largest = self.spend_step * (self.spend_levels - 1)
        revenue = (vat * received).sum(-1) + income * self.wage * hours
        return self.consumption_weight * received.mean(-1) / largest + self.revenue_weight * revenue.log1p()

    def mean_next(self, assets: Tensor, hours: Tensor, total: Tensor, theta: Tensor) -> Tensor:
        """Mean of the next assets before truncation; within the limit."""
        moved = assets + (1 - theta[..., 0]) * self.wage * hours - total
        return moved.clamp(-self.limit, self.limit)

    # The same on the grid ---------------------------------------------------------------------------------------

    @cached_property
    def contexts(self) -> Contexts:
        """The types; the world draws one in every episode unless a context is in force."""
        return Contexts(self.types, lambda context: torch.eye(self.types)[context], self._probabilities, within=True)

    def model(self, theta: Tensor, context: np.ndarray | None = None) -> TabularModel:
        """The household's MDP on the grid at θ [R, 1 + goods]: types · points states, hours · totals actions.

        Args:
          theta: the rates.
          context: each run's type, int [R]; None for a draw in every episode.
        """
        check_shape(theta, self.theta_space.shape, "theta", "[income tax and value-added taxes]")
        lumped, moves = self.lumped(theta), self._moves(theta)
        runs, points, actions, _ = moves.shape
        states = (runs, self.types * points, actions)

        def table(weight: float, by_action: Tensor) -> Tensor:
            return (self._grid_worth(weight)[:, None] + by_action.flatten(2)[:, :, None]).reshape(states)

        return TabularModel(
            self._lists.with_probability(moves.repeat(1, self.types, 1, 1)),
            self._initial(self._probabilities if context is None else torch.eye(self.types)[context]),
            table(self.leader_assets, lumped.r_leader),
            table(self.follower_assets, lumped.r_follower),
        )

    def lumped(self, theta: Tensor) -> Lumped:
        """What hours and totals are worth at θ [R, 1 + goods], the bundle within the total being softly optimal."""
        theta = theta[:, None, None]
        utility = self.utility(self.bundles, torch.arange(self.types)[:, None], theta) / self.beta
        among = utility[:, :, None].masked_fill(~self._of_total, -torch.inf)
        share = among.softmax(-1)
        effort = self.disutility * self.hours**2
        return Lumped(
            share,
            self.beta * among.logsumexp(-1)[:, :, None] - effort[:, None],
            torch.einsum("rtkn,rhn->rthk", share, self.welfare(self.hours[:, None], self.bundles, theta)),
        )

    def parameterization(self, runs: int, noise: Noise, name: str = "box") -> Parameterization:
        """θ = 2 · sigmoid(raw), every run started at 0.3.

        Args:
          runs: how many runs.
          noise: draws the first weights.
          name: "box" for one θ, "mlp" for one that depends on the household's type.
        """
        check_choice(name, ("box", "mlp"), "policy")
        share = FIRST_RATE / HIGHEST_RATE
        start = np.full((runs, 1 + self.goods), np.log(share / (1 - share)))
        box = Box(start, 0.0, HIGHEST_RATE)
        return box if name == "box" else MLP(box, noise, self.types)

    def best_known(self, preferences: Preferences) -> BestKnown | None:
        """For the published world at the published β."""
        if preferences != self.preferences or self.beta not in self.best or self != type(self)(beta=self.beta):
            return None
        rates, value = self.best[self.beta]
        source = f"gradients of the rates of 0 point below 0; at θ = {rates}"
        return BestKnown(value, source, "multi-start of the exact gradient", rates)

    def observations(self) -> np.ndarray:
        """What an agent with ``observe_type=True`` sees in each state of the table, [S, 1 + types]."""
        assets = np.tile(self.points.numpy(), self.types)[:, None]
        return np.concatenate([assets, np.repeat(np.eye(self.types), len(self.points), axis=0)], 1)

    def nearest_state(self, assets: Numbers, context: Numbers) -> np.ndarray:
        """The table's state that stands for assets and type."""
        point = np.rint((np.asarray(assets, float) + self.limit) / self.spacing).astype(int)
        return np.asarray(context, int) * len(self.points) + point

    def of_type(self, context: int) -> TaxDesign:
        """The world with households of one type alone."""
        return replace(self, households=(self.households[context],), probabilities=None)

    def draw(self, assets: np.ndarray, theta: np.ndarray, action: np.ndarray | None = None) -> np.ndarray:
        """The assets of the episode so far [k], hours and spending of its last step [1 + goods], and the rates."""
        last = np.zeros(1 + self.goods) if action is None else action
        largest = (self.hour_step * (self.hour_levels - 1), self.spend_step * (self.spend_levels - 1))
        return household_image(np.atleast_1d(assets), last, largest, theta, HIGHEST_RATE)

    def _decoded(self, action: Numbers) -> tuple[Tensor, Tensor]:
        """Hours [...] and spending [..., goods] from levels."""
        levels = np.asarray(action)
        check_shape(levels, (1 + self.goods,), "action", "[level of hours and of each good]")
        if levels.dtype.kind not in "iu" or (levels < 0).any() or (levels >= np.array(self.levels)).any():
            raise ValueError(f"`action` must be levels in 0 … {np.array(self.levels) - 1}, got {action!r}")
        return self.hours[torch.from_numpy(levels[..., 0])], self.spend_step * torch.from_numpy(
            levels[..., 1:]
        ).double()

    def worth(self, assets: Tensor, weight: float) -> Tensor:
        """A(s): ln(1 + s/20) for savings, s for debt; the weight is the former's alone, unless `scale_debt_branch`."""
        debt = weight if self.scale_debt_branch else 1.0
        return weight * (assets.clamp(min=0) / SAVINGS).log1p() + debt * assets.clamp(max=0)

    def _grid_worth(self, weight: float) -> Tensor:
        """A at the points, with what its kink at 0 is worth to sums over them."""
        worth = self.worth(self.points, weight)
        debt = weight if self.scale_debt_branch else 1.0
        # The trapezoidal rule errs by −spacing²/12 times a jump of the slope (Euler–Maclaurin); the point 0 makes up.
        worth[len(worth) // 2] += (weight / SAVINGS - debt) * self.spacing / 12
        return worth

    def _moves(self, theta: Tensor) -> Tensor:
        """p(s' | s, b) at the points `_near` each one, [R, points, hours · totals, K]; 0 beyond `REACH`."""
        rates = theta[:, None, None, None]
        mean = self.mean_next(self.points[:, None, None], self.hours[:, None], self.totals, rates).flatten(2)
        square = ((self.points[self._near][:, None] - mean[..., None]) / self.noise) ** 2
        log_weight = torch.zeros_like(self.points)
        log_weight[[0, -1]] = np.log(0.5)
        exponent = log_weight[self._near][:, None] - square / 2
        return exponent.masked_fill(square.detach() > REACH**2, -torch.inf).softmax(-1)

    @cached_property
    def _near(self) -> Tensor:
        """The points that may follow each one at some rates, int [points, K]: a window that stays within the grid."""
        earned, count = self.wage * float(self.hours[-1]), len(self.points)  # an income tax of 2 takes it twice
        below = math.ceil((earned + float(self.totals[-1]) + REACH * self.noise) / self.spacing)
        above = math.ceil((earned + REACH * self.noise) / self.spacing)
        width = min(count, below + 1 + above)
        first = (torch.arange(count) - below).clamp(0, count - width)
        return first[:, None] + torch.arange(width)

    @cached_property
    def _lists(self) -> Transitions:
        """The same for all types, without probabilities that mean anything."""
        kinds = torch.arange(self.types)[:, None, None] * len(self.points)
        successor = (kinds + self._near).flatten(0, 1)[:, None]
        states, _, width = successor.shape
        actions = self.hour_levels * len(self.totals)
        alike = torch.full((1, 1, 1, 1), 1 / width, dtype=torch.float64).expand(1, states, actions, width)
        return Transitions(successor.numpy(), alike)

    def _initial(self, probabilities: Numbers) -> Tensor:
        """ρ0 [R, types · points] for the types' probabilities, [types] or [R, types]."""
        density = (-(self.points**2) / (2 * START_DEVIATION**2)).softmax(-1)
        return (_tensor(probabilities).view(-1, self.types, 1) * density).flatten(1)

    @cached_property
    def _bundle_levels(self) -> Tensor:
        return torch.from_numpy(np.indices(self.levels[1:]).reshape(self.goods, -1).T.copy())

    @cached_property
    def _of_total(self) -> Tensor:
        """Whether a bundle has a total, bool [totals, bundles]."""
        return self._bundle_levels.sum(-1) == torch.arange(len(self.totals))[:, None]

    @property
    def _probabilities(self) -> tuple[float, ...]:
        assert self.probabilities is not None, "made by __post_init__"
        return self.probabilities

    @property
    def _prices(self) -> tuple[float, ...]:
        assert self.prices is not None, "made by __post_init__"
        return self.prices


@dataclass(frozen=True)
class TaxDesignSmall(TaxDesign):
    """The tax world with less to choose from, for quick experiments and tests.

    Description:
        As ``TaxDesign``, with hours 0, 2, …, 8, three levels of spending up to 5, assets within ±20, noise of standard
        deviation 1, and a grid of spacing 1: 82 states and 35 actions.

    Arguments:
        Those of ``TaxDesign``.

    Best Known:
        F = 26.599 at θ = (0.8743, 0, 0, 0) for the default arguments, by multi-start of the exact gradient. Where the
        value-added taxes are near 2 instead, a plateau of 26.554 lies.

    Version History:
        v0: first release.
    """

    hour_levels: int = 5
    hour_step: float = 2.0
    spend_levels: int = 3
    spend_step: float = 2.5
    noise: float = 1.0
    limit: float = 20.0
    spacing: float = 1.0

    best: ClassVar[Best] = BEST_SMALL


def _tensor(x: Numbers) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)
