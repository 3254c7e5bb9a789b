"""The file in which a leader is kept."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilevel_envs.core.checks import check_memory, check_path, lacking
from bilevel_envs.core.follower import BestResponse, FollowerError, saves
from bilevel_envs.core.mdp import Model
from bilevel_envs.worlds.responses import check_response, response_from
from leaders.training.history import replace_file
from leaders.training.task import Task, differences

FORMAT = 5
PARTS = {"leader": str, "arguments": dict, "task": dict, "noise": list, "iterations": int}  # of leader.json
UNREADABLE = Exception  # damaged bytes make readers raise all kinds: of zip files, zlib, pickles, arrays, memory, ...


class Damaged(ValueError):
    """A file is none that `save` wrote, or not any more."""


class AnotherTask(ValueError):
    """A leader was saved in another task than it is to go on in."""


@dataclass
class Rows:
    """The rows of a history in a file beside the checkpoint, to which a checkpoint adds those that are new.

    The file may hold more than a checkpoint counts: what was added after it, or a part of a row, by a run that was
    killed. The checkpoint tells how many are its own, and their checksum.

    Attributes:
      path: the file.
      count: rows in it that this process has written.
      checksum: CRC-32 of them.
    """

    path: Path
    count: int = 0
    checksum: int = 0

    def add(self, history: np.ndarray) -> dict[str, object]:
        """Adds the rows [iterations, columns, R] that are new; what the checkpoint says of them."""
        row = history[:1].nbytes
        new = np.ascontiguousarray(history[self.count :]).tobytes()
        if self.count:
            with open(self.path, "r+b") as file:
                file.truncate(self.count * row)
                file.seek(self.count * row)
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
        else:
            replace_file(self.path, new)  # the rows there may belong to the checkpoint that this process began from
        self.count, self.checksum = len(history), zlib.crc32(new, self.checksum)
        return {"shape": list(history.shape), "checksum": self.checksum}


def rows_beside(path: str | Path) -> Path:
    """Where the rows of a checkpoint's history are, if they are not in it."""
    return Path(path).with_suffix(".history")


