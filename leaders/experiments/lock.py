"""One folder, one command: a lock that goes with the process that took it, and the heartbeat of its owner."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from leaders.experiments.json_file import UNREADABLE, read_json
from leaders.training.history import replace_file

LOCK, OWNER = ".lock", ".owner.json"
BEAT = 20.0  # seconds between two heartbeats, by which `.owner.json` is dated
SILENCE = 600.0  # seconds without one after which an owner on a file system without `flock` is taken for dead


@dataclass(frozen=True, eq=False)
class Held:
    """A folder that this process writes to.

    Attributes:
      lock: its lock.
      owner: what `.owner.json` says of this process.
    """

    lock: FileLock
    owner: bytes

    @property
    def folder(self) -> Path:
        """The folder."""
        return Path(self.lock.lock_file).parent

    @property
    def taken_over(self) -> bool:
        """Whether another process took this one for dead, which only happens where there is no `flock`."""
        if not isinstance(self.lock, SoftFileLock):
            return False
        try:
            return (self.folder / OWNER).read_bytes() != self.owner
        except OSError:  # the other process may be done; of a folder that is gone, whoever writes to it will be told
            return self.folder.exists()


_held: list[Held] = []


class Stopped(Exception):
    """A run ended before it was done; what it has learnt is saved, and `--resume` goes on from there."""


def hold(folder: Path) -> None:
    """Keeps other processes out of a folder until `release_all`, or until this one ends in whatever way.

    The lock is the file system's (`flock`), and goes with its owner; a network file system has to honour it. Where
    there is no `flock` the file itself is the lock. Then that of an owner that died on this machine, or whose heartbeat
    has stopped for ten minutes, is taken over.

    Raises:
      BlockingIOError: if another process writes to the folder, with what is known of it.
    """
    lock = FileLock(folder / LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not isinstance(lock, SoftFileLock) or not _set_aside(folder):
                raise
            lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"`out` must be a folder that no other command writes to; {folder} is written to by {_owner(folder)}. "
            "Wait for it, or choose another --out"
        ) from None
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
    held = Held(lock, json.dumps(owner).encode())
    _held.append(held)
    replace_file(folder / OWNER, held.owner)
    if len(_held) == 1:
        threading.Thread(target=_beat, args=(held,), daemon=True).start()


def seconds_since_heartbeat(folder: Path) -> float | None:
    """How long ago a folder's owner dated `.owner.json`, by the file system's clock; of one without, its lock's age."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part") as now:
            dated = OWNER if (folder / OWNER).exists() else LOCK
            return os.stat(now.name).st_mtime - (folder / dated).stat().st_mtime
    except OSError:
        return None


def check_held(folder: Path) -> None:
    """Refuses to write to a folder that another process has taken over.

    Raises:
      BlockingIOError: if it has, because this one gave no heartbeat for ten minutes.
    """
    if any(held.taken_over for held in _held if held.folder == folder):
        raise BlockingIOError(
            f"`out` must be a folder that no other command writes to; {folder} was taken over by {_owner(folder)}, "
            f"because this process gave no heartbeat for {SILENCE / 60:.0f} minutes: it ends, and the other one goes on"
        )


def _set_aside(folder: Path) -> bool:
    """Whether the lock of an owner that has been silent for too long could be moved out of the way."""
    silent, aside = seconds_since_heartbeat(folder), folder / f".{os.getpid()}.part"
    if silent is None or silent < SILENCE:
        return False
    try:
        stale = (folder / LOCK).stat().st_ino
        os.rename(folder / LOCK, aside)
        if aside.stat().st_ino != stale:  # another process was faster: this is its lock
            os.rename(aside, folder / LOCK)
            return False
        aside.unlink()
    except FileNotFoundError:  # likewise
        return False
    return True


def _beat(first: Held) -> None:
    """Dates `.owner.json` of every folder that is held, as long as this process holds the first."""
    pause = threading.Event()
    while not pause.wait(BEAT) and first in _held:
        for held in tuple(_held):
            with suppress(OSError):  # the folder may be gone, or read-only by now
                if not held.taken_over:
                    os.utime(held.folder / OWNER)


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
        held = _held.pop()
        with suppress(OSError):  # the folder may be gone, or read-only by now
            if not held.taken_over:
                (held.folder / OWNER).unlink(missing_ok=True)
        held.lock.release()  # which leaves the lock of another process alone


def is_ours(path: Path) -> bool:
    """Whether a file is a lock's, or a leftover of a write that was cut short."""
    return path.name in (LOCK, OWNER) or (path.name.startswith(".") and path.name.endswith(".part"))


def _owner(folder: Path) -> str:
    """Who writes to a folder, as far as that is known."""
    try:
        owner = read_json(folder / OWNER)
        told = f"process {owner['process']} on {owner['host']}, since {owner['since']}"
        silent = seconds_since_heartbeat(folder)
        return told if silent is None else f"{told}, last heartbeat {max(silent, 0.0):.0f} s ago"
    except UNREADABLE:
        return "another process"
