"""README's badges, drawn from pyproject.toml: python docs/badges.py"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images" / "badges"
LETTER = 6.6  # pixels of a letter at 11 px
COLOUR = "#1f4e8c"


def badges() -> dict[str, str]:
    """Each badge as SVG, by the name of its file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = {
        "python": ("python", project["requires-python"].replace(">=", "≥ ")),
        "licence": ("licence", project["license"]),
        "version": ("version", project["version"]),
        "paper": ("paper", "arXiv:2603.14867"),
    }
    return {f"{name}.svg": svg(*texts) for name, texts in said.items()}


def svg(left: str, right: str) -> str:
    """A badge of two words, the left one grey."""
    one, other = (round(LETTER * len(text) + 14) for text in (left, right))
    shown = [(one / 2, left), (one + other / 2, right)]
    escaped = [(x, text.replace("&", "&amp;").replace("<", "&lt;")) for x, text in shown]
    words = "".join(f'<text x="{x:g}" y="14" text-anchor="middle">{text}</text>' for x, text in escaped)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{one + other}" height="20" role="img" '
        f'aria-label="{left}: {escaped[1][1]}"><rect width="{one + other}" height="20" rx="3" fill="{COLOUR}"/>'
        f'<path d="M3 0h{one - 3}v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#4a4f57"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{words}</g></svg>\n'
    )


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for name, text in badges().items():
        (OUT / name).write_text(text)
