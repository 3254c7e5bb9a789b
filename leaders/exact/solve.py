"""J_L, its hypergradient and its parts, by the solver of the world's kind."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.autograd import with_gradients
from bilevel_envs.core.checks import check_count, check_number
from bilevel_envs.core.follower import BestResponse, Follower, Policy
from bilevel_envs.core.mdp import Model, Numbers, Preferences, kind_of
from bilevel_envs.core.transparent import check_transparent
from bilevel_envs.followers import Riccati, SoftValueIteration
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.world import world_of
from leaders.exact import linear_quadratic as exact_linear
from leaders.exact import tables as exact_tables
from leaders.exact.raw_parameters import theta_of


class Solver(NamedTuple):
    """What solves the models of a kind: the follower's problem, and the leader's values and surrogates."""

    planner: Callable[[Any], Follower]
    module: ModuleType


TOLERANCE = 1e-12  # of β; where rounding leaves more, `SoftValueIteration` says what it accepts


def planner_of(model: TabularModel) -> SoftValueIteration:
    """The follower's solver for a table: to rounding where elimination solves, as far as digits cost nothing."""
    return SoftValueIteration(tol=None if model.is_large else TOLERANCE)


INSTEAD = "take BCHG, or a search such as CMAES, which need no exact values"
SOLVERS = {
    "tabular": Solver(planner_of, exact_tables),
    "linear_quadratic": Solver(lambda model: Riccati(), exact_linear),
}


def objective(
    env: gym.Env,
    theta: Numbers,
    horizon: int | None = None,
    discount: float | None = None,
    *,
    policy: BoltzmannPolicy | GaussianPolicy | None = None,
) -> Any:
    """J_L(θ): the leader's expected discounted return under the follower's soft-optimal response.

    Args:
      env: a configurable environment or a `BilevelWrapper` (whose follower's β then counts).
      theta: ``[*θ.shape]``, or ``[R, *θ.shape]``.
      horizon: number of steps; None for no end. Time limits of the environment do not count.
      discount: γ in [0, 1); None for γ_L. With a horizon, 1 is allowed.
      policy: evaluate this policy of the follower's instead of its best response; a table or a Gaussian, for each run
        or one for all.

    Returns:
      J_L, a float, or an array [R].

    Raises:
      TypeError: if the environment shows neither tables nor matrices, or the policy is of another kind.
      ValueError: if θ, the horizon or the discount is out of range, or the policy has other states, actions or runs
        than the world, or is no distribution.
    """
    if isinstance(theta, Tensor):
        theta = theta.detach()
    model, preferences, single = problem_at(env, theta)
    gamma = preferences.gamma_leader if discount is None else discount
    if horizon is None:
        check_number(gamma, "discount", at_least=0, below=1, remedy="a sum without end needs a discount below 1")
    else:
        horizon = check_count(horizon, "horizon")
        check_number(gamma, "discount", at_least=0, at_most=1)
    if policy is None:
        policy = best_response(model, preferences).policy
    elif not evaluates(model, policy):
        raise TypeError(f"`policy` must be one for a {type(model).__name__}, got {type(policy).__name__}")
    else:
        world_of(model).check_policy(policy, 1 if single else np.shape(theta)[0], model)
    reached = value(model, policy, gamma, horizon)
    return float(reached[0]) if single else reached.numpy()


def parts(env: gym.Env, theta: Numbers) -> dict[str, Any]:
    """What the leader's objective is made of, before prices: discounted sums under the soft-optimal response.

    Args:
      env: an environment whose problem names its `parts`, such as building thermal control.
      theta: ``[*θ.shape]``, or ``[R, *θ.shape]``.

    Returns:
      By name, a float or an array [R] each.

    Raises:
      TypeError: if the problem names none.
    """
    model, preferences, single = problem_at(env, theta)
    problem: Any = getattr(env.unwrapped, "problem", env.unwrapped)
    if getattr(problem, "parts", None) is None:
        raise TypeError(f"`env` must have a problem that names its `parts`, got {type(problem).__name__}")
    policy = best_response(model, preferences).policy
    sums = {
        name: value(part, policy, preferences.gamma_leader)
        for name, part in problem.parts(torch.as_tensor(theta)).items()
    }
    return {name: float(total[0]) if single else total.numpy() for name, total in sums.items()}


def hypergradient(
    env: gym.Env, theta: Numbers | None = None, *, parameters: torch.nn.Module | None = None
) -> np.ndarray:
    """dJ_L/dθ, or the gradient of J_L in the raw parameters of a parameterisation.

    Args:
      env: a configurable environment or a `BilevelWrapper`.
      theta: ``[*θ.shape]``, or ``[R, *θ.shape]``; with `parameters` it may be left out, else must be what they yield.
      parameters: a module whose `forward()` is θ.

    Returns:
      An array shaped like θ; with `parameters` the flat gradient of all their entries, [n] or [R, n].
    """
    direct, guiding = hypergradient_parts(env, theta, parameters=parameters)
    return direct + guiding


