"""Components that a step logs: what `ConfigurableRewards` makes both rewards of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Protocol, cast

import gymnasium as gym
import numpy as np
import torch

from bilevel_envs.core.checks import lacking
from bilevel_envs.core.foreign import configure_all
from bilevel_envs.testing.report import Absent, Finding
from bilevel_envs.testing.subject import Subject, short
from bilevel_envs.worlds.declared.problem import RewardModel, RewardProblem, Step
from bilevel_envs.worlds.declared.spaces import Actions

STEPS = 60
EPISODES = 5


class _Around(Protocol):
    """A `ConfigurableRewards`, as far as it is looked at."""

    env: gym.Env


def _model(subject: Subject) -> RewardModel:
    """The rewards as functions of components; `Skipped` where there are none."""
    model = subject.model(subject.thetas.default)
    if lacking(model, ["rewards"]) or lacking(subject.problem, ["logs"]):
        raise Absent("its rewards are no functions of components")
    return cast(RewardModel, model)


def twice(subject: Subject) -> Iterator[Finding]:
    """A step that is logged twice gives the same components, and the same rewards."""
    model = _model(subject)
    logs = cast(RewardProblem, subject.problem).logs
    raw = cast(_Around, subject.env.unwrapped).env
    subject.env.reset(seed=subject.seed)
    before, _ = raw.reset(seed=subject.seed)
    found: list[np.ndarray] = []
    actions = Actions(raw.action_space, type(raw.unwrapped).__name__)
    for action in subject.actions(STEPS):
        after, reward, terminated, truncated, info = raw.step(actions.of(cast(int, action)))
        told = (before, actions.of(cast(int, action)), reward, after, info)
        one, two = (_logged(logs, *deepcopy(told)) for _ in range(2))
        if not np.array_equal(one, two):
            yield Finding(
                "components of one step, logged twice",
                f"they are {short(one)} and then {short(two)}",
                "make components of the function's five arguments alone: no random numbers, counters or values of an "
                "earlier step",
            )
            return
        found.append(one)
        before = raw.reset()[0] if terminated or truncated else after
    yield from _rewards_twice(model, np.stack(found))


def _logged(
    logs: Sequence[str] | Step | None,
    before: object,
    action: object,
    reward: object,
    after: object,
    info: Mapping[str, object],
) -> np.ndarray:
    """Components as the environment logs them."""
    if logs is None:
        return np.ravel(np.asarray(reward, float))
    if callable(logs):
        return np.ravel(np.asarray(logs(before, action, reward, after, info), float))
    return np.concatenate([np.ravel(np.asarray(info[name], float)) for name in logs])


def _rewards_twice(model: RewardModel, components: np.ndarray) -> Iterator[Finding]:
    """Rewards of the same components and θ are the same."""
    each = torch.from_numpy(components)[None]
    for name, one, two in zip(("r_follower", "r_leader"), model.rewards(each), model.rewards(each), strict=True):
        off = (one - two).abs().max()
        if off > 0:
            yield Finding(
                f"{name}(θ, components) of {len(components)} steps, computed twice",
                f"they differ by up to {float(off):.6g}",
                "make the reward of θ and components alone: whatever else it reads is not there when leaders ask again",
            )
            return


def alone(subject: Subject) -> Iterator[Finding]:
    """Components are of the step, whichever copy takes it."""
    _model(subject)
    named = cast(RewardProblem, subject.problem).logs
    theta = subject.thetas.inner[0]
    subject.inside.configure(theta)
    envs = subject.inside.copies(1)
    configure_all(envs, theta)
    for seed in range(subject.seed, subject.seed + EPISODES):
        actions = subject.actions(STEPS, offset=seed)
        logged = _episode(subject.env, actions, seed)
        for k, (expected, told) in enumerate(zip(logged, _copied_episode(envs, actions, seed), strict=False)):
            if not np.allclose(told, expected, rtol=1e-6, atol=1e-9):
                yield Finding(
                    "components of one episode in the environment, and of the same one in a copy",
                    f"at step {k} they are {short(expected)} and {short(told)}",
                    "read the function's five arguments alone: an environment that it names itself is not the one that "
                    "took the step (put what is needed into `info`)"
                    if callable(named)
                    else "give the environment what it needs as keywords of its constructor, so that copies are alike",
                )
                envs.close()
                return
    envs.close()


def _episode(env: gym.Env, actions: list[object], seed: int) -> list[np.ndarray]:
    """Components of the steps of one episode."""
    env.reset(seed=seed)
    logged = []
    for action in actions:
        _, _, terminated, truncated, info = env.step(deepcopy(action))
        logged.append(np.asarray(info["components"]))
        if terminated or truncated:
            break
    return logged


def _copied_episode(envs: gym.vector.VectorEnv, actions: list[object], seed: int) -> list[np.ndarray]:
    """Likewise, in a single copy."""
    envs.reset(seed=seed)
    logged = []
    for action in actions:
        _, _, terminated, truncated, infos = envs.step(np.array([action]))
        ended = bool(terminated[0] or truncated[0])
        told = cast(Mapping[str, np.ndarray], infos["final_info"] if ended else infos)
        logged.append(told["components"][0])
        if ended:
            break
    return logged
