"""What a model says of the steps of its environment, by its kind; each method yields what contradicts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, singledispatch
from typing import Protocol

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from bilevel_envs.core.mdp import Model
from bilevel_envs.testing.report import Finding, Skipped
from bilevel_envs.testing.statistics import SHARE, binomial, chi_square, two_sided, uniform, z_score
from bilevel_envs.testing.subject import Steps, short
from bilevel_envs.worlds.declared.model import SimulatedModel
from bilevel_envs.worlds.declared.problem import RewardModel
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from bilevel_envs.worlds.tabular.model import TabularModel

CLOSE = 1e-6  # rewards that differ by no more, relative to the largest, are the same
ROUNDING = 1e-4  # of a standard deviation: next states that floats cannot resolve so far are not judged
ENOUGH = 30  # draws from which a mean is judged
REWARDS_ALONE = "of the model only both rewards are known, not where steps lead"
LAST = -1  # stands for the state after the last step
Indices = Callable[[list[object]], np.ndarray]


class Law(Protocol):
    """The law of steps in a model at one θ; `states` and `following` are as the model takes them."""

    def quantities(self, points: Points) -> dict[str, Tensor]:
        """What of the model may depend on θ, by name, [R, ...]: at visited points, or everywhere."""

    def rewards(self, steps: Points) -> Iterator[Finding]:
        """Rewards of steps against the model's."""

    def moves(self, steps: Points) -> Iterator[Finding]:
        """Where steps led against the model's law."""

    def starts(self, first: np.ndarray) -> Iterator[Finding]:
        """First states against the model's law."""

    def ends(self, steps: Points) -> Iterator[Finding]:
        """Where episodes end against the model."""

    def chance_of_repeating(self, steps: Points) -> float | None:
        """How likely these steps come about once more by chance; None where the model does not tell."""


