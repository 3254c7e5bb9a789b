"""CMA-ES on noisy values, restarted: one run's search, one trial at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import torch
from cmaes import CMA, SepCMA, get_warm_start_mgd
from torch import Tensor

Optimiser: TypeAlias = CMA | SepCMA

POINTS, GENERATIONS = 2, 3  # what a run's streams are drawn for; 0 and 1 are other sub-streams of its seed
SCORED = 10  # generations, at least, whose returns make up a search's score; a third of all if that is more
MOST_FULL = 150  # dimensions above which the determinant in `get_warm_start_mgd` leaves the range of float64
SPREAD = 3.0  # in first step sizes
STAGNATION = 20_000  # generations that the stagnation test looks back at most


@dataclass(frozen=True)
class Settings:
    """The settings of a search; see `leaders.algorithms.cmaes.CMAES`."""

    sigma: float
    population: int | None = None
    lr_adapt: bool = False
    separable: bool = False
    restarts: bool = True
    probes: int = 0

    @property
    def spread(self) -> float:
        """Standard deviation of probes and of the points at which restarts begin."""
        return SPREAD * self.sigma


@dataclass(frozen=True)
class Record:
    """Where the best search so far has ended.

    Attributes:
      score: mean return of its last generations.
      trials: how many returns that is the mean of.
      mean: of its last distribution, [n].
    """

    score: float
    trials: int
    mean: np.ndarray


class RestartedSearch:
    """Probes, then CMA-ES with BIPOP restarts, in n raw coordinates of one run; it maximises.

    ::

        while True:
            complete = search.tell(value_of(search.ask()))

    Everything random depends on the seed, the number of the restart and that of the generation alone, so that no
    generator has to be saved.

    Args:
      start: mean of the first search distribution, [n].
      seed: of the run.
      settings: how it searches.
    """

    def __init__(self, start: np.ndarray, seed: int, settings: Settings) -> None:
        self._start, self._seed, self._settings = start, seed, settings
        self._restart = self._doublings = 0
        self._small = False  # whether the present restart is one of those with a small population
        self._spent = {"large": 0, "small": 0}  # trials of restarts; the first search is neither's
        self._best: list[float] = []  # return of each generation's best candidate, since the restart
        self._median: list[float] = []
        self._mean: list[float] = []
        self.record: Record | None = None
        self._probing = settings.probes > 0
        self._optimiser = self._made(start, settings.sigma, settings.population)
        self.population: int = self._optimiser.population_size
        self._values: list[float] = []
        self._asked = self._probes() if self._probing else self._generation()

    # Asking and telling ---------------------------------------------------------------------------------------

    def ask(self) -> np.ndarray:
        """The next candidate, [n]."""
        return self._asked[len(self._values)]

    def tell(self, value: float) -> bool:
        """Takes the value of the candidate asked last; whether its generation, or the set of probes, is complete."""
        self._values.append(value)
        if len(self._values) < len(self._asked):
            return False
        if self._probing:
            self._optimiser, self._probing = self._warm_started(), False
        else:
            self._update()
        self._asked, self._values = self._generation(), []
        return True

    @property
    def point(self) -> np.ndarray:
        """Where the search is, [n]: the present mean, or the record's until the present score beats it.

        The present score counts from as many trials as the record's, lest a few lucky returns be enough.
        """
        present, record = self._present(), self.record
        behind = record is not None and (present.trials < record.trials or present.score < record.score)
        return record.mean if record is not None and behind else present.mean

    def _update(self) -> None:
        values, optimiser = np.array(self._values), self._optimiser
        with np.errstate(all="ignore"):  # of distributions that have collapsed, which the stopping rules find
            optimiser.tell([(x, -float(value)) for x, value in zip(self._asked, values, strict=True)])  # it minimises
        self._best.append(float(values.max()))
        self._median.append(float(np.median(values)))
        self._mean.append(float(values.mean()))
        if self._restart:
            self._spent["small" if self._small else "large"] += len(values)
        if self._settings.restarts and self._stops():
            self._optimiser = self._restarted()
        else:
            self._optimiser = _optimiser_from(_optimiser_state(optimiser))  # as a loaded one would go on, to the bit

    def _present(self) -> Record:
        """What the present search would leave as a record; its score is −∞ before there are enough generations."""
        last = max(SCORED, len(self._mean) // 3)
        score = math.fsum(self._mean[-last:]) / last if last <= len(self._mean) else -math.inf
        return Record(score, last * self._optimiser.population_size, self._optimiser.mean.copy())

    # Restarts -------------------------------------------------------------------------------------------------

    def _stops(self) -> bool:
        with np.errstate(all="ignore"):
            return not np.isfinite(self._optimiser.mean).all() or self._optimiser.should_stop() or self._stagnates()

    def _stagnates(self) -> bool:
        """Whether neither best nor median returns improve; medians over many generations, so that noise matters little.

        (Hansen, arXiv:1604.00772, B.3.)
        """
        least = 120 + math.ceil(30 * len(self._start) / self._optimiser.population_size)
        back = min(max(least, len(self._best) // 5), STAGNATION)
        if len(self._best) < back:
            return False
        share = max(1, math.ceil(0.3 * back))
        histories = (self._best[-back:], self._median[-back:])
        return all(np.median(values[-share:]) <= np.median(values[:share]) for values in histories)

    def _restarted(self) -> Optimiser:
        """A search from a random point; of the two kinds of restart the one that has used fewer trials."""
        present = self._present()
        record = self.record or Record(-math.inf, 0, present.mean)
        if np.isfinite(present.mean).all() and (present.score, present.trials) > (record.score, record.trials):
            self.record = present
        self._best, self._median, self._mean = [], [], []
        self._restart += 1
        rng = np.random.default_rng([self._seed, POINTS, self._restart])
        mean = self._start + self._settings.spread * rng.standard_normal(len(self._start))
        self._small = self._doublings > 0 and self._spent["small"] < self._spent["large"]
        population, sigma = self.population, self._settings.sigma
        if self._small:
            u, v = rng.random(2)
            population = math.floor(population * (2**self._doublings / 2) ** (u**2))
            sigma *= 10 ** (-2 * v)
        else:
            self._doublings += 1
            population *= 2**self._doublings
        return self._made(mean, sigma, population)

    def _made(self, mean: np.ndarray, sigma: float, population: int | None, cov: np.ndarray | None = None) -> Optimiser:
        if self._settings.separable:
            return SepCMA(mean=mean.copy(), sigma=sigma, population_size=population)
        lr_adapt = self._settings.lr_adapt
        with np.errstate(
            divide="ignore"
        ):  # of a population of 2 or 3, whose rank-μ rate is 0, it takes 1/0 in a minimum
            return CMA(mean=mean.copy(), sigma=sigma, population_size=population, cov=cov, lr_adapt=lr_adapt)

    def _generation(self) -> np.ndarray:
        """All candidates of the next generation, [λ, n]."""
        rng = np.random.default_rng([self._seed, GENERATIONS, self._restart, self._optimiser.generation])
        self._optimiser.reseed_rng(int(rng.integers(2**32)))
        return np.stack([self._optimiser.ask() for _ in range(self._optimiser.population_size)])

    # Probes ---------------------------------------------------------------------------------------------------

    def _probes(self) -> np.ndarray:
        rng = np.random.default_rng([self._seed, POINTS, 0])
        return self._start + self._settings.spread * rng.standard_normal((self._settings.probes, len(self._start)))

    def _warm_started(self) -> Optimiser:
        """A search that begins as the Gaussian of the best tenth of the probes."""
        units = (self._asked - self._start) / self._settings.spread  # the method's prior has a deviation of 0.1
        losses = [-value for value in self._values]
        n, cov = len(self._start), None
        if self._settings.separable or n > MOST_FULL:
            axes = [get_warm_start_mgd(list(zip(units[:, [j]], losses, strict=True))) for j in range(n)]
            mean, deviations = np.array([axis[0][0] for axis in axes]), np.array([axis[1] for axis in axes])
            sigma = float(np.exp(np.log(deviations).mean()))
            if not self._settings.separable:
                cov = np.diag((deviations / sigma) ** 2)
        else:
            mean, sigma, cov = get_warm_start_mgd(list(zip(units, losses, strict=True)))
        mean, sigma = self._start + self._settings.spread * mean, self._settings.spread * sigma
        return self._made(mean, sigma, self._settings.population, None if self._settings.separable else cov)

    # Saving ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, object]:
        """All that changes, as tensors and plain values."""
        record = self.record
        return {
            "optimiser": _optimiser_state(self._optimiser),
            "asked": torch.from_numpy(self._asked.copy()),
            "record": None if record is None else (record.score, record.trials, torch.from_numpy(record.mean.copy())),
            "start": torch.from_numpy(self._start.copy()),
            **{name: _copied(getattr(self, f"_{name}")) for name in PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Goes on where `state_dict` was taken."""
        optimiser = cast("Mapping[str, object]", state["optimiser"])
        record = cast("tuple[float, int, Tensor] | None", state["record"])
        self._optimiser = _optimiser_from(optimiser)
        self._asked, self._start = (cast("Tensor", state[name]).numpy().copy() for name in ("asked", "start"))
        self.record = None if record is None else Record(record[0], record[1], record[2].numpy().copy())
        for name in PLAIN:
            setattr(self, f"_{name}", _copied(state[name]))


PLAIN = (
    "values", "probing", "restart", "doublings", "small", "spent", "best", "median", "mean"
)  # fmt: skip


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, (list, dict)) else value


def _optimiser_state(optimiser: Optimiser) -> dict[str, object]:
    """What the library pickles of an optimiser, which leaves out its generator, with tensors for arrays."""
    pickled = {
        name: torch.from_numpy(np.array(value)) if isinstance(value, (np.ndarray, np.generic)) else value
        for name, value in optimiser.__getstate__().items()
    }
    return {"separable": isinstance(optimiser, SepCMA), "pickled": pickled}


def _optimiser_from(state: Mapping[str, object]) -> Optimiser:
    """The optimiser that was pickled; `reseed_rng` comes before its next candidate."""
    kind = SepCMA if state["separable"] else CMA
    optimiser: Optimiser = kind.__new__(kind)
    pickled = cast("Mapping[str, object]", state["pickled"])
    optimiser.__setstate__(
        {name: value.numpy().copy()[()] if isinstance(value, Tensor) else value for name, value in pickled.items()}
    )
    return optimiser
