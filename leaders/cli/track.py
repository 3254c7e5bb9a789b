"""Trackers by their names on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bilevel_envs.core.checks import check_choice
from leaders.training.tracker_notes import NOTES, TRACKERS

if TYPE_CHECKING:
    from leaders.leader import Leader
    from leaders.training.tracker import Tracker


def tracker_names(track: str | None) -> list[str]:
    """The names in `track`, separated by commas.

    Raises:
      ValueError: if one is no tracker, or is named twice.
    """
    names = [] if track is None else [name.strip() for name in track.split(",")]
    for name in names:
        check_choice(name, TRACKERS, "track")
    if len(set(names)) < len(names):
        raise ValueError(f"`track` must name each tracker once, got {track!r}")
    return names


def trackers_of(track: str | None, folder: Path, config: Mapping[str, object]) -> list[Tracker]:
    """A callback for each tracker that is named.

    Args:
      track: names, separated by commas; None for no tracker.
      folder: the run directory.
      config: arguments of `bilevel train`; those that a resumed run may change are left out.

    Raises:
      ImportError: if its package is not installed.
    """
    parameters = {name: value for name, value in config.items() if name != "iterations" and value != []}
    found: list[Tracker] = []
    for name in tracker_names(track):
        if name == "mlflow":
            from leaders.training.mlflow_callback import MLflowCallback

            found.append(MLflowCallback(folder=folder, name=folder.name, parameters=parameters))
        else:
            from leaders.training.wandb_callback import WandbCallback

            found.append(WandbCallback(folder=folder, name=folder.name, parameters=parameters))
    return found


def log_folder(trackers: list[Tracker], leader: Leader, folder: Path, config: Mapping[str, object]) -> None:
    """Copies a run's final files into its trackers, and what came of it.

    The result is made for them apart: a run whose folder has one is whole, its trackers included.
    """
    from leaders.experiments.results import RESULT, write_result

    if not trackers:
        return
    with TemporaryDirectory() as apart:
        result = Path(apart) / RESULT
        write_result(leader, config, result)
        kept = sorted(one for one in folder.iterdir() if one.name not in NOTES and not one.name.startswith("."))
        for tracker in trackers:
            tracker.log_files([*kept, result])
