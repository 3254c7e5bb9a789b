"""Covariance matrix adaptation on sampled returns."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import gymnasium as gym
import numpy as np
import torch
from cmaes import CMA
from torch import Tensor

from bilevel_envs.core.checks import check_count, check_number
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model
from leaders.algorithms.search import SearchLeader
from leaders.keywords import LeaderKeywords
from leaders.leader import Estimate


class CMAES(SearchLeader):
    """Covariance matrix adaptation in the raw coordinates, by the library ``cmaes``; one generation per iteration.

    Args:
        env: a ``BilevelWrapper``.
        sigma: first step size in raw coordinates.
        population: trials per generation; None for the library's 4 + ⌊3 ln n⌋.
        episodes: whole episodes per trial; all trials of a generation see the same random numbers.

    References:
        Hansen: The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772.
    """

    name: ClassVar[str] = "cmaes"
    without: ClassVar[frozenset[str]] = frozenset({"learning_rate", "max_grad_norm", "optimizer"})

    def __init__(
        self,
        env: gym.Env,
        *,
        sigma: float = 1.0,
        population: int | None = None,
        episodes: int = 4,
        **keywords: Unpack[LeaderKeywords],
    ) -> None:
        super().__init__(env, {"sigma": sigma, "population": population}, keywords, episodes)
        check_number(sigma, "sigma", above=0, at_most=1e6)
        if population is not None:
            population = check_count(population, "population", at_least=2)
        means = self._flat().numpy()
        if means.shape[1] < 2:
            raise ValueError(f"`policy` must have at least 2 raw parameters for CMA-ES, got {means.shape[1]}")
        self._searches = [
            CMA(mean=mean, sigma=sigma, seed=seed, population_size=population)
            for mean, seed in zip(means, self.seeds, strict=True)
        ]

    def _estimate(self, theta: Tensor, model: Model, best: BestResponse) -> Estimate:
        same = self.noise.state_dict()
        candidates, returns, steps = [], [], []
        for _ in range(self._searches[0].population_size):
            self.noise.load_state_dict(same)
            candidates.append(np.stack([search.ask() for search in self._searches]))
            found, spent = self._trial(torch.from_numpy(candidates[-1]), best, self.noise)
            returns.append(found)
            steps.append(spent)
        for run, search in enumerate(self._searches):
            tried = zip(candidates, returns, strict=True)
            search.tell([(points[run], -float(found[run])) for points, found in tried])  # it minimises
        means = torch.from_numpy(np.stack([search.mean for search in self._searches]))
        return self._outcome(returns, steps, proposal=means)

    def _critic_state(self) -> dict[str, object]:
        return {"searches": [_attributes(search) for search in self._searches]}

    def _load_critic_state(self, state: dict[str, Any]) -> None:
        for search, saved in zip(self._searches, state["searches"], strict=True):
            for name, value in saved.items():
                setattr(search, name, value.numpy().copy() if isinstance(value, Tensor) else value)
            algorithm, keys, *rest = saved["_rng"]
            search._rng = np.random.RandomState()
            search._rng.set_state((algorithm, keys.numpy(), *rest))


def _attributes(search: CMA) -> dict[str, object]:
    """A search's attributes as tensors and plain values."""

    def plain(value: object) -> object:
        if isinstance(value, np.random.RandomState):
            algorithm, keys, *rest = value.get_state()
            return (algorithm, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest)
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())
        return value.item() if isinstance(value, np.generic) else value

    return {name: plain(value) for name, value in vars(search).items()}
