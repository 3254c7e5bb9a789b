r"""The leader's objective and its hypergradient without sampling: the truth that estimators are held against.

For a table three linear solves give the hypergradient in any dimension of θ, by the adjoint of the follower's fixed
point. With d the discounted visits of the leader and c the indicator that the episode goes on,

    ω(s, b) = d(s) g(b|s) B_L(s, b) / β + m(s) g(b|s),    m = γ_F Πᵀ-resolvent of what the first part sends on,

is the weight of ∇r_F(s, b) + γ_F c Σ ∇p V_F; the direct term weighs ∇r_L + γ_L c Σ ∇p V_L by d g, and ∇ρ0 by V_L. The
first part sums to 0 over b, because E_b[B_L] = 0, and so ∇V_F(s) never enters at s itself.

Source: Theorem 1 of arXiv:2603.14867, with the infinite sums solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs._checks import check_count, check_number
from bilevel_envs.follower import BestResponse
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.model import Preferences
from bilevel_envs.policies import BoltzmannPolicy
from bilevel_envs.tabular import TabularModel

TOLERANCE = 1e-12


def objective(
    env: gym.Env,
    theta: Any,
    horizon: int | None = None,
    discount: float | None = None,
    *,
    policy: BoltzmannPolicy | None = None,
) -> Any:
    """J_L(θ): the leader's expected discounted return under the follower's soft-optimal response.

    Args:
      env: a configurable environment or a `BilevelWrapper` (whose follower's β then counts).
      theta: ``[*θ.shape]``, or ``[R, *θ.shape]``.
      horizon: number of steps; None for no end. Time limits of the environment do not count.
      discount: γ in [0, 1); None for γ_L. With a horizon, 1 is allowed.
      policy: evaluate this policy of the follower's instead of its best response.

    Returns:
      J_L, a float, or an array [R].

    Raises:
      TypeError: if the environment shows no tables.
      ValueError: if θ, the horizon or the discount is out of range.
    """
    if isinstance(theta, Tensor):
        theta = theta.detach()
    model, preferences, single = _problem(env, theta)
    gamma = preferences.gamma_leader if discount is None else discount
    if horizon is None:
        check_number(gamma, "discount", at_least=0, below=1, remedy="a sum without end needs a discount below 1")
    else:
        check_count(horizon, "horizon")
        check_number(gamma, "discount", at_least=0, at_most=1)
    if policy is None:
        policy = best_response(model, preferences).policy
    probs = policy.probs.expand(max(model.runs, policy.probs.shape[0]), -1, -1)
    if horizon is None:
        value = start_value(model, leader_value(model, probs, gamma))
    else:
        v = torch.zeros(probs.shape[:2], dtype=probs.dtype)
        for _ in range(horizon):
            v = (probs * (model.r_leader + gamma * model.expected_next(v))).sum(-1)
        value = start_value(model, v)
    return float(value[0]) if single else value.numpy()


def hypergradient(env: gym.Env, theta: Any = None, *, parameters: torch.nn.Module | None = None) -> np.ndarray:
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


def hypergradient_parts(
    env: gym.Env, theta: Any = None, *, parameters: torch.nn.Module | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The direct term (the follower held fixed) and the guiding term (its reaction), each as in `hypergradient`."""
    if parameters is not None:
        if not isinstance(parameters, torch.nn.Module):
            raise TypeError(f"`parameters` must be a torch.nn.Module whose forward() is θ, got {parameters!r}")
        inner = parameters().detach()
        if theta is not None and not np.allclose(np.ravel(theta), inner.numpy().ravel()):
            raise ValueError("`theta` must be what `parameters` yields, or be left out; the two differ")
        theta = inner
    elif theta is None:
        raise ValueError("`theta` must be given unless `parameters` is")
    if isinstance(theta, Tensor):
        theta = theta.detach()
    _problem(env, theta)  # refuses what is no θ
    leaf = torch.tensor(np.asarray(theta), dtype=torch.float64).requires_grad_()
    model, preferences, single = _problem(env, leaf)
    best = best_response(model, preferences)
    parts = []
    for weights in table_weights(model.detach(), best, preferences):
        loss = tables_surrogate(model, weights).sum()
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


def raw_gradient(parameters: torch.nn.Module, gradient: Tensor, runs: int) -> Tensor:
    """Pulls dJ/dθ [R, ...] back to the raw parameters, flat: [R, n]."""
    theta = parameters()
    leaves = [leaf for leaf in parameters.parameters() if leaf.requires_grad]
    pulled = torch.autograd.grad(theta, leaves, gradient.reshape(theta.shape).to(theta.dtype), allow_unused=True)
    flat = [
        (torch.zeros_like(leaf) if pull is None else pull).reshape(runs, -1)
        for leaf, pull in zip(leaves, pulled, strict=True)
    ]
    return torch.cat(flat, -1)


@dataclass(frozen=True)
class TableWeights:
    """Constants that multiply the entries of a model's tables.

    Attributes:
      r_leader, r_follower: [R, S, B].
      transition: [R, S, B, S], or None where it would not be used.
      initial: [R, S].
    """

    r_leader: Tensor
    r_follower: Tensor
    transition: Tensor | None
    initial: Tensor


def table_weights(
    model: TabularModel, best: BestResponse, preferences: Preferences, *, with_transition: bool = True
) -> tuple[TableWeights, TableWeights]:
    """The weights of the direct and of the guiding term at a best response; no gradients."""
    gamma_leader, gamma_follower = preferences.gamma_leader, preferences.gamma_follower
    probs = best.policy.probs
    runs = max(model.runs, len(probs))
    probs = probs.expand(runs, -1, -1)
    v_leader = leader_value(model, probs, gamma_leader)
    q_leader = model.r_leader + gamma_leader * model.expected_next(v_leader)
    start = model.initial.expand(runs, -1)
    visits = model.resolvent(probs, gamma_leader, start, transpose=True)  # d
    pairs = visits[..., None] * probs
    sent = pairs * (q_leader - v_leader[..., None]) / preferences.beta
    kernel = model.structure.kernel
    onward = torch.einsum("rsb,rsbt->rt", sent, kernel.expand(runs, -1, -1, -1))
    inflow = model.resolvent(probs, gamma_follower, gamma_follower * onward, transpose=True)  # m
    follower = sent + inflow[..., None] * probs  # ω
    v_follower = best.v.values.expand(runs, -1)

    def arrivals(weight: Tensor, gamma: float, v: Tensor) -> Tensor | None:
        if not with_transition:
            return None
        return (gamma * model.continues * weight)[..., None] * v[:, None, None, :]

    zero = torch.zeros_like(pairs)
    return (
        TableWeights(pairs, zero, arrivals(pairs, gamma_leader, v_leader), v_leader),
        TableWeights(zero, follower, arrivals(follower, gamma_follower, v_follower), torch.zeros_like(start)),
    )


def tables_surrogate(model: TabularModel, weights: TableWeights) -> Tensor:
    """⟨weights, tables(θ)⟩ of each run, [R]; its gradient is the term that the weights stand for."""
    total = torch.zeros(len(weights.initial), dtype=weights.initial.dtype)
    for name in ("r_leader", "r_follower", "transition", "initial"):
        table, weight = getattr(model, name), getattr(weights, name)
        if table.requires_grad and weight is not None:
            total = total + (weight * table).flatten(1).sum(1)
    return total


def leader_value(model: TabularModel, probs: Tensor, gamma: float) -> Tensor:
    """V_L under a policy [R, S, B], [R, S]."""
    return model.resolvent(probs, gamma, (probs * model.r_leader).sum(-1))


def start_value(model: TabularModel, v: Tensor) -> Tensor:
    """E_ρ0[v], [R]."""
    return (model.initial * v).sum(-1)


def best_response(model: TabularModel, preferences: Preferences, start: BestResponse | None = None) -> BestResponse:
    """The soft optimum to the accuracy that exact values need."""
    return SoftValueIteration(tol=TOLERANCE).best_response(model, preferences, start)


def _problem(env: gym.Env, theta: Any) -> tuple[TabularModel, Preferences, bool]:
    """The model at θ, whose preferences count, and whether θ came without a runs axis."""
    if not isinstance(env, gym.Env):
        raise TypeError(f"`env` must be a configurable Gymnasium environment, got {type(env).__name__}")
    try:
        preferences, model = env.get_wrapper_attr("preferences"), env.get_wrapper_attr("model")
    except AttributeError:
        raise TypeError(
            f"`env` must be a configurable environment that shows its `model`, got {type(env.unwrapped).__name__}"
        ) from None
    model_at = model(theta)
    if not isinstance(model_at, TabularModel):
        raise TypeError(f"exact values need a TabularModel, got {type(model_at).__name__}")
    single = np.ndim(theta) == len(env.get_wrapper_attr("theta_space").shape)
    if not isinstance(theta, Tensor) or not theta.requires_grad:
        model_at = model_at.detach()
    return model_at, preferences, single