class Points:
    """Steps in the form that a model takes.

    Args:
      steps: as the environment told them.
      states: makes the model's states of observations.
      part: of next states, where the model's states are pairs and only the first part was drawn: the number of values
        of the second in tables, of entries of the first in vectors; None where they are whole.
    """

    def __init__(self, steps: Steps, states: Indices, part: int | None = None) -> None:
        self.steps, self.part = steps, part
        self.state, self.first = states(steps.observation), states(steps.first)
        self.following = states(steps.following) if part is None else np.array(steps.following)
        self.action = np.array(steps.action)
        self.reward, self.leader_reward = steps.reward, steps.leader_reward
        self.terminated, self.step = steps.terminated, steps.step

    @cached_property
    def components(self) -> np.ndarray | None:
        """What the steps logged, [N, C]; None where they logged none."""
        infos = self.steps.infos
        return np.stack([np.asarray(info["components"]) for info in infos]) if "components" in infos[0] else None

    def rewards(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Both rewards of steps, with their names in the model and in the environment."""
        yield "r_follower", "the reward", self.reward
        yield "r_leader", 'info["leader_reward"]', self.leader_reward


@singledispatch
def law_of(model: Model) -> Law:
    """The law of steps in a model.

    Raises:
      Skipped: if nothing is known of its kind.
    """
    raise Skipped(f"nothing is known of steps in a {type(model).__name__}")


class TabularLaw:
    """Steps in a table: states are numbers.

    Args:
      model: of one run.
    """

    def __init__(self, model: TabularModel) -> None:
        self.model = model

    def quantities(self, points: Points) -> dict[str, Tensor]:
        """The tables."""
        model = self.model
        return {
            "r_leader": model.r_leader,
            "r_follower": model.r_follower,
            "p": model.moves.probability,
            "ρ0": model.initial,
        }

    def rewards(self, steps: Points) -> Iterator[Finding]:
        """Each reward at its pair; where chance decides on it, its mean over the states that follow."""
        tables = {"r_follower": self.model.r_follower[0].numpy(), "r_leader": self.model.r_leader[0].numpy()}
        at = (steps.state, steps.action)
        following = np.where(self.model.structure.goes_on[0][at], steps.following, LAST)
        for name, called, paid in steps.rewards():
            off = np.abs(paid - tables[name][at]) > CLOSE * (1 + np.abs(tables[name]).max())
            if not off.any():
                continue
            deviation = _deviation_within(np.stack([*at, following], 1), paid)
            pairs = np.unique(np.stack(at, 1)[off], axis=0)
            for state, action in pairs.tolist():
                mine = (steps.state == state) & (steps.action == action)
                states, p = self._outcomes(state, action, steps.part or 1)
                mean, error = _mean_reward(states, p, following[mine], paid[mine], deviation)
                told = float(tables[name][state, action])
                sure = error == 0 or two_sided((mean - told) / error) < SHARE / len(paid)
                if not (abs(mean - told) > CLOSE * (1 + abs(mean)) and sure):  # NaN is neither
                    continue
                yield Finding(
                    f"{called} of {mine.sum()} steps from (state, action) ({state}, {action}) against "
                    f"model(θ).{name}; {len(pairs)} such pairs",
                    f"steps paid {mean:.6g} on average, the model has {told:.6g}",
                    f"pay {name}(s, b) of the state in which the step begins, at the θ in force, or mend the table",
                )
                break

    def _outcomes(self, state: int, action: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        """The states that may follow, and their probabilities; `LAST` where nothing does, whatever is seen then."""
        if self.model.structure.goes_on[0][state, action]:
            return self._row(state, action, part)
        return np.array([LAST]), np.ones(1)

    def _row(self, state: int, action: int, part: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The states that may follow, and their probabilities; of pairs the first parts."""
        moves = self.model.structure.stepping
        successor, p = moves.successor[0, state, action] // part, moves.probability[0, state, action]
        states, where = np.unique(successor[p > 0], return_inverse=True)
        return states, np.bincount(where, p[p > 0])

    def moves(self, steps: Points) -> Iterator[Finding]:
        """Chi-square over all pairs, the exact binomial of every move, and moves that cannot be."""
        on = ~steps.terminated
        pairs, which = np.unique(np.stack([steps.state[on], steps.action[on]], 1), axis=0, return_inverse=True)
        arrived, rows = steps.following[on], []
        for index, (state, action) in enumerate(pairs):
            states, p = self._row(state, action, steps.part or 1)
            reached = arrived[which.ravel() == index]
            odd = reached[~np.isin(reached, states)]
            if len(odd):
                yield Finding(
                    f"{len(reached)} steps from (state, action) ({state}, {action}) against the model's transitions",
                    f"{len(odd)} led to state {odd[0]}, of which p(s' | s, b) is 0; it may lead to {short(states)}",
                    "let `step` draw from model(θ) at the θ in force, or give the move its probability in the model",
                )
                return
            rows.append((state, action, states, p, (reached[:, None] == states).sum(0)))
        yield from self._judged(rows, "transitions", "p(s' | s, b)")

    def starts(self, first: np.ndarray) -> Iterator[Finding]:
        """Likewise."""
        initial = self.model.initial[0].numpy()
        possible = np.flatnonzero(initial > 0)
        odd = first[~np.isin(first, possible)]
        if len(odd):
            yield Finding(
                f"first states of {len(first)} episodes against model(θ).initial",
                f"{len(odd)} began in state {odd[0]}, of which ρ0 is 0; it allows {short(possible)}",
                "let `reset` draw from ρ0 of the model at the θ in force, or mend ρ0",
            )
            return
        counts = (first[:, None] == possible).sum(0)
        yield from self._judged([(-1, -1, possible, initial[possible], counts)], "first states", "ρ0(s)")

    def _judged(
        self, rows: list[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]], what: str, symbol: str
    ) -> Iterator[Finding]:
        """What of rows of counts is too unlikely under their probabilities."""
        if not rows:
            return
        counts = np.concatenate([row[4] for row in rows])
        draws = np.concatenate([np.full(len(row[4]), row[4].sum()) for row in rows])
        p = np.concatenate([row[3] for row in rows]).clip(0, 1)
        each, overall = binomial(counts, draws, p), chi_square([row[4] for row in rows], [row[3] for row in rows])
        worst = int(each.argmin())
        if each[worst] * len(each) > SHARE / 2 and overall > SHARE / 2:
            return
        row = next(row for row, end in zip(rows, np.cumsum([len(r[4]) for r in rows]), strict=True) if worst < end)
        state = np.concatenate([row[2] for row in rows])[worst]
        begins = "" if row[0] < 0 else f" from (state, action) ({row[0]}, {row[1]})"
        yield Finding(
            f"{what} of {counts.sum()} draws against {symbol} of the model (chi-square over all, level {SHARE:g})",
            f"p-value {overall:.2g}; farthest off is state {state}{begins}: {counts[worst]} of {draws[worst]} draws, "
            f"a share of {counts[worst] / draws[worst]:.4g}, while the model has {p[worst]:.4g}",
            f"draw from {symbol} of model(θ) at the θ in force, or mend the table",
        )

    def ends(self, steps: Points) -> Iterator[Finding]:
        """`terminated` where `continues` is 0."""
        over = self.model.structure.goes_on[0][steps.state, steps.action] == 0
        wrong = np.flatnonzero(over != steps.terminated)
        if len(wrong):
            k = int(wrong[0])
            yield Finding(
                f"`terminated` of {len(over)} steps against model(θ).continues",
                f"{len(wrong)} differ; at step {steps.step[k]} of an episode from (state, action) "
                f"({steps.state[k]}, {steps.action[k]}) it was {bool(steps.terminated[k])}, and `continues` is "
                f"{int(not over[k])}",
                "set `terminated` where `continues` is 0 and nowhere else; a time limit sets `truncated`",
            )

    def chance_of_repeating(self, steps: Points) -> float | None:
        """The product of all probabilities."""
        chance = float(self.model.initial[0, steps.first[0]])
        for state, action, following, over in zip(
            steps.state, steps.action, steps.following, steps.terminated, strict=True
        ):
            states, p = self._row(state, action)
            chance *= 1.0 if over else float(p[states == following].sum())
        return chance


