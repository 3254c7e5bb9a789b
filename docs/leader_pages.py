"""The tables on the leaders' pages, made from the code and from docs/data/leader_curves.json.

Fills what stands between `<!-- NAME, made by docs/leader_pages.py -->` and `<!-- end -->` in docs/leader/*.md. Run:
python docs/leader_pages.py
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper, ConfigurableRewards, Preferences
from bilevel_envs.core.follower import NotAvailableError
from bilevel_envs.followers import SB3Follower
from leaders import LEADERS, ExactGradient, History, Leader, exact
from leaders.config import EstimatorConfig, LeaderConfig
from leaders.keywords import field_docs, options, options_of, parameters_of
from leaders.worlds.facts import model_of

HERE = Path(__file__).parent
DATA = HERE / "data" / "leader_curves.json"
PAGES = sorted((HERE / "leader").glob("*.md"))
MARK = re.compile(r"(<!-- (\w[\w ]*), made by docs/leader_pages\.py -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = ("tables", "linear-quadratic", "finite games", "others' environments")
TITLES = {
    "FourRooms": "four rooms",
    "Warehouse": "warehouse",
    "BuildingThermalControl": "building",
    "ToyMarkovGame": "toy Markov game R2",
}


def world(kind: str) -> BilevelWrapper:
    """An environment of a kind that recommends nothing, or as little as there is."""
    if kind == "tables":
        return BilevelWrapper(gym.make("BiLevel/TollBridge-v0"))
    if kind == "linear-quadratic":
        return BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))
    if kind == "finite games":
        return BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0"))
    env = ConfigurableRewards(
        "CartPole-v1",
        theta_space=gym.spaces.Box(0.0, 2.0, (1,), np.float64),
        components=lambda observation, action, reward, after, info: [reward, after[0] ** 2],
        r_follower=lambda theta, c: c[..., 0] - theta[..., 0] * c[..., 1],
        r_leader=lambda theta, c: -c[..., 1],
        preferences=Preferences(gamma_leader=0.98, gamma_follower=0.98, beta=0.1),
    )
    return BilevelWrapper(env, SB3Follower("SoftDQN"))


@cache
def made(name: str) -> dict[str, Leader]:
    """The leader in each kind of world that it goes with."""
    found: dict[str, Leader] = {}
    for kind in KINDS:
        env = world(kind)
        if kind == "finite games" and found:
            continue  # which are led as tables
        if LEADERS[name] is ExactGradient and not exact.solves(model_of(env)):
            continue
        variant = {"variant": "td"} if name == "hpgd" and kind == "linear-quadratic" else {}
        with suppress(ValueError, TypeError, NotAvailableError):  # a world that it refuses
            found[kind] = LEADERS[name](env, **variant)
    return found


def own_options(name: str) -> str:
    """The arguments that this leader alone has, with their defaults."""
    cls, shared = LEADERS[name], options_of(LEADERS[name])
    docs = field_docs(cls, "Args")
    rows = [
        f"| `{one.name}` | `{one.default!r}` | {_cell(docs[one.name])} |"
        for one in parameters_of(cls)
        if one.name not in (*shared, "self", "env")
    ]
    if not rows:
        return "It has no option of its own."
    return "\n".join(["| option | default | what it does |", "|---|---|---|", *rows])


def shared_options(name: str) -> str:
    """The defaults that this leader has for the shared options, by kind of world where they differ."""
    leaders = made(name)
    rows = {option: [_default(one, option) for one in leaders.values()] for option in options_of(LEADERS[name])}
    lines = ["| option | default |", "|---|---|"]
    for option, cells in rows.items():
        by_kind = "; ".join(f"{kind}: {cell}" for kind, cell in zip(leaders, cells, strict=True))
        lines.append(f"| `{option}` | {cells[0] if len(set(cells)) == 1 else by_kind} |")
    return "\n".join(lines)


def _default(leader: Any, option: str) -> str:
    """A default as a cell."""
    config = leader.config if option in LeaderConfig.__dataclass_fields__ else leader.estimator_config
    value = getattr(config, option)
    return "inf" if value == math.inf else f"`{value!r}`"


def config_options(config: type) -> str:
    """What the options of a configuration do."""
    rows = [f"| `{name}` | {_cell(doc)} |" for name, doc in options(config).items()]
    return "\n".join(["| option | what it does |", "|---|---|", *rows])


def columns(name: str | None = None) -> str:
    """The history's columns: all, or those that the leader's runs know, with their last mean."""
    docs = field_docs(History, "Columns")
    if name is None:
        rows = [f"| `{column}` | {_cell(doc)} |" for column, doc in docs.items()]
        return "\n".join(["| column | what it is |", "|---|---|", *rows])
    world, run = next(iter(_runs(name)))
    label = world.partition(" ")[2]
    head = f"| column | what it is | after {run['iterations']} iterations of `{label}`, {TITLES[world.split()[0]]} |"
    lines = [head, "|---|---|---|"]
    for column, doc in docs.items():
        if column in run["last"]:
            lines.append(f"| `{column}` | {_cell(doc)} | {_number(run['last'][column])} |")
    unknown = ", ".join(f"`{column}`" for column in docs if column not in run["last"])
    return "\n".join(lines) + f"\n\nMeans of {run['runs']} runs. NaN here: {unknown}."


def _number(value: float) -> str:
    """Three digits, of large numbers all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def runs(name: str) -> str:
    """What the leader's runs came to and cost."""
    lines = [
        "| world | iterations | steps | J_L, mean (worst to best) | best known | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for key, run in _runs(name):
        world, label = key.split(maxsplit=1)
        title = TITLES[world] + (f", `{label.split()[1]}`" if " " in label else "")
        value = f"{run['mean'][-1]:.4g} ({run['worst'][-1]:.4g} to {run['best'][-1]:.4g})"
        cells = [title, run["iterations"], f"{run['env_steps'][-1]:,}", value, f"{run['best_known']:.4g}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{run['seconds']:.0f}"])) + " |")
    source = "(`python docs/leader_curves.py`)"
    note = f"{run['runs']} runs each; seconds of one core for all of them, exact values included {source}."
    return "\n".join(lines) + f"\n\n{note}"


def _runs(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The recorded runs of a leader, by "world leader"."""
    for key, run in json.loads(DATA.read_text()).items():
        if key.split()[1] == name:
            yield key, run


def _cell(text: str) -> str:
    """Documentation as a cell of a table."""
    plain = re.sub(r"`+", "`", text).replace("|", r"\|")
    return plain[0].upper() + plain[1:] if plain[0].isalpha() else plain


MAKERS: dict[str, Callable[[str], str]] = {
    "own options": own_options,
    "shared options": shared_options,
    "columns": columns,
    "runs": runs,
    "options of every leader": lambda _: config_options(LeaderConfig),
    "options of trajectory leaders": lambda _: config_options(EstimatorConfig),
    "all columns": lambda _: columns(),
}


def filled(page: Path) -> str:
    """A page with its tables as they are now; its name is the leader's."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}{MAKERS[match[2]](page.stem)}\n{match[3]}"

    return MARK.sub(table, page.read_text())


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page))