@with_gradients
def hypergradient_parts(
    env: gym.Env, theta: Numbers | None = None, *, parameters: torch.nn.Module | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The direct term (the follower held fixed) and the guiding term (its reaction), each as in `hypergradient`."""
    if parameters is not None:
        if not isinstance(parameters, torch.nn.Module):
            raise TypeError(f"`parameters` must be a torch.nn.Module whose forward() is θ, got {parameters!r}")
        inner = theta_of(parameters, "parameters").detach()
        if theta is not None and not np.allclose(np.ravel(theta), inner.numpy().ravel()):
            raise ValueError("`theta` must be what `parameters` yields, or be left out; the two differ")
        theta = inner
    elif theta is None:
        raise ValueError("`theta` must be given unless `parameters` is")
    if isinstance(theta, Tensor):
        theta = theta.detach()
    problem_at(env, theta)  # refuses what is no θ
    leaf = torch.tensor(np.asarray(theta), dtype=torch.float64).requires_grad_()
    model, preferences, single = problem_at(env, leaf)
    best = best_response(model, preferences)
    parts = []
    for surrogate in surrogates(model, best, preferences):
        loss = surrogate.sum()
        (gradient,) = (
            torch.autograd.grad(loss, leaf, retain_graph=True) if loss.requires_grad else (torch.zeros_like(leaf),)
        )
        parts.append(gradient)
    if parameters is not None:
        runs = 1 if single else len(leaf)
        parts = [raw_gradient(parameters, gradient, runs) for gradient in parts]
        if runs == 1:
            parts = [part[0] for part in parts]
    return parts[0].numpy(), parts[1].numpy()


@with_gradients
def raw_gradient(parameters: torch.nn.Module, gradient: Tensor, runs: int, context: Tensor | None = None) -> Tensor:
    """Pulls dJ/dθ [R, ...] back to the raw parameters, flat: [R, n]; `context` as in `theta_of`."""
    theta = theta_of(parameters, "parameters", context=context)
    leaves = [leaf for leaf in parameters.parameters() if leaf.requires_grad]
    pulled = torch.autograd.grad(theta, leaves, gradient.reshape(theta.shape).to(theta.dtype), allow_unused=True)
    flat = [
        (torch.zeros_like(leaf) if pull is None else pull).reshape(runs, -1)
        for leaf, pull in zip(leaves, pulled, strict=True)
    ]
    return torch.cat(flat, -1)


def solves(model: object) -> bool:
    """Whether exact values are to be had of such a model."""
    return kind_of(model) in SOLVERS


def evaluates(model: object, policy: object) -> bool:
    """Whether they are to be had under such a policy."""
    return solves(model) and kind_of(policy) == kind_of(model)


def _solver(model: Model) -> Solver:
    """What solves such a model; ValueError where nothing does."""
    check_solved(model, "exact values and gradients")
    return SOLVERS[model.kind]


def check_solved(model: object, purpose: str) -> None:
    """Refuses, with a ValueError, a model of which exact values are not to be had; `purpose` is what needs them."""
    if not solves(model):
        raise ValueError(f"`env` must have tables or matrices for {purpose}; it has neither, only steps: {INSTEAD}")


def value(model: Model, policy: Policy, gamma: float, horizon: int | None = None) -> Tensor:
    """The leader's expected discounted return under a policy of the follower's, [R]."""
    if horizon is not None:
        check_count(horizon, "horizon")
    return _solver(model).module.value(model, policy, gamma, horizon)


@with_gradients
def surrogates(model: Model, best: BestResponse, preferences: Preferences) -> tuple[Tensor, Tensor]:
    """Scalars of each run, [R], whose gradients in θ are the direct and the guiding term at a best response."""
    return _solver(model).module.surrogates(model, best, preferences)


@with_gradients
def value_and_surrogates(model: Model, best: BestResponse, preferences: Preferences) -> tuple[Tensor, Tensor, Tensor]:
    """J_L at a best response and `surrogates`, [R] each, which share V_L."""
    return _solver(model).module.value_and_surrogates(model, best, preferences)


def best_response(model: Model, preferences: Preferences, start: BestResponse | None = None) -> BestResponse[Any, Any]:
    """The soft optimum to the accuracy that exact values need."""
    return _solver(model).planner(model).best_response(model, preferences, start)


def check_env(env: gym.Env) -> None:
    """Refuses what is no environment, or is wrapped so that its follower sees another world."""
    if not isinstance(env, gym.Env):
        raise TypeError(
            f"`env` must be a configurable Gymnasium environment, got {type(env).__name__}: gymnasium.make makes those "
            "that are registered, TabularEnv(problem) one of a table of your own"
        )
    check_transparent(env)


def problem_at(env: gym.Env, theta: Any) -> tuple[Any, Preferences, bool]:
    """The model at θ, whose preferences count, and whether θ came without a runs axis."""
    check_env(env)
    try:
        preferences, model = env.get_wrapper_attr("preferences"), env.get_wrapper_attr("model")
    except AttributeError:
        raise TypeError(
            f"`env` must be a configurable environment that shows its `model`, got {type(env.unwrapped).__name__}"
        ) from None
    model_at = model(theta)
    if not solves(model_at):
        raise TypeError(
            f"`env` must have a TabularModel or a LinearQuadraticModel for exact values, got "
            f"{type(model_at).__name__}: {INSTEAD}"
        )
    single = np.ndim(theta) == len(env.get_wrapper_attr("theta_space").shape)
    if not isinstance(theta, Tensor) or not theta.requires_grad:
        model_at = model_at.detach()
    return model_at, preferences, single