class LinearLaw:
    """Steps in a linear-quadratic world: states are vectors.

    Args:
      model: of one run.
    """

    def __init__(self, model: LinearQuadraticModel) -> None:
        self.model = model

    def _at(self, *arrays: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(array, float))[None].expand(self.model.runs, -1, -1) for array in arrays]

    def quantities(self, points: Points) -> dict[str, Tensor]:
        """Rewards and log-densities at the points."""
        state, action, following, first = self._at(points.state, points.action, points.following, points.first)
        model = self.model
        return {
            "r_leader": model.r_leader(state, action),
            "r_follower": model.r_follower(state, action),
            "log p": model.log_arrival(state, action, following),
            "log ρ0": model.log_start(first),
        }

    def rewards(self, steps: Points) -> Iterator[Finding]:
        """Each reward at its state and action."""
        at = self._at(steps.state, steps.action)
        told = {"r_follower": self.model.r_follower(*at), "r_leader": self.model.r_leader(*at)}
        for name, called, paid in steps.rewards():
            yield from _pointwise(name, called, paid, told[name][0].numpy(), "at the state in which the step begins")

    def moves(self, steps: Points) -> Iterator[Finding]:
        """Entries with noise are uniform under their distribution function, the others equal to their mean."""
        mean = self.model.mean_next(*self._at(steps.state, steps.action))[0].numpy()
        variance = self.model.noise[0].diagonal().numpy()
        entries = mean.shape[1] if steps.part is None else steps.part
        yield from self._drawn(steps.following[:, :entries], mean[:, :entries], variance[:entries], "next states")

    def starts(self, first: np.ndarray) -> Iterator[Finding]:
        """Likewise."""
        mean = np.broadcast_to(self.model.start[0].numpy(), first.shape)
        yield from self._drawn(first, mean, self.model.initial[0].diagonal().numpy(), "first states")

    def _drawn(self, state: np.ndarray, mean: np.ndarray, variance: np.ndarray, what: str) -> Iterator[Finding]:
        bound = self.model.bound
        for entry, (x, m, v) in enumerate(zip(state.T, mean.T, variance, strict=True)):
            fine = np.abs(m) * np.finfo(float).eps < ROUNDING * max(v**0.5, 1e-9)
            if v == 0:
                off = np.abs(x - m) > CLOSE * (1 + np.abs(m))
                if off.any():
                    k = int(off.argmax())
                    yield Finding(
                        f"entry {entry} of {len(x)} {what}, which has no noise, against the model's mean",
                        f"{off.sum()} differ; one is {x[k]:.6g}, and the model has {m[k]:.6g}",
                        "step by A s + B b of model(θ) at the θ in force, or mend the matrices",
                    )
                continue
            if fine.sum() < ENOUGH:
                continue
            white = (x - m)[fine] / v**0.5
            low, high = ndtr((-bound - m[fine]) / v**0.5), ndtr((bound - m[fine]) / v**0.5)
            p = uniform((ndtr(white) - low) / (high - low))
            if p < SHARE / len(variance):
                yield Finding(
                    f"entry {entry} of {len(white)} {what} against the model's normal law (chi-square in ten cells, "
                    f"level {SHARE:g})",
                    f"p-value {p:.2g}; less the model's mean and in its standard deviations the mean is "
                    f"{white.mean():.4g} where 0 is expected, and the standard deviation {white.std():.4g} where 1 is",
                    "draw with the mean and the covariance of model(θ) at the θ in force, or mend the matrices",
                )

    def ends(self, steps: Points) -> Iterator[Finding]:
        """Never."""
        if steps.terminated.any():
            yield Finding(
                f"`terminated` of {len(steps.step)} steps; nothing but a time limit ends a linear-quadratic world",
                f"{int(steps.terminated.sum())} steps ended an episode, the first of them step "
                f"{steps.step[steps.terminated.argmax()]}",
                "leave `terminated` False; a time limit sets `truncated`",
            )

    def chance_of_repeating(self, steps: Points) -> float | None:
        """None at all where anything varies."""
        model = self.model
        return float(not (model.noise.any() or model.initial.any()))


