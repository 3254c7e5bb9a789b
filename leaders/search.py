"""Leaders that look at sampled returns only: the floors that a hypergradient must beat at equal budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from cmaes import CMA
from torch import Tensor
from torch.func import functional_call

from bilevel_envs._checks import check_choice, check_count, check_number
from bilevel_envs.follower import BestResponse
from bilevel_envs.model import Parameterization
from bilevel_envs.noise import Noise
from bilevel_envs.tabular import TabularModel
from leaders.sampled import mean_return, whole_episode_horizon
from leaders.settings import Common, changed, given
from leaders.train import Estimate, Leader


class SearchLeader(Leader):
    """A leader that tries decisions and compares what they bring.

    Every trial asks the follower for a response and samples whole episodes; both are counted. The response at the
    present θ, which the history's exact value needs, is not the leader's and is not counted.

    Args:
      env: the environment with its follower.
      arguments: what the subclass was constructed with.
      episodes: whole episodes per trial.
    """

    differentiates: ClassVar[bool] = False
    ascends: ClassVar[bool] = False  # whether it moves by a gradient, to which a regulariser's may be added

    def __init__(self, env: gym.Env, arguments: dict[str, Any], episodes: int) -> None:
        super().__init__(env, changed(Common(), arguments), arguments)
        self.episodes = check_count(episodes, "episodes")
        self._trial_steps = 0  # of followers that learn, since the last outcome
        regularised = getattr(type(self.policy), "regulariser", None) not in (None, Parameterization.regulariser)
        if regularised and not self.ascends:
            raise ValueError(f"`policy` must have no regulariser: {type(self).__name__} compares sampled returns alone")
        self._names = [name for name, leaf in self.policy.named_parameters() if leaf.requires_grad]

    def _leaves(self) -> dict[str, Tensor]:
        named = dict(self.policy.named_parameters())
        return {name: named[name].detach() for name in self._names}

    def _flat(self) -> Tensor:
        """All raw parameters, float64 [R, n]."""
        return torch.cat([leaf.reshape(self.runs, -1).double() for leaf in self._leaves().values()], -1)

    def _unflat(self, flat: Tensor) -> dict[str, Tensor]:
        """Raw parameters by name from [R, n]."""
        leaves, parts, first = self._leaves(), {}, 0
        for name, leaf in leaves.items():
            size = leaf.numel() // self.runs
            parts[name] = flat[:, first : first + size].reshape(leaf.shape).to(leaf.dtype)
            first += size
        return parts

    def _move(self, flat: Tensor) -> None:
        """Puts the raw parameters to [R, n]."""
        named = dict(self.policy.named_parameters())
        with torch.no_grad():
            for name, part in self._unflat(flat).items():
                named[name].copy_(part)

    def _trial(self, flat: Tensor, start: BestResponse, noise: Noise) -> tuple[Tensor, Tensor]:
        """Sampled return at raw parameters [R, n], and the environment steps it took, [R] each; counts the follower's.

        A follower that learns goes on learning from trial to trial.
        """
        with torch.no_grad():
            theta = functional_call(self.policy, self._unflat(flat)).double()
        theta = theta if theta.ndim > len(self.env.theta_space.shape) else theta[None]
        best = self._response(theta, start=start)
        self._trial_steps += best.steps
        horizon = whole_episode_horizon(self.env.preferences)
        batch = self.env.rollout(theta, best, noise, rows=self.episodes, horizon=horizon, whole_episodes=True)
        return mean_return(batch, self.env.preferences.gamma_leader), batch.valid.sum((1, 2))

    def _outcome(self, returns: list[Tensor], steps: list[Tensor], surrogate: Tensor | None = None) -> Estimate:
        """The estimate of an iteration of so many trials."""
        nothing = torch.zeros(self.runs, dtype=torch.float64)
        spent, self._trial_steps = self._trial_steps, 0
        return Estimate(
            nothing if surrogate is None else surrogate,
            leader_return=torch.stack(returns).mean(0),
            env_steps=torch.stack(steps).sum(0),
            episodes=len(returns) * self.episodes,
            follower_solves=len(returns) - 1,  # the one at the present θ is not the leader's
            follower_steps=spent,
        )


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
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ; None for the environment's default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

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
        learning_rate: Any = None,
        optimizer: str | None = None,
        max_grad_norm: float | None = None,
        policy: torch.nn.Module | None = None,
        runs: int | None = None,
        seed: int | Sequence[int] = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = given(locals())
        super().__init__(env, arguments, episodes)
        self.directions = check_count(directions, "directions")
        self.sigma = check_number(sigma, "sigma", above=0)
        check_choice(one_sided, (True, False), "one_sided")
        self.one_sided = one_sided

    def _estimate(self, theta: Tensor, model: TabularModel, best: BestResponse) -> Estimate:
        here = self._flat()
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
        pulls = self._unflat(gradient)
        total = sum((named[name] * pull).reshape(self.runs, -1).sum(1).double() for name, pull in pulls.items())
        return self._outcome(returns, steps, total)  # type: ignore[arg-type]


class CMAES(SearchLeader):
    """Covariance matrix adaptation in the raw coordinates, by the library ``cmaes``; one generation per iteration.

    Args:
        env: a ``BilevelWrapper``.
        sigma: first step size in raw coordinates.
        population: trials per generation; None for the library's 4 + ⌊3 ln n⌋.
        episodes: whole episodes per trial; all trials of a generation see the same random numbers.
        policy: a module whose ``forward()`` is θ; None for the environment's default. Its start is the first mean.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        Hansen: The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772.
    """

    name: ClassVar[str] = "cmaes"

    def __init__(
        self,
        env: gym.Env,
        *,
        sigma: float = 1.0,
        population: int | None = None,
        episodes: int = 4,
        policy: torch.nn.Module | None = None,
        runs: int | None = None,
        seed: int | Sequence[int] = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = given(locals())
        super().__init__(env, arguments, episodes)
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

    def _estimate(self, theta: Tensor, model: TabularModel, best: BestResponse) -> Estimate:
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
        self._move(torch.from_numpy(np.stack([search.mean for search in self._searches])))
        return self._outcome(returns, steps)

    def _critic_state(self) -> dict[str, Any]:
        return {"searches": [_attributes(search) for search in self._searches]}

    def _load_critic_state(self, state: dict[str, Any]) -> None:
        for search, saved in zip(self._searches, state["searches"], strict=True):
            for name, value in saved.items():
                setattr(search, name, value.numpy().copy() if isinstance(value, Tensor) else value)
            algorithm, keys, *rest = saved["_rng"]
            search._rng = np.random.RandomState()
            search._rng.set_state((algorithm, keys.numpy(), *rest))


class RandomSearch(SearchLeader):
    """Draws raw parameters at random and keeps the one whose sampled return was best.

    Args:
        env: a ``BilevelWrapper``.
        scale: standard deviation of the draws around the policy's start, in raw coordinates.
        episodes: whole episodes per trial.
        policy: a module whose ``forward()`` is θ; None for the environment's default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        The random-search study of arXiv:2603.14867's thermal control is the same idea in another world.
    """

    name: ClassVar[str] = "random-search"

    def __init__(
        self,
        env: gym.Env,
        *,
        scale: float = 3.0,
        episodes: int = 4,
        policy: torch.nn.Module | None = None,
        runs: int | None = None,
        seed: int | Sequence[int] = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = given(locals())
        super().__init__(env, arguments, episodes)
        self.scale = check_number(scale, "scale", above=0)
        self._centre = self._flat()
        self._record = torch.full((self.runs,), -torch.inf, dtype=torch.float64)

    def _estimate(self, theta: Tensor, model: TabularModel, best: BestResponse) -> Estimate:
        drawn = self._centre + self.scale * torch.from_numpy(self.noise.normal(self._centre.shape[1]))
        found, steps = self._trial(drawn, best, self.noise)
        better = found > self._record
        self._move(torch.where(better[:, None], drawn, self._flat()))
        self._record = torch.where(better, found, self._record)
        return self._outcome([found], [steps])

    def _critic_state(self) -> dict[str, Any]:
        return {"centre": self._centre, "record": self._record}

    def _load_critic_state(self, state: dict[str, Any]) -> None:
        self._centre, self._record = state["centre"], state["record"]


def _attributes(search: CMA) -> dict[str, Any]:
    """A search's attributes as tensors and plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.random.RandomState):
            algorithm, keys, *rest = value.get_state()
            return (algorithm, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest)
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())
        return value.item() if isinstance(value, np.generic) else value

    return {name: plain(value) for name, value in vars(search).items()}
