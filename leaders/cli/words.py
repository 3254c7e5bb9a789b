"""What a command was told, as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any


def told(command: Any) -> dict[str, Any]:
    """What a command was told that belongs to its results, JSON-able."""
    kept = {name: value for name, value in asdict(command).items() if name not in ("out", "resume", "progress")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def names_in(text: str) -> list[str]:
    """Leaders' names, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names):
        raise ValueError(f"`leaders` must name each leader once, got {text!r}")
    return names
