"""JSON in run folders, which may be damaged or come from a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST = 50_000_000  # bytes of a file that is read
# What reading such a file, and taking out of it what should be in it, may raise; depth and size end in the last two.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is larger than any that is written here, or no JSON.
      OSError, RecursionError, MemoryError: if it cannot be read.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"it has {size:,} bytes, of at most {LARGEST:,}")
    return json.loads(path.read_bytes())
