"""The option `replay` of published leaders in games."""

from __future__ import annotations

from bilevel_envs.core.checks import check_choice


def check_replay(replay: bool | None, preset: str | None) -> None:
    check_choice(replay, (None, True, False), "replay")
    if replay is not None and preset != "paper":
        raise ValueError(f'`replay` must be None without `preset="paper"`, got {replay!r}')
