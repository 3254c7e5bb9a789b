"""One folder, one command: a lock that goes with the process that took it, and its owner's signs of life."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from leaders.experiments.json_file import UNREADABLE, read_json
from leaders.training.history import replace_file

LOCK, OWNER = ".lock", ".owner.json"
BEAT = 20.0  # seconds between two signs of life, by which `.owner.json` is dated
SILENCE = 600.0  # seconds without one after which an owner on a file system without `flock` is taken for dead
_held: list[FileLock] = []  # of the folders that this process writes to


class Stopped(Exception):
    """A run ended before it was done; what it has learnt is saved, and `--resume` goes on from there."""


def hold(folder: Path) -> None:
    """Keeps other processes out of a folder until `release_all`, or until this one ends in whatever way.

    The lock is the file system's (`flock`), and goes with its owner; a network file system has to honour it. Where
    there is no `flock` the file itself is the lock. Then that of an owner that died on this machine, or that has given
    no sign of life for ten minutes, is taken over.

    Raises:
      BlockingIOError: if another process writes to the folder, with what is known of it.
    """
    lock = FileLock(folder / LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not isinstance(lock, SoftFileLock) or (seconds_since_last_sign(folder) or 0.0) < SILENCE:
                raise
            (folder / LOCK).unlink(missing_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"`out` must be a folder that no other command writes to; {folder} is written to by {_owner(folder)}. "
            "Wait for it, or choose another --out"
        ) from None
    _held.append(lock)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
    replace_file(folder / OWNER, json.dumps(owner).encode())
    if len(_held) == 1:
        threading.Thread(target=_beat, args=(lock,), daemon=True).start()


def seconds_since_last_sign(folder: Path) -> float | None:
    """How long ago a folder's owner gave its last sign of life, by the file system's clock; None for none."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part") as now:
            return os.stat(now.name).st_mtime - (folder / OWNER).stat().st_mtime
    except OSError:
        return None


def _beat(first: FileLock) -> None:
    """Dates `.owner.json` of every folder that is held, as long as this process holds the first."""
    pause = threading.Event()
    while not pause.wait(BEAT) and first in _held:
        for lock in tuple(_held):
            with suppress(OSError):  # the folder may be gone, or read-only by now
                os.utime(Path(lock.lock_file).parent / OWNER)


def make_folder(folder: Path) -> None:
    """Makes the folder of a run or of a study, with those above it.

    Raises:
      OSError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise type(error)(f"`out` must be a folder that can be made, got {folder} ({error.strerror})") from error


def release_all() -> None:
    """Gives up the folders that this process writes to."""
    _release_to(0)


@contextmanager
def released_afterwards() -> Iterator[None]:
    """Gives up the folders that are taken inside, and those alone: a study's own is kept from job to job."""
    before = len(_held)
    try:
        yield
    finally:
        _release_to(before)


def _release_to(count: int) -> None:
    while len(_held) > count:
        lock = _held.pop()
        with suppress(OSError):  # the folder may be gone, or read-only by now
            (Path(lock.lock_file).parent / OWNER).unlink(missing_ok=True)
        lock.release()


def is_ours(path: Path) -> bool:
    """Whether a file is a lock's, or a leftover of a write that was cut short."""
    return path.name in (LOCK, OWNER) or (path.name.startswith(".") and path.name.endswith(".part"))


def _owner(folder: Path) -> str:
    """Who writes to a folder, as far as that is known."""
    try:
        owner = read_json(folder / OWNER)
        told = f"process {owner['process']} on {owner['host']}, since {owner['since']}"
        silent = seconds_since_last_sign(folder)
        return told if silent is None else f"{told}, last sign of life {max(silent, 0.0):.0f} s ago"
    except UNREADABLE:
        return "another process"