class DrawnLeaderLaw:
    """Steps in a game of which only the leader's policy is known.

    Args:
      model: of one run.
    """

    def __init__(self, model: SimulatedModel) -> None:
        self.model = model

    def quantities(self, points: Points) -> dict[str, Tensor]:
        """log f at the points."""
        runs = self.model.runs
        arrays = {"log p": points.following, "log ρ0": points.first}
        return {
            name: self.model.log_lead(torch.from_numpy(states)[None].expand(runs, -1, -1))
            for name, states in arrays.items()
        }

    def rewards(self, steps: Points) -> Iterator[Finding]:
        """Nothing is known of them."""
        raise Skipped("the model of a game without tables or matrices holds no rewards")

    def moves(self, steps: Points) -> Iterator[Finding]:
        """The leader's actions against f: the mean of ∇ log f over them is 0, whatever f is."""
        yield from self._scored(steps.following[~steps.terminated], "actions of the leader")

    def starts(self, first: np.ndarray) -> Iterator[Finding]:
        """Likewise."""
        if len(first) >= ENOUGH:
            yield from self._scored(first, "first actions of the leader")

    def _scored(self, states: np.ndarray, what: str, directions: int = 4) -> Iterator[Finding]:
        theta = self.model.theta[:1]
        rng = np.random.default_rng(0)
        for _ in range(directions):
            direction = torch.from_numpy(rng.standard_normal(theta.shape))
            score = _along(lambda at: SimulatedModel(self.model.network, at), theta, direction, states)
            p = two_sided(z_score(score))
            if p < SHARE / directions:
                yield Finding(
                    f"{len(score)} {what} against log f(a | s; θ) (mean of its gradient in a random direction, which "
                    f"is 0 under f; level {SHARE:g})",
                    f"the mean is {score.mean():.4g} with a standard error of "
                    f"{score.std() / len(score) ** 0.5:.2g}, p-value {p:.2g}",
                    "let `network.sample` draw from the density of which `network.log_prob` is the logarithm, at the θ "
                    "in force",
                )
                return

    def ends(self, steps: Points) -> Iterator[Finding]:
        """Nothing is known of them."""
        return iter(())

    def chance_of_repeating(self, steps: Points) -> float | None:
        """None known."""
        return None