def write(
    path: str | Path,
    described: Mapping[str, object],
    state: Mapping[str, object],
    history: np.ndarray,
    rows: Rows | None = None,
) -> None:
    """Writes a zip file; replaced at once, never half-written.

    Args:
      path: where.
      described: what JSON can hold.
      state: tensors, as `torch.save` takes them.
      history: the rows so far.
      rows: the file beside it to which those that are new are added; None to put all of them into the zip file.
    """
    apart = {} if rows is None else {"history": rows.add(history)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("leader.json", json.dumps({"format": FORMAT, **described, **apart}, indent=1))
        archive.writestr("state.pt", _bytes(lambda file: torch.save(state, file)))
        if rows is None:
            archive.writestr("history.npy", _bytes(lambda file: np.save(file, history)))
    replace_file(path, buffer.getvalue())


def _read_rows(path: Path, told: Mapping[str, Any]) -> np.ndarray:
    """The rows that a checkpoint counts."""
    shape = [int(size) for size in told["shape"]]
    if len(shape) != 3 or min(shape) < 0:
        raise ValueError(f"its history has the shape {shape}")
    size = 8 * int(np.prod(shape, dtype=object))
    if not path.is_file() or path.stat().st_size < size:
        raise ValueError(f"{path.name}, the history that belongs to it, is missing or cut short")
    with open(path, "rb") as file:
        content = file.read(size)
    if zlib.crc32(content) != told["checksum"]:
        raise ValueError(f"{path.name}, the history that belongs to it, is another's or damaged")
    return np.frombuffer(content).reshape(shape).copy()


def _check_size(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses a zip file whose members would not fit into memory, before any is read."""
    check_memory(sum(part.file_size for part in archive.infolist()) / 8, "path", path, "what it unpacks to")


@contextmanager
def arrays_in(path: Path) -> Iterator[Any]:
    """The arrays of an .npz file, by name; nothing in it is unpickled, nor read where it is larger than memory."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        _check_size(archive, path)
        file.seek(0)
        with np.load(file, allow_pickle=False) as data:
            yield data


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, object], np.ndarray]:
    """What `write` was given.

    Raises:
      FileNotFoundError: if there is no such file.
      IsADirectoryError: if it is a folder.
      TypeError: if it is no path.
      ValueError: if it is none of ours, damaged, or of another format.
    """
    path = check_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file that `save` wrote, got the folder {path}")
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a file that `save` wrote; there is none at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(archive, path)
            described = json.loads(archive.read("leader.json"))
            state = torch.load(io.BytesIO(archive.read("state.pt")), weights_only=True)
            if "history" in described:
                history = _read_rows(rows_beside(path), described["history"])
            else:
                history = np.load(io.BytesIO(archive.read("history.npy")), allow_pickle=False)
        if not isinstance(described, dict) or not isinstance(history, np.ndarray):
            raise ValueError("its parts are of another kind")
    except UNREADABLE as error:
        raise Damaged(f"`path` must be a file that `save` wrote; {path} is not, or is damaged ({error})") from error
    if described.get("format") != FORMAT:
        raise ValueError(f"{path} has format {described.get('format')}; this version reads {FORMAT}")
    wrong = [name for name, kind in PARTS.items() if not isinstance(described.get(name), kind)]
    if wrong or not isinstance(state, dict):
        raise Damaged(f"`path` must be a file that `save` wrote; {path} has no {(*wrong, 'state')[0]} that fits")
    return described, state, history


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds of a leader.

    Attributes:
      path: the file.
      described: what is not tensors: the leader's class, its arguments, the task, random streams, iterations.
      state: tensors by name.
      history: the rows.
    """

    path: str | Path
    described: dict[str, Any]
    state: dict[str, Any]
    history: np.ndarray

    def check_task(self, task: Task) -> None:
        """Raises AnotherTask if the leader was saved in another task."""
        different = differences(self.described["task"], task)
        if different:
            raise AnotherTask(f"`env` must be the task that the leader was saved in; {'; '.join(different)}")

    @contextmanager
    def naming_itself(self) -> Iterator[None]:
        """Raises ValueError where what is restored inside is not what a leader with these arguments saves."""
        try:
            yield
        except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise Damaged(
                f"`path` must be a file that `save` wrote; what {self.path} holds does not fit together ({error!r})"
            ) from error

    @contextmanager
    def naming_misfits(self) -> Iterator[None]:
        """Raises ValueError where what is restored inside does not fit what was saved of a critic."""
        try:
            yield
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`critic` and `baseline` must be of the kind that {self.path} was saved with; what is there does not "
                f"fit ({error!r})"
            ) from error

    def response(self, name: str, runs: int, model: Model) -> BestResponse | None:
        """A saved response; raises ValueError unless it is one of so many runs to a model."""
        try:
            best = response_from(self.state[name])
            if best is not None:
                check_response(best, runs, model)
        except (FollowerError, LookupError, TypeError) as error:
            raise ValueError(
                f"`path` must hold a response of the follower's in `env`; that of {self.path} is none: {error}"
            ) from error
        return best


def opened(path: str | Path, leader: str, changed: Mapping[str, object]) -> tuple[dict[str, Any], Checkpoint]:
    """The arguments of a saved leader, some of them changed, and all else that was saved.

    Args:
      path: the file.
      leader: class of the leader that is wanted.
      changed: arguments that are to differ.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is none of ours or another leader's, if a change does not go with the saved state, or if
        an argument that could not be saved is not given again.
    """
    fixed = sorted({"runs", "seed", "optimizer", "preset"} & set(changed))
    if fixed:
        raise ValueError(f"`{fixed[0]}` cannot be changed on loading: the saved state depends on it")
    saved, state, history = read(path)
    if saved["leader"] != leader:
        raise ValueError(f"{path} holds a {saved['leader']}; load it with {saved['leader']}.load")
    arguments = {**saved["arguments"], **changed}
    lost = [name for name, value in arguments.items() if isinstance(value, dict) and "object" in value]
    if lost:
        raise ValueError(
            f"{path} was saved with an object as `{lost[0]}`; give it again: load(path, env, {lost[0]}=...)"
        )
    return arguments, Checkpoint(path, saved, state, history)


def follower_state(follower: object) -> dict[str, object] | None:
    """What a follower has learnt; None for one that learns nothing."""
    if not saves(follower):
        return None
    if lacking(follower, ["load_state_dict"]):
        raise TypeError(f"`follower` must have `load_state_dict` beside `state_dict`, got {follower!r}")
    return follower.state_dict()


def _bytes(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()
