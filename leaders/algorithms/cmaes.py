"""Covariance matrix adaptation on sampled returns."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_count, check_memory, check_number
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model
from leaders.algorithms.restarted_search import RestartedSearch, Settings
from leaders.algorithms.search import SearchLeader
from leaders.estimate import Estimate
from leaders.keywords import LeaderKeywords

MOST_DENSE = 200  # raw parameters up to which a full covariance matrix is adapted by default
FEWEST_PROBES = 10  # of which the best tenth is one


class CMAES(SearchLeader):
    r"""CMA-ES in the raw coordinates, by the library ``cmaes``: a search distribution N(m, σ² C) adapts to the returns.

    An iteration is λ trials, λ the population of the first search: one generation of it; a generation of a restart may
    take more iterations than one, or a part of one. θ is that of the present mean m. After a restart it is that of the
    record, the last mean of the best search that has ended, until the present search has a better score from as many
    trials; a score is the mean return of the last third of a search's generations, 10 at least.

    Args:
        env: a ``BilevelWrapper``.
        sigma: first σ in raw coordinates (Hansen 2016). Restarts begin at, and probes are, draws from N(φ₀, 9σ² I)
            around the policy's first raw parameters φ₀.
        population: λ, trials per generation of the first search; None for 4 + ⌊3 ln n⌋ with n raw parameters (Hansen
            2016, eq. 48).
        lr_adapt: whether the learning rates of m and of σ² C follow the signal-to-noise ratio of their updates (Nomura,
            Akimoto, Ono 2023); not with a separable covariance.
        restarts: "bipop" (Hansen 2009) begins again at a random point where the library's stopping criteria are met or
            returns stagnate (Hansen 2016, B.3: over the last 120 + 30 n/λ generations, or a fifth of all if that is
            more, neither the best nor the median return improves; both are compared by medians, which noise moves
            little). The population doubles, or is small, whichever kind of restart has used fewer trials: after k
            doublings a small one is λ (2^k / 2)^(U²) with σ 10^(−2U'), U and U' uniform. "none" goes on for good.
        probes: random draws whose returns are sampled first, none or at least 10; the Gaussian of the best tenth begins
            the first search, its mean and its covariance (Nomura, Watanabe, Akimoto, Ozaki, Onishi 2021).
        separable: whether C is diagonal (Ros, Hansen 2008), which needs two raw parameters; None for above 200 of them.
        episodes: whole episodes per trial; all trials of a generation see the same random numbers.

    References:
        Hansen 2016: The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772.

        Hansen 2009: Benchmarking a BI-population CMA-ES on the BBOB-2009 function testbed, GECCO 2009.

        Ros, Hansen 2008: A simple modification in CMA-ES achieving linear time and space complexity, PPSN X.

        Nomura, Watanabe, Akimoto, Ozaki, Onishi 2021: Warm starting CMA-ES for hyperparameter optimization,
        arXiv:2012.06932.

        Nomura, Akimoto, Ono 2023: CMA-ES with learning rate adaptation, GECCO 2023, arXiv:2304.03473.
    """

    name: ClassVar[str] = "cmaes"
    without: ClassVar[frozenset[str]] = frozenset(
        {"learning_rate", "learning_rate_decay", "max_grad_norm", "optimizer"}
    )

    def __init__(
        self,
        env: gym.Env,
        *,
        sigma: float = 1.0,
        population: int | None = None,
        lr_adapt: bool = False,
        restarts: str = "bipop",
        probes: int = 0,
        separable: bool | None = None,
        episodes: int = 4,
        **keywords: Unpack[LeaderKeywords],
    ) -> None:
        own = {
            "sigma": sigma,
            "population": population,
            "lr_adapt": lr_adapt,
            "restarts": restarts,
            "probes": probes,
            "separable": separable,
        }
        super().__init__(env, own, keywords, episodes)
        start = self._raw.flat().numpy()
        check_choice(lr_adapt, (True, False), "lr_adapt")
        check_choice(restarts, ("bipop", "none"), "restarts")
        settings = Settings(
            sigma=check_number(sigma, "sigma", above=0, at_most=1e6),
            population=None if population is None else check_count(population, "population", at_least=2),
            lr_adapt=lr_adapt,
            separable=_separable(separable, start.shape[1]),
            restarts=restarts == "bipop",
            probes=check_count(probes, "probes", at_least=0),
        )
        if settings.lr_adapt and settings.separable:
            raise ValueError(
                "`lr_adapt` must be False with a separable covariance, for which the library has no learning-rate "
                f"adaptation; `policy` has {start.shape[1]} raw parameters: pass separable=False or lr_adapt=False"
            )
        if 0 < settings.probes < FEWEST_PROBES:
            raise ValueError(f"`probes` must be 0 or at least {FEWEST_PROBES}, got {probes}")
        for name, count in (("population", settings.population or 0), ("probes", settings.probes)):
            check_memory(float(count) * start.size, name, count, f"points of {self.runs} runs")
        self.searches = [RestartedSearch(*one, settings) for one in zip(start, self.seeds, strict=True)]

    def _estimate(self, theta: Tensor, model: Model, best: BestResponse | None) -> Estimate:
        returns, steps = [], []
        first = self.noise.state_dict()  # of each run's present generation
        for _ in range(self.searches[0].population):
            self.noise.load_state_dict(first)
            asked = np.stack([search.ask() for search in self.searches])
            found, spent = self._trial(torch.from_numpy(asked), best, self.noise)
            after = self.noise.state_dict()
            for run, search in enumerate(self.searches):
                if search.tell(float(found[run])):
                    first[run] = after[run]
            returns.append(found)
            steps.append(spent)
        self.noise.load_state_dict(first)
        points = torch.from_numpy(np.stack([search.point for search in self.searches]))
        return self._outcome(returns, steps, proposal=points)

    def _critic_state(self) -> dict[str, object]:
        return {"searches": [search.state_dict() for search in self.searches]}

    def _load_critic_state(self, state: dict[str, Any]) -> None:
        for search, saved in zip(self.searches, state["searches"], strict=True):
            search.load_state_dict(saved)


def _separable(asked: bool | None, dimensions: int) -> bool:
    """Whether the covariance is diagonal; refuses that of a single parameter."""
    if asked is None:
        return dimensions > MOST_DENSE
    check_choice(asked, (True, False, None), "separable")
    if asked and dimensions < 2:
        raise ValueError("`separable` must be None or False for a `policy` with a single raw parameter, got True")
    return asked
