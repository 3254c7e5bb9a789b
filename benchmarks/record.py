"""A JSON file of measurements, of which none is made twice by one process after another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bilevel_envs.core.checks import check_writable
from leaders.training.history import replace_file


class Record:
    """Measurements by name, written after each of them.

    Args:
      path: the JSON file; what it holds is kept.

    Raises:
      OSError: if it cannot be written.
      json.JSONDecodeError: if it is no JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = check_writable(path, "out")
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, measure: Callable[[], Any], *, valid: Callable[[Any], bool] = lambda _: True) -> Any:
        """The measurement of that name: what the file holds, if that is valid, else a new one, which is kept."""
        self.found = self._kept()
        if key not in self.found or not valid(self.found[key]):
            found = json.loads(json.dumps(measure()))  # as the file has it, or refused before anything is kept
            self.found = self._kept() | {key: found}
            replace_file(self.path, (json.dumps(self.found, indent=1, ensure_ascii=False) + "\n").encode())
            print(key, found, flush=True)
        return self.found[key]

    def _kept(self) -> dict[str, Any]:
        """What the file holds now: another process may have added to it."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def table(self, text: str) -> None:
        """Writes a table of it beside it, as Markdown."""
        replace_file(self.path.with_suffix(".md"), text.encode())
