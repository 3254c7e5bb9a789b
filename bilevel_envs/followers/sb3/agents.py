"""Agents of Stable-Baselines3: found, made, seeded, scheduled, checked and kept."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.follower import FollowerError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

NAMES = ("SAC", "SoftDQN", "DQN", "PPO", "A2C")
SCHEDULES = ("lr_schedule", "clip_range", "clip_range_vf", "exploration_schedule")  # functions of the progress left


def class_of(algorithm: str | type) -> type[BaseAlgorithm]:
    """The class that a name means, or the class itself.

    Raises:
      ValueError: if there is none of that name.
      TypeError: if it is no algorithm of SB3's.
    """
    base = import_module("stable_baselines3.common.base_class").BaseAlgorithm
    if isinstance(algorithm, str):
        check_choice(algorithm, NAMES, "algorithm")
        home = "bilevel_envs.followers.sb3.soft_dqn" if algorithm == "SoftDQN" else "stable_baselines3"
        return getattr(import_module(home), algorithm)
    if not isinstance(algorithm, type) or not issubclass(algorithm, base):
        raise TypeError(f"`algorithm` must be a name or a subclass of SB3's BaseAlgorithm, got {algorithm!r}")
    return algorithm


def kind_of(algorithm: type) -> str:
    """Which of the known algorithms a class is one of, or "other"."""
    names = [one.__name__ for one in algorithm.__mro__]
    return next((name for name in NAMES if name in names), "other")


def arguments_of(algorithm: type) -> set[str]:
    """What the constructors of an algorithm and its bases take."""
    own = [vars(cls)["__init__"] for cls in algorithm.__mro__ if "__init__" in vars(cls) and cls is not object]
    return {name for init in own for name in inspect.signature(init).parameters} - {"self", "kwargs", "args"}


def load_networks(agent: BaseAlgorithm, model_file: Path) -> None:
    """Gives an agent the networks in a zip of SB3's ``save``.

    Raises:
      ValueError: if they do not fit.
    """
    try:
        read = import_module("stable_baselines3.common.save_util").load_from_zip_file
        weights = read(model_file, load_data=False, device="cpu")[1]  # not what is pickled beside them
        agent.policy.load_state_dict(weights["policy"])
    except Exception as error:  # damaged bytes make readers raise all kinds
        raise ValueError(
            f"`model_file` must hold networks like those of this {type(agent).__name__}; those in "
            f"{model_file} do not fit ({error})"
        ) from error


@contextmanager
def seeded(*entropy: int) -> Iterator[int]:
    """SB3 draws from global streams: they are seeded, lent, and put back; one thread, for networks are small."""
    seed, *others = (int(x) for x in np.random.SeedSequence(entropy).generate_state(3) % (2**31))
    before, drawn, threads = np.random.get_state(), random.getstate(), torch.get_num_threads()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(others[0])  # noqa: NPY002
            random.seed(others[1])
            yield seed
    finally:
        np.random.set_state(before)  # noqa: NPY002
        random.setstate(drawn)
        torch.set_num_threads(threads)


@contextmanager
def scheduled(agent: Any, begun: int, whole: int, waits_for: int | None) -> Iterator[None]:
    """Lets SB3's schedules run once from one step to another.

    Args:
      agent: who learns. Its attributes in SCHEDULES are wrapped meanwhile.
      begun: its number of steps where schedules begin.
      whole: steps until they end.
      waits_for: steps by the policy it has before it learns on, for a buffer that was emptied; None for SB3's way,
        which is to act at random for `learning_starts` steps.
    """

    schedules = {name: vars(agent)[name] for name in SCHEDULES if callable(vars(agent).get(name))}

    def shifted(schedule: Callable[[float], float]) -> Callable[[float], float]:
        return lambda _: schedule(max(0.0, 1.0 - (agent.num_timesteps - begun) / whole))

    vars(agent).update({name: shifted(schedule) for name, schedule in schedules.items()})
    waits = vars(agent).get("learning_starts")
    acts_at_once = waits_for is not None and waits is not None
    if acts_at_once:
        agent.learning_starts = agent.num_timesteps + min(agent.batch_size, waits_for)
        agent.collect_rollouts = partial(_collected_by_the_policy, agent.collect_rollouts)
    try:
        yield
    finally:
        vars(agent).update(schedules)
        if acts_at_once:
            del agent.collect_rollouts
            agent.learning_starts = waits


def _collected_by_the_policy(collect: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """SB3's `collect_rollouts` without random actions at the start."""
    return collect(*arguments, **{**options, "learning_starts": 0})


@contextmanager
def logged(agent: BaseAlgorithm, fresh: bool) -> Iterator[None]:
    """Gives an agent the logger that its own settings ask for, and takes it away again: it may hold open files."""
    utils = import_module("stable_baselines3.common.utils")
    silent = import_module("stable_baselines3.common.logger").Logger(None, [])
    agent.set_logger(utils.configure_logger(agent.verbose, agent.tensorboard_log, type(agent).__name__, fresh))
    try:
        yield
    finally:
        agent.logger.close()
        agent.set_logger(silent)


def check_networks(agent: BaseAlgorithm, run: int) -> None:
    """Raises a FollowerError that names what is not finite."""
    for name, weights in agent.get_parameters().items():
        for key, tensor in weights.items() if isinstance(weights, dict) else ():
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                raise FollowerError(f"training of run {run} left {name}.{key} with NaN or infinite entries")


def stores(agent: BaseAlgorithm) -> TypeGuard[OffPolicyAlgorithm]:
    """Whether it has a replay buffer."""
    return getattr(agent, "replay_buffer", None) is not None
