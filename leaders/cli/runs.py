"""Run directories as commands read them, and the paper's curve that belongs to a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from leaders.cli.arguments import check_trusted, follower_of

if TYPE_CHECKING:
    from leaders.cli.train import Train
    from leaders.leader import Leader
    from leaders.published import Curve


class Run(NamedTuple):
    """What a run directory holds.

    Attributes:
      command: the arguments of `bilevel train`.
      leader: as its last checkpoint has it.
      fresh: the same before the first iteration.
    """

    command: Train
    leader: Leader
    fresh: Leader


def loaded(directory: Path, trust: Collection[str] = ()) -> Run:
    """The run in a directory.

    Args:
      directory: the run directory.
      trust: names of environments, leaders and followers from outside the library that may be loaded: a directory may
        come from a stranger, and importing a module runs it.

    Raises:
      ValueError: if it holds none, or names what is not trusted.
    """
    from bilevel_envs.wrapper import BilevelWrapper
    from leaders.cli.train import Train
    from leaders.experiments.run_directory import CONFIG, LEADER, read_config

    if not (directory / CONFIG).is_file() or not (directory / LEADER).is_file():
        raise ValueError(f"`directory` must hold a run with {CONFIG} and {LEADER}; {directory} does not")
    found = read_config(directory)
    check_trusted(found, trust, directory / CONFIG)
    kept = found.items()
    config: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept}
    command = Train(**{**config, "out": directory})
    env, kind, arguments = command.resolved()
    wrapped = BilevelWrapper(env, follower_of(command.follower, command.follower_args))
    return Run(command, kind.load(directory / LEADER, wrapped), kind(wrapped, **arguments))


def published_curve(command: Train, leader: Any) -> tuple[Curve | None, int]:
    """The paper's curve of a leader in the four rooms, None elsewhere; and the environment steps of its iterations."""
    from bilevel_envs.envs.four_rooms import FourRooms
    from leaders.published import four_rooms

    beta = leader.env.preferences.beta
    batch = (leader.estimator_config.batch_size if leader.looks_at_trajectories else None) or 100
    if leader.env.problem not in [FourRooms(dynamics=d, beta=beta) for d in ("published", "mismatched")]:
        return None, batch
    name = f"hpgd-{leader.variant}" if command.leader == "hpgd" else command.leader
    return four_rooms(name, beta, batch), batch
