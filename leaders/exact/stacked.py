"""J_L and its gradient in the raw parameters of a parameterisation, at many of them side by side."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.foreign import configurable
from bilevel_envs.core.mdp import Parameterization
from bilevel_envs.core.noise import Noise
from leaders.exact.raw_parameters import RawParameters, theta_of
from leaders.exact.solve import best_response, check_env, problem_at, surrogates, value

ENTRIES = 2**24  # of the models that are solved at once: 128 MB for each table

Make = Callable[[int, Noise], torch.nn.Module | None]


class Stacked:
    """Evaluates raw parameters [K, n], K decisions side by side.

    Args:
      env: a configurable environment with tables or a linear-quadratic model.
      parameterization: `parameterization(runs, noise)`; None for the environment's own.
      seed: of the parameterisation's first values.

    Attributes:
      policy: the parameterisation, of one run.
      default: the environment's default θ, ``[1, *θ.shape]``.
      evaluations: how many θ have been solved for.
      error: what was raised at the last θ whose follower has no optimum, or that was refused.
    """

    def __init__(self, env: gym.Env, parameterization: Make | None, seed: int) -> None:
        check_env(env)
        inside = configurable(env.unwrapped)
        self.env, self.seed, self.space, self.problem = env, seed, inside.theta_space, inside.problem
        self.default = torch.as_tensor(np.array(self.problem.default_theta, dtype=np.float64))[None]
        self.evaluations = 0
        self.error: Exception | None = None
        model, _, _ = problem_at(env, self.default)
        entries = model.entries
        self._at_once = max(1, ENTRIES // entries)
        self._make: Make = parameterization or self.problem.parameterization
        self.policy = self.parameterization(1)
        self._raw = RawParameters(self.policy, 1, self.space.shape)

    def parameterization(self, runs: int) -> torch.nn.Module:
        """A new parameterisation of so many runs.

        Raises:
          TypeError: if what is returned is no module.
          ValueError: if there is none, or if what is returned yields no θ of so many runs.
        """
        try:
            made = self._make(runs, Noise([[self.seed, run] for run in range(runs)]))
        except Exception as error:
            raise ValueError(
                f"`parameterization` must be a function of (runs, noise) that returns a module; for {runs} runs "
                f"{self._make!r} raised {type(error).__name__}: {error}"
            ) from error
        if made is None:
            raise ValueError(
                f"`parameterization` must be given, since {self.problem.title} has none of its own: "
                "pass a function of (runs, noise) that returns one of bilevel_envs.parameterizations"
            )
        if not isinstance(made, torch.nn.Module):
            raise TypeError(
                f"`parameterization` must return a torch.nn.Module whose forward() is θ, got {made!r} for {runs} runs"
            )
        self._check_runs(made, runs)
        return made

    def _check_runs(self, made: torch.nn.Module, runs: int) -> None:
        """Refuses a module that yields no θ of so many runs, or whose parameters do not lead with them."""
        theta = theta_of(made, "parameterization")
        wanted = (runs, *self.space.shape)
        if tuple(theta.shape) != wanted and not (runs == 1 and theta.shape == self.space.shape):
            raise ValueError(
                f"`parameterization` must return a module that yields θ of shape {list(wanted)} for {runs} runs, got "
                f"{list(theta.shape)}"
            )
        leaves = [leaf for leaf in made.parameters() if leaf.requires_grad]
        if not leaves or (runs > 1 and any(leaf.ndim == 0 or len(leaf) != runs for leaf in leaves)):
            raise ValueError(
                f"`parameterization` must return a module whose trainable parameters lead with the runs axis, {runs}; "
                f"those of {type(made).__name__} have shapes {[list(leaf.shape) for leaf in leaves]}"
            )

    def first_values(self, runs: int) -> Tensor:
        """The raw parameters with which so many runs begin, [R, n]."""
        return RawParameters(self.parameterization(runs), runs, self.space.shape).flat()

    def solved(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """J_L [K] and its gradient [K, n]; −∞ and 0 where θ is refused or the follower has no optimum."""
        found = [self._solved(part) for part in raw.split(self._at_once)]
        self.evaluations += len(raw)
        values, gradients = (torch.cat(parts) for parts in zip(*found, strict=True))
        return values.nan_to_num(-torch.inf, -torch.inf, -torch.inf), gradients.nan_to_num(0.0, 0.0, 0.0)

    def theta(self, raw: Tensor) -> Tensor:
        """θ ``[K, *θ.shape]`` at raw parameters."""
        return self._raw.theta(raw).detach()

    def inside(self, raw: Tensor) -> Tensor:
        """The raw parameters with those whose θ is outside of `theta_space` moved to its boundary."""
        low, high = torch.as_tensor(self.space.low), torch.as_tensor(self.space.high)
        theta = self.theta(raw)
        outside = ((theta < low) | (theta > high)).reshape(len(theta), -1).any(1)
        if not outside.any() or not isinstance(self.policy, Parameterization):
            return raw
        back = self.policy.inverse(theta.clamp(low, high))
        return raw if back is None else torch.where(outside[:, None], back.reshape(raw.shape), raw)

    def _solved(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        leaf = raw.detach().requires_grad_()
        try:
            model, preferences, _ = problem_at(self.env, self._raw.theta(leaf))
            best = best_response(model, preferences)
            values = value(model.detach(), best.policy, preferences.gamma_leader).detach().expand(len(raw))
            total = torch.stack(surrogates(model, best, preferences)).sum()
        except (RuntimeError, ValueError) as error:
            if len(raw) > 1:  # find out where
                halves = [self._solved(half) for half in raw.split((len(raw) + 1) // 2)]
                values, gradients = (torch.cat(parts) for parts in zip(*halves, strict=True))
                return values, gradients
            self.error = error
            return torch.full((1,), -torch.inf, dtype=raw.dtype), torch.zeros_like(raw)
        if not total.requires_grad:
            return values, torch.zeros_like(raw)
        return values, torch.autograd.grad(total, leaf, materialize_grads=True)[0]