def _along(
    model: Callable[[Tensor], SimulatedModel], theta: Tensor, direction: Tensor, states: np.ndarray
) -> np.ndarray:
    """The derivative of log f at each state along a direction of θ, [N]."""
    at = torch.from_numpy(states)[None]

    def log_lead(step: Tensor) -> Tensor:
        return model(theta + step * direction).log_lead(at)[0]

    return torch.func.jvp(log_lead, (torch.zeros((), dtype=torch.float64),), (torch.ones((), dtype=torch.float64),))[
        1
    ].numpy()


class RewardLaw:
    """Steps of which both rewards are functions of components that they log.

    Args:
      model: of one run.
    """

    def __init__(self, model: RewardModel) -> None:
        self.model = model

    def _rewards(self, points: Points) -> tuple[Tensor, Tensor]:
        if points.components is None:
            raise Skipped("the steps log no components")
        each = torch.from_numpy(points.components.astype(float))[None]
        return self.model.rewards(each.expand(self.model.runs, -1, -1))

    def quantities(self, points: Points) -> dict[str, Tensor]:
        """Both rewards at the components."""
        r_follower, r_leader = self._rewards(points)
        return {"r_leader": r_leader, "r_follower": r_follower}

    def rewards(self, steps: Points) -> Iterator[Finding]:
        """Each reward at its components."""
        told = dict(zip(("r_follower", "r_leader"), self._rewards(steps), strict=True))
        for name, called, paid in steps.rewards():
            yield from _pointwise(name, called, paid, told[name][0].detach().numpy(), 'at info["components"] and θ')

    def moves(self, steps: Points) -> Iterator[Finding]:
        """Nothing is known of them."""
        raise Skipped(REWARDS_ALONE)

    def starts(self, first: np.ndarray) -> Iterator[Finding]:
        """Nothing is known of them."""
        raise Skipped(REWARDS_ALONE)

    def ends(self, steps: Points) -> Iterator[Finding]:
        """Nothing is known of them."""
        return iter(())

    def chance_of_repeating(self, steps: Points) -> float | None:
        """None known."""
        return None


law_of.register(TabularModel)(TabularLaw)
law_of.register(LinearQuadraticModel)(LinearLaw)
law_of.register(SimulatedModel)(DrawnLeaderLaw)
law_of.register(RewardModel)(RewardLaw)


def _deviation_within(outcomes: np.ndarray, paid: np.ndarray) -> float:
    """The standard deviation of rewards of the same state, action and next state [N, 3]; 0 where they tell all."""
    _, which, count = np.unique(outcomes, axis=0, return_inverse=True, return_counts=True)
    means = np.bincount(which.ravel(), paid) / count
    off = paid - means[which.ravel()]
    if np.abs(off).max() <= CLOSE * (1 + np.abs(paid).max()):
        return 0.0
    return float((off**2).sum() / max(1, len(paid) - len(count))) ** 0.5


def _mean_reward(
    states: np.ndarray, probability: np.ndarray, following: np.ndarray, paid: np.ndarray, deviation: float
) -> tuple[float, float]:
    """The mean of what was paid over the states that follow, each with its probability, and its standard error.

    NaN, which accuses nobody, where one of them was not seen, or not often enough for rewards that vary by themselves.
    """
    mean = variance = 0.0
    for state, p in zip(states, probability, strict=True):
        seen = paid[following == state]
        if len(seen) < (ENOUGH if deviation else 1):
            return float("nan"), float("inf")
        mean += p * float(seen.mean())
        variance += p**2 * max(deviation, float(seen.std()) if deviation else 0.0) ** 2 / len(seen)
    return mean, variance**0.5


def _pointwise(name: str, called: str, paid: np.ndarray, told: np.ndarray, where: str) -> Iterator[Finding]:
    """Rewards of steps that differ from what the model has at each."""
    off = np.abs(paid - told) > CLOSE * (1 + np.abs(told))
    if off.any():
        k = int(off.argmax())
        yield Finding(
            f"{called} of {len(paid)} steps against {name} of model(θ)",
            f"{int(off.sum())} differ; one step paid {paid[k]:.6g}, and the model has {told[k]:.6g}",
            f"pay {name} of the model {where}, or mend the model",
        )
