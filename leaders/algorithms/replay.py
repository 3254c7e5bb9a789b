"""The option `replay` of published leaders in games."""

from __future__ import annotations

from bilevel_envs.core.checks import check_choice
from leaders.config import is_published


def check_replay(replay: bool | None, preset: str | None) -> None:
    check_choice(replay, (None, True, False), "replay")
    if not is_published(preset) and replay is not None:
        raise ValueError(f'`replay` must be None without `preset="paper"`, got {replay!r}')
