"""Differences of sampled returns as a gradient."""

from __future__ import annotations

from typing import ClassVar, Unpack

import gymnasium as gym
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_count, check_number
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.mdp import Model
from leaders.algorithms.search import SearchLeader
from leaders.estimate import Estimate
from leaders.keywords import LeaderKeywords


class ZerothOrder(SearchLeader):
    r"""Ascends a gradient made of differences of sampled returns; needs no critic, no Q_F, no derivative.

    ::

        for each of `directions`: ε ~ N(0, I);   g += (J(φ + σε) − J(φ − σε)) ε / (2σ)
        φ ← φ + Adam(g / directions)

    Both ends of a direction see the same random numbers. ``one_sided`` takes (J(φ + σε) − J(φ)) ε / σ instead, the
    zeroth-order baseline of the HPGD code.

    Args:
        env: a ``BilevelWrapper``.
        directions: random directions per outer iteration.
        sigma: σ, length of a trial step in raw coordinates.
        one_sided: compare with the present point instead of the opposite one.
        episodes: whole episodes per trial.

    References:
        Salimans, Ho, Chen, Sidor, Sutskever: arXiv:1703.03864 (antithetic evolution strategies).
    """

    name: ClassVar[str] = "zeroth-order"
    ascends: ClassVar[bool] = True

    def __init__(
        self,
        env: gym.Env,
        *,
        directions: int = 4,
        sigma: float = 0.1,
        one_sided: bool = False,
        episodes: int = 4,
        **keywords: Unpack[LeaderKeywords],
    ) -> None:
        own = {"directions": directions, "sigma": sigma, "one_sided": one_sided}
        super().__init__(env, own, keywords, episodes)
        self.directions = check_count(directions, "directions")
        self.sigma = check_number(sigma, "sigma", above=0)
        check_choice(one_sided, (True, False), "one_sided")
        self.one_sided = one_sided

    def _estimate(self, theta: Tensor, model: Model, best: BestResponse | None) -> Estimate:
        here = self._raw.flat()
        gradient, returns, steps = torch.zeros_like(here), [], []
        for _ in range(self.directions):
            direction = torch.from_numpy(self.noise.normal(here.shape[1]))
            same = self.noise.state_dict()
            for sign in (1.0, 0.0 if self.one_sided else -1.0):
                self.noise.load_state_dict(same)
                found, spent = self._trial(here + sign * self.sigma * direction, best, self.noise)
                returns.append(found)
                steps.append(spent)
            width = self.sigma * (1 if self.one_sided else 2)
            gradient += (returns[-2] - returns[-1])[:, None] / width * direction / self.directions
        named = dict(self.policy.named_parameters())
        pulls = self._raw.named(gradient)
        products = [(named[name] * pull).reshape(self.runs, -1).sum(1).double() for name, pull in pulls.items()]
        return self._outcome(returns, steps, torch.stack(products).sum(0))
