"""The file in which a leader is kept."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leaders.training.history import replace_file

FORMAT = 4
UNREADABLE = (
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, LookupError, EOFError, ValueError, TypeError, RuntimeError
)  # fmt: skip


def write(path: str | Path, described: dict[str, Any], state: dict[str, Any], history: np.ndarray) -> None:
    """Writes a zip file; replaced at once, never half-written.

    Args:
      path: where.
      described: what JSON can hold.
      state: tensors, as `torch.save` takes them.
      history: the rows so far.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("leader.json", json.dumps({"format": FORMAT} | described, indent=1))
        archive.writestr("state.pt", _bytes(lambda file: torch.save(state, file)))
        archive.writestr("history.npy", _bytes(lambda file: np.save(file, history)))
    replace_file(path, buffer.getvalue())


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """What `write` was given.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is none of ours, damaged, or of another format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be a file that `save` wrote; there is none at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read("leader.json"))
            state = torch.load(io.BytesIO(archive.read("state.pt")), weights_only=True)
            history = np.load(io.BytesIO(archive.read("history.npy")), allow_pickle=False)
        if not isinstance(described, dict) or not isinstance(history, np.ndarray):
            raise ValueError("its parts are of another kind")
    except UNREADABLE as error:
        raise ValueError(f"`path` must be a file that `save` wrote; {path} is not, or is damaged ({error})") from error
    if described.get("format") != FORMAT:
        raise ValueError(f"{path} has format {described.get('format')}; this version reads {FORMAT}")
    return described, state, history


def _bytes(write: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()
