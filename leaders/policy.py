"""The module whose `forward()` is θ: made, and checked before anything is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_envs.core.autograd import with_gradients
from bilevel_envs.core.checks import check_shape
from bilevel_envs.core.noise import Noise
from bilevel_envs.wrapper import BilevelWrapper
from leaders.exact.raw_parameters import theta_of
from leaders.training.drawn_contexts import DrawnContexts, drawn_contexts, reads_context


def policy_of(
    given: object,
    env: BilevelWrapper,
    runs: int,
    noise: Noise,
    *,
    differentiable: bool,
    contexts: Sequence[int] | None = None,
) -> tuple[torch.nn.Module, DrawnContexts | None]:
    """The leader's policy, a module as given or the environment's parameterisation, and what draws its contexts.

    Args:
      given: a module, the name of one that the environment has, or None for its default.
      env: the environment.
      runs: R.
      noise: draws the first values.
      differentiable: whether θ must carry gradients back to the parameters.
      contexts: those to draw from; None for all.

    Raises:
      TypeError: if it is no module, or yields no tensor.
      ValueError: if the environment has none of that name, or if what it yields is no θ of so many runs.
    """
    policy = _made(given, env, runs, noise)
    if not isinstance(policy, torch.nn.Module):
        raise TypeError(f"`policy` must be a torch.nn.Module whose forward() is θ, got {policy!r}")
    drawn = drawn_contexts(env.problem.contexts, contexts, policy, runs)
    features = drawn.features if drawn is not None and reads_context(policy) else None
    _check_trainable(policy, differentiable, features)
    theta = theta_of(policy, "policy", differentiable=False, context=features)
    wanted = env.theta_space.shape
    check_shape(theta, wanted, "policy()")
    leading = tuple(theta.shape[: theta.ndim - len(wanted)])
    if leading not in ((runs,), ()) or (leading == () and runs > 1):
        raise ValueError(f"`policy` must yield θ of shape {[runs, *wanted]} for {runs} runs, got {list(theta.shape)}")
    with env.in_context(None if drawn is None else drawn.now):
        model_at(env, theta.detach(), "at its start")
    return policy, drawn


def model_at(env: BilevelWrapper, theta: Tensor, when: str) -> Any:
    """The model at a θ that the leader's policy yields.

    Args:
      env: the environment.
      theta: θ, ``[R, *θ.shape]``; the model carries its gradients.
      when: when it was yielded, for the message.

    Raises:
      ValueError: if the environment does not allow this θ.
    """
    try:
        return env.model(theta)
    except ValueError as error:
        if _allowed(env, theta):
            raise  # the model itself is wrong
        raise ValueError(
            f"`policy` must yield θ inside theta_space whatever its parameters are; {env.problem.title} "
            f"refuses the one {when}: {error}. Take a module that keeps to the bounds, such as Box of "
            "bilevel_envs.parameterizations"
        ) from error


def _allowed(env: BilevelWrapper, theta: Tensor) -> bool:
    """Whether a problem's own check lets θ pass."""
    try:
        env.problem.check_theta(theta.detach().numpy())
    except ValueError:
        return False
    return True


def _made(given: object, env: BilevelWrapper, runs: int, noise: Noise) -> object:
    make: Callable[..., object] | None = env.problem.parameterization
    if isinstance(given, str):
        if make is None or "name" not in inspect.signature(make).parameters:
            raise ValueError(
                f"`policy` must be None or a module: {env.problem.title} names no other parameterization, got {given!r}"
            )
        return make(runs, noise, name=given)
    if given is not None:
        return given
    try:
        made = None if make is None else make(runs, noise)
    except Exception as error:
        raise ValueError(
            f"`parameterization` of {env.problem.title} must be a method of (runs, noise) that returns a "
            f"module whose forward() is θ; for {runs} runs it raised {type(error).__name__}: {error}"
        ) from error
    if made is None:
        raise ValueError(_unparameterised(env, runs))
    return made


def _unparameterised(env: BilevelWrapper, runs: int) -> str:
    """What to do about a problem that names no module for θ."""
    name, space = env.problem.title, env.theta_space
    bounds = "" if space.is_bounded() else ", and some bounds of `theta_space` are missing"
    return (
        f"`policy` must be given, since {name} has no `parameterization(runs, noise)` that returns one{bounds}: pass "
        f"any torch.nn.Module whose forward() is θ, {[runs, *space.shape]}; or write that method in {name}, for all "
        "leaders"
    )


@with_gradients
def _check_trainable(policy: torch.nn.Module, differentiable: bool, context: Tensor | None) -> None:
    """Refuses a module that yields no θ, or one that cannot be trained."""
    if any(leaf.is_inference() for leaf in policy.parameters()):
        raise ValueError("`policy` must be made outside of torch.inference_mode(), whose tensors cannot be trained")
    theta_of(policy, "policy", differentiable=differentiable, context=context)
