"""The vector form of an environment against its scalar form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from bilevel_envs.core.foreign import configure_all
from bilevel_envs.testing.report import Finding, Skipped
from bilevel_envs.testing.subject import Subject, first_difference, same

COPIES = 3
STEPS = 60


def vector_of(subject: Subject, count: int) -> gym.vector.VectorEnv:
    """So many copies stepped as arrays, which show and take what the scalar environment does.

    Raises:
      Skipped: if there are none.
    """
    spec, limit = subject.env.spec, subject.limit
    if spec is not None and spec.vector_entry_point is not None:
        return gym.make_vec(spec, num_envs=count)
    try:
        envs = subject.inside.copies(count, limit)
    except ValueError as error:
        raise Skipped(f"it has no vector form: {error}") from error
    shown = (envs.single_observation_space, envs.single_action_space)
    if shown != (subject.env.observation_space, subject.env.action_space):
        raise Skipped("its copies show or take something else")
    return envs


def vector(subject: Subject) -> Iterator[Finding]:
    """Copy i, seeded s + i, is a scalar environment seeded s + i."""
    envs = vector_of(subject, COPIES)
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        yield Finding(
            '`metadata["autoreset_mode"]` of the vector form',
            f"it is {mode}",
            "reset in the step that ends an episode, AutoresetMode.SAME_STEP: batches are drawn that way",
        )
        return
    theta = subject.thetas.inner[0]
    actions = [subject.actions(STEPS, offset=2 + copy) for copy in range(COPIES)]
    configure_all(envs, theta)
    together = _stepped(envs, actions, subject.seed)
    envs.close()
    subject.inside.configure(theta)
    for copy in range(COPIES):
        alone = _alone(subject, actions[copy], subject.seed + copy)
        if not _close(alone, together[copy]):
            yield Finding(
                f"{STEPS} steps of copy {copy} of {COPIES} in the vector form, and of a scalar environment of seed "
                f"s + {copy} and the same θ",
                first_difference(alone, together[copy])
                .replace("in one", "in the scalar form")
                .replace("in the other", "in the vector form"),
                "let both forms draw the same numbers from the stream of the seed, at the θ of `configure`",
            )
            return


def _stepped(envs: gym.vector.VectorEnv, actions: list[list[object]], seed: int) -> list[list[object]]:
    """What each copy is told, with the last observation of an episode before the first of the next."""
    observation, _ = envs.reset(seed=seed)
    told: list[list[object]] = [[deepcopy(observation[copy])] for copy in range(COPIES)]
    for step in range(STEPS):
        chosen = np.array([actions[copy][step] for copy in range(COPIES)])
        observation, reward, terminated, truncated, infos = envs.step(chosen)
        for copy in range(COPIES):
            ended = bool(terminated[copy] or truncated[copy])
            told_info = infos["final_info"] if ended else infos
            seen = infos["final_obs"][copy] if ended else observation[copy]
            paid = cast(Mapping[str, np.ndarray], told_info)["leader_reward"][copy]
            told[copy].append((deepcopy(seen), reward[copy], bool(terminated[copy]), bool(truncated[copy]), paid))
            if ended:
                told[copy].append(deepcopy(observation[copy]))
    return told


def _alone(subject: Subject, actions: list[object], seed: int) -> list[object]:
    """What a scalar environment tells, episode after episode."""
    observation, _ = subject.env.reset(seed=seed)
    told: list[object] = [deepcopy(observation)]
    for action in actions:
        observation, reward, terminated, truncated, info = subject.env.step(deepcopy(action))
        told.append((deepcopy(observation), reward, bool(terminated), bool(truncated), info["leader_reward"]))
        if terminated or truncated:
            told.append(deepcopy(subject.env.reset()[0]))
    return told


def _close(one: list[object], other: list[object]) -> bool:
    """Whether two accounts agree to rounding."""
    return same(one, other) or (len(one) == len(other) and all(_near(a, b) for a, b in zip(one, other, strict=True)))


def _near(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(_near(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_near(one[key], other[key]) for key in one)
    a, b = np.asarray(one), np.asarray(other)
    return a.shape == b.shape and np.allclose(a.astype(float), b.astype(float), rtol=1e-6, atol=1e-9)
