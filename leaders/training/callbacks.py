"""What a user sees of a leader while it learns: a bar, and callbacks of SB3's kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress
    from stable_baselines3.common.callbacks import BaseCallback

    from leaders.training.tracker import Tracker


@dataclass
class ProgressBar:
    """A progress bar that shows the leader's value; or nothing."""

    shown: bool
    total: int
    _bar: Progress | None = field(default=None, init=False)

    def __enter__(self) -> Callable[[float], None]:
        if not self.shown:
            return lambda value: None
        from rich import progress

        value = progress.TextColumn("leader value {task.fields[value]:.4f}")
        bar = self._bar = progress.Progress(
            progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn(), value
        )
        task = bar.add_task("learn", total=self.total, value=float("nan"))
        bar.start()
        return lambda value: bar.update(task, advance=1, value=value)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def as_callback(callback: BaseCallback | Callable | list | None) -> BaseCallback:
    """One callback of what may be one, a function, a list of either, or None."""
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback

    if callback is None:
        return CallbackList([])
    if isinstance(callback, list):
        return CallbackList([as_callback(one) for one in callback])
    if not isinstance(callback, BaseCallback) and not callable(callback):
        raise TypeError(f"`callback` must be an SB3 callback, a function, or a list of them, got {callback!r}")
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)


@contextmanager
def told_of_errors(callback: BaseCallback) -> Iterator[None]:
    """Tells the trackers in a callback which exception ends the training; SB3's callbacks have no hook for it."""
    try:
        yield
    except BaseException as error:
        for tracker in _trackers_in(callback):
            tracker.on_training_error(error)
        raise


def _trackers_in(callback: BaseCallback) -> Iterator[Tracker]:
    from stable_baselines3.common.callbacks import CallbackList

    from leaders.training.tracker import Tracker

    if isinstance(callback, CallbackList):
        for one in callback.callbacks:
            yield from _trackers_in(one)
    elif isinstance(callback, Tracker):
        yield callback
