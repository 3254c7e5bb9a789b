"""Random valid and invalid input for everything that takes input; each case must work, or be refused by name.

A case passes if it works with finite results, or if it is refused with a ValueError, TypeError, OSError or an error of
ours whose message names the argument. Any other exception fails, a NumPy warning, an hour-glass that runs out, memory
beyond 2 GB, a result that is not finite, and a command that ends with a status other than 0, 2
or 3 (or 1 for `bilevel check`: what it looked at failed).

Left out: large values of counts that take time alone, as much as is asked for (`WITHOUT_END`: iterations, followers'
steps, films' frames, ...), whose flags are not drawn for commands and which are at most 10 elsewhere; clusters
(`--ray`) and process pools (`--processes`), which tests start; and the large TaxDesign, for which its small version
stands. Leaders, followers and θ are tried in the worlds of `SMALL`, constructors of problems in all others, too.

Run: python -m tests.fuzz [--cases 20000] [--seed 0] [--kinds leader theta] [--only INDEX] [--out docs/data/fuzz.json]
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
import yaml

from bilevel_envs import BilevelWrapper, TabularModel
from bilevel_envs.core.checks import check_writable
from bilevel_envs.core.follower import BestResponse, FollowerError, NotAvailableError
from bilevel_envs.followers import FOLLOWERS
from bilevel_envs.registration import PROBLEMS
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.tabular.transitions import Transitions
from leaders import BCHG, LEADERS
from leaders.cli.main import COMMANDS, main
from leaders.cli.sweep import SETTINGS
from leaders.experiments.results import RESULT, read_result
from leaders.experiments.run_directory import RunDirectory, read_config
from leaders.experiments.sweep.arrange import arranged
from leaders.experiments.sweep.runner import StudyDirectory
from leaders.experiments.sweep.study import read_source, study_of
from leaders.keywords import parameters_of

SECONDS, GIGABYTES = 20.0, 2.0  # of processor time and of memory, that a case may take
REFUSALS = (
    *(ValueError, TypeError, OSError, ImportError, FloatingPointError),
    *(FollowerError, NotAvailableError, gym.error.Error),
)
SMALL = ("TollBridge", "RandomMDP", "FourRooms", "ToyMarkovGame", "BilevelLQR", "BuildingThermalControl")
OPTIONS = tuple(
    """
    empirical expected_sarsa sarsa monte_carlo lstd td exact state_values zeros normal constant quadratic none continue
    keep drop reference td_error value clipped fused steps score pathwise analytic sampled fitted known learnt restarts
    sgd adam paper mc sa oracle warm cold clear carry auto dense published classic mismatched SoftDQN DQN SAC PPO
    softmax direct tabular small R1 R2 soft_value_iteration committed quantal truncated riccati
    """.split()  # noqa: SIM905
)
WITHOUT_END = (  # counts that take time alone, as much as is asked for
    *("iterations", "starts", "processes", "ray", "frames", "fps"),
    *("rounds", "sweeps", "steps", "first_steps", "total_steps", "most_steps", "directions", "observations"),
)
LARGE = (10**12, 10**18, 10**30, -(10**12))


class Hang(BaseException):
    """A case took too long."""


@dataclass(frozen=True)
class Case:
    """One try.

    Attributes:
      told: what is done, in words.
      names: arguments of which a refusal must name one; empty where the message must name a file.
      run: does it; returns what is wrong with the result, or None.
    """

    told: str
    names: tuple[str, ...]
    run: Callable[[], str | None]


# Values -----------------------------------------------------------------------------------------------------------


def array(rng: random.Random) -> Any:
    """An array, of odd shapes and kinds."""
    shape = rng.choice([(), (0,), (1,), (2,), (3,), (1, 1), (2, 2), (2, 3), (1, 2, 3), (2, 2, 2), (0, 3), (1, 4, 2, 4)])
    kind = rng.choice(["float", "float", "int", "bool", "complex", "object", "word", "float32", "nan", "huge", "tiny"])
    own = np.random.default_rng(rng.randrange(2**32))
    values = own.normal(size=shape)
    if kind in ("nan", "huge", "tiny"):
        return values * {"nan": float("nan"), "huge": 1e307, "tiny": 1e-308}[kind]
    return np.asarray(values).astype({"word": "U3", "int": np.int64}.get(kind, kind))


def wild(rng: random.Random) -> Any:
    """Any value, of the wrong kind as likely as not."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice([0, 1, 2, 3, 5, -1, *LARGE, np.int64(2), np.uint8(3), True, False, np.bool_(True)])
    if kind == 1:
        pool = [0.0, 0.5, 1.0, 0.1, -0.5, 1e-3, 1e-300, 1e300, -1e300, 2.5, float("nan"), float("inf"), -float("inf")]
        return rng.choice([*pool, np.float32(0.5), np.float64("nan"), Fraction(1, 2), 1j])
    if kind == 2:
        return rng.choice(
            ["", " ", "word", "5", "nan", "None", "ü", "a" * 5000, "os:system", "\n", b"bytes", Path("word")]
        )
    if kind == 3:
        return rng.choice(OPTIONS)
    if kind == 4:
        return rng.choice([None, None, object(), int, dict, len, lambda *_: None, ..., NotImplemented])
    if kind == 5:
        return array(rng)
    if kind == 6:
        values = array(rng)
        return torch.as_tensor(values) if values.dtype.kind in "fibc" else values.tolist()
    few = [wild(rng) for _ in range(rng.randrange(3))] if rng.random() < 0.7 else [[1, 2], [3]]
    return rng.choice([list, tuple, lambda v: {str(i): one for i, one in enumerate(v)}, lambda v: [v, [v]]])(few)


def likely(rng: random.Random, default: Any) -> Any:
    """A value like the default, or any."""
    if rng.random() < 0.5:
        return wild(rng)
    if isinstance(default, bool):
        return rng.random() < 0.5
    if isinstance(default, int):
        return rng.randrange(1, 6)
    if isinstance(default, float):
        return default * rng.choice([0.1, 0.5, 1, 2])
    if isinstance(default, str):
        return rng.choice(OPTIONS)
    return rng.choice([rng.randrange(1, 6), rng.random(), rng.choice(OPTIONS), None])


def short(value: object) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) < 120 else f"{text[:120]}..."


def shown(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={short(value)}" for name, value in given.items())


def some_of(rng: random.Random, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """One to three arguments."""
    chosen = rng.sample(parameters, min(len(parameters), rng.choice([1, 1, 1, 2, 3])))
    defaults = {one.name: None if one.default is one.empty else one.default for one in chosen}
    given = {name: likely(rng, default) for name, default in defaults.items()}
    endless = [name for name in given if name in WITHOUT_END and isinstance(given[name], int) and given[name] > 10]
    return given | dict.fromkeys(endless, 5)


# What takes input ---------------------------------------------------------------------------------------------------


def numbers_of(*values: object) -> Iterator[tuple[str, Any]]:
    """Fields of dataclasses that are tensors or numbers."""
    for value in values:
        for one in fields(value):  # type: ignore[arg-type]
            yield one.name, getattr(value, one.name)


def led(leader: Any) -> str | None:
    """One iteration; what of it is not finite."""
    leader.learn(1)
    wrong = [name for name in ("leader_return", "grad_norm") if np.isinf(leader.history[name]).any()]
    return ", ".join(wrong) or (None if np.isfinite(leader.theta).all() else "θ")


def leader(rng: random.Random) -> Case:
    name, env = rng.choice(list(LEADERS)), rng.choice([*["TollBridge"] * 4, *SMALL])
    parameters = [one for one in parameters_of(LEADERS[name]) if one.name not in ("self", "env", "verbose")]
    given = some_of(rng, parameters)
    base = {"batch_size": 40} if any(one.name == "batch_size" for one in parameters) else {}

    def run() -> str | None:
        return led(LEADERS[name](BilevelWrapper(gym.make(f"BiLevel/{env}-v0")), **(base | given)))

    return Case(f"{name} in {env}: {shown(given)}", tuple(given), run)


def follower(rng: random.Random) -> Case:
    name = rng.choice(list(FOLLOWERS))
    env = rng.choice(["BilevelLQR", "BuildingThermalControl"] if name == "riccati" else ["TollBridge", "RandomMDP"])
    takes = list(inspect.signature(FOLLOWERS[name]).parameters.values())
    given = some_of(rng, [one for one in takes if one.kind is not one.VAR_KEYWORD])
    base = {"algorithm": "SoftDQN", "steps": 30, "learning_starts": 5} if name == "sb3" else {}
    needed = {one.name: 0.3 for one in takes if one.default is one.empty and one.kind is not one.VAR_KEYWORD}

    def run() -> str | None:
        env_ = BilevelWrapper(gym.make(f"BiLevel/{env}-v0"), FOLLOWERS[name](**(base | needed | given)))
        best = env_.best_response(env_.theta)
        return None if bool(torch.isfinite(torch.as_tensor(best.steps)).all()) else "steps"

    return Case(f"{name} in {env}: {shown(given)}", tuple(given), run)


def environment(rng: random.Random) -> Case:
    name = rng.choice([one for one in PROBLEMS if one != "BiLevel/TaxDesign-v0"])
    module, _, cls = PROBLEMS[name][0].partition(":")
    problem = getattr(sys.modules.get(module) or __import__(module, fromlist=[cls]), cls)
    extra = [inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY, default=None) for one in ("theta", "render_mode")]
    given = some_of(rng, [*inspect.signature(problem).parameters.values(), *extra])
    if "render_mode" in given:  # a word, or Gymnasium's own `make` fails
        given["render_mode"] = rng.choice([None, "rgb_array", "human", "word", ""])

    def run() -> str | None:
        env = gym.make(name, **given)
        env.reset(seed=0)
        _, reward, *_ = env.step(env.action_space.sample())
        env.close()
        return None if np.isfinite(reward) else "reward"

    return Case(f"make {name}: {shown(given)}", tuple(given), run)


@cache
def wrapped(name: str) -> BilevelWrapper:
    return BilevelWrapper(gym.make(f"BiLevel/{name}-v0"))


def theta(rng: random.Random) -> Case:
    name, how = rng.choice(SMALL), rng.choice(["configure", "reset", "model", "best_response", "context", "options"])
    value = wild(rng)
    env = wrapped(name)
    if rng.random() < 0.5:  # one entry of a good θ spoilt, or another shape of it
        value = np.array(env.unwrapped.theta, dtype=object if rng.random() < 0.2 else float)
        if value.size and rng.random() < 0.7:
            value.flat[rng.randrange(value.size)] = rng.choice([float("nan"), float("inf"), -1e9, 1e300, 0.0, 0.5])
        value = rng.choice([value, value[None], np.stack([value] * 3), value.tolist(), value.ravel()[:-1], value.T])

    def run() -> str | None:
        if how == "configure":
            env.configure(value)
        elif how == "reset":
            env.reset(seed=0, options={"theta": value})
        elif how == "context":
            env.configure(env.theta, value)
        elif how == "options":
            env.reset(seed=0, options=value)
        elif how == "model":
            env.model(value)
            return None
        else:
            best = env.best_response(value)
            return None if bool(torch.isfinite(best.residual).all()) else "residual"
        return None if np.isfinite(env.theta).all() else "θ"

    arguments = {"context": ("context",), "options": ("options", "theta", "context")}.get(how, ("theta", "options"))
    return Case(f"{how} {name}: {short(value)}", arguments, run)


def tables(rng: random.Random) -> Case:
    states, actions = rng.randrange(1, 4), rng.randrange(1, 3)
    own = np.random.default_rng(rng.randrange(2**32))
    parts: dict[str, Any] = {
        "transition": own.dirichlet(np.ones(states), (states, actions)),
        "initial": own.dirichlet(np.ones(states)),
        "r_leader": own.normal(size=(states, actions)),
        "r_follower": own.normal(size=(states, actions)),
    }
    named = tuple(name for name in inspect.signature(TabularModel).parameters)
    parts = {name: torch.as_tensor(value) for name, value in parts.items() if name in named}
    changed = rng.choice([*named, "from_lists", "from_dense", "from_scipy", "from_function"])
    value = wild(rng)
    if changed in parts and rng.random() < 0.7:
        value = parts[changed].clone()
        how = rng.randrange(5)
        if how == 0:
            value.view(-1)[rng.randrange(value.numel())] = rng.choice([float("nan"), float("inf"), -1.0, 1e300, 2.0])
        value = [value, value[None], value[..., :-1], value.float(), value.numpy()][how]
    if changed == "from_function" and callable(value):  # whose own errors are its own
        value = None
    if changed == "from_function" and rng.random() < 0.7:
        told, value = (wild(rng), wild(rng)), lambda *_: told
    second = wild(rng) if rng.random() < 0.5 else own.dirichlet(np.ones(states), (states, actions))

    def run() -> str | None:
        if changed == "from_lists":
            Transitions.from_lists(value, second)
        elif changed == "from_scipy":
            Transitions.from_scipy(value)
        elif changed == "from_dense":
            Transitions.from_dense(value)
        elif changed == "from_function":
            Transitions.from_function(value, *rng.choice([(states, actions), (second, actions), (states, second)]))
        else:
            made = TabularModel(**(parts | {changed: value}))
            made.moves.dense()
        return None

    arguments = {
        "from_lists": ("successor", "probability"),
        "from_scipy": ("matrices",),
        "from_dense": ("transition",),
        "from_function": ("function", "states", "actions"),
    }
    return Case(f"table {changed}: {short(value)}, {short(second)}", arguments.get(changed, (changed,)), run)


class Answering:
    """A follower that answers in its own way."""

    beta = None

    def __init__(self, answer: Callable[[BestResponse], Any]) -> None:
        self.answer = answer

    def best_response(self, model: Any, preferences: Any, init: Any = None) -> Any:
        best = FOLLOWERS["soft_value_iteration"]().best_response(model, preferences, init)
        return self.answer(best)


def answer(rng: random.Random) -> Case:
    names = [one.name for one in fields(BestResponse)]
    name, value = rng.choice([*names, "whole", "probs", "q", "v"]), wild(rng)
    if name in ("q", "v") and callable(value):  # whose own errors are its own
        told, value = wild(rng), lambda *_: told
    entry, spoilt = rng.random(), rng.choice([float("nan"), float("inf"), -1.0, 2.0, 1e300])
    how = rng.randrange(4)

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        if how == 0:
            tensor.view(-1)[int(entry * tensor.numel())] = spoilt
        return [tensor, tensor[..., :-1], tensor[0], tensor.repeat(3, *[1] * (tensor.ndim - 1))][how]

    def made(best: BestResponse) -> Any:
        if name == "whole":
            return value
        if name == "probs":
            return replace(best, policy=BoltzmannPolicy(changed(best.policy.log_probs)))
        if name in ("q", "v") and entry < 0.7:
            table = getattr(best, name)
            return replace(best, **{name: type(table)(changed(table.values))})
        return replace(best, **{name: value})

    def run() -> str | None:
        env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), Answering(made))
        return led(BCHG(env, batch_size=40, runs=1))

    return Case(f"a follower answers {name}: {short(value)}, {how}, {spoilt}", (name, "policy", "follower"), run)


def words(rng: random.Random) -> str:
    """A word of a command line."""
    if rng.random() < 0.3:
        return rng.choice(OPTIONS)
    plain = ["", "0", "-1", "1", "2", "3", "0.5", "1e300", "nan", "inf", "-inf", "None", "true", "False", "[1,2]", "{}"]
    odd = ["[1,[2]]", "word", "1,2", "ü", "--", "a=b", "=", "x=" * 500, "9" * 40, "x" * 5000, "a:b", "os:system", ":"]
    return rng.choice(
        [*plain, *odd, "BiLevel/TollBridge-v0", "size=4", "beta=nan", "theta=[1]", "steps=30", "run", "[]"]
    )


KINDS_OF_COMMANDS = {
    "train": ["--env", "BiLevel/TollBridge-v0", "--runs", "1", "--batch", "40", "--iterations", "1", "--no-progress"],
    "compare": ["--env", "BiLevel/TollBridge-v0", "--leaders", "bchg", "--runs", "1", "--iterations", "1"],
    "sweep": ["--settings", "env=BiLevel/TollBridge-v0", "iterations=1", "runs=1", "batch=40", "--processes", "1"],
    "report": [],
    "reproduce": [],
    "best-known": ["--env", "BiLevel/TollBridge-v0"],
    "check": ["BiLevel/TollBridge-v0"],
    "curves": ["run"],
    "video": ["run"],
    "envs": [],
}


def command(rng: random.Random) -> Case:
    kinds = {re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower(): kind for kind, *_ in COMMANDS}
    kinds = {"best-known": kinds.pop("best-known-value"), "check": kinds.pop("check-contract"), **kinds}
    name = rng.choice([*["train"] * 4, *["sweep"] * 2, *KINDS_OF_COMMANDS])
    base = list(KINDS_OF_COMMANDS[name])
    flags = [one.name for one in fields(kinds[name]) if one.name not in WITHOUT_END]  # type: ignore[arg-type]
    more: list[str] = []
    for flag in rng.sample(flags, min(len(flags), rng.choice([1, 1, 2, 3]))) if flags else []:
        files = ["run", "empty", "file", "missing", "run/leader.zip", "study.yaml", "study"]
        text = rng.choice(files) if flag in ("out", "study", "folders", "runs_", "path", "into") else words(rng)
        more += [f"--{flag.replace('_', '-')}", text, *([words(rng)] if rng.random() < 0.1 else [])]
    if rng.random() < 0.1:
        more.insert(rng.randrange(len(more) + 1), words(rng))
    if name == "reproduce":
        more = [rng.choice(["four-rooms", "building", "games", words(rng)]), *more, "--iterations", "0"]
    if "--out" not in more and name in ("train", "compare", "sweep", "reproduce"):
        more += ["--out", "out"]
    given = [name, *base, *more]

    def run() -> str | None:
        said, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(told):
            try:
                main(given)
                return None
            except SystemExit as end:
                status = end.code
        if status not in (None, 0, 2, 3) and (status, name) != (1, "check"):
            return f"status {status}: {said.getvalue()[-300:]}"
        if "Traceback" in said.getvalue():
            return "a traceback"
        return None if status in (None, 0) or said.getvalue() or told.getvalue() else "ended without a word"

    return Case("bilevel " + short(given), (), run)


def study(rng: random.Random) -> Case:
    def value(depth: int = 0) -> Any:
        kind = rng.randrange(7)
        if kind == 0 and depth < 3:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 1 and depth < 3:
            keys = [*SETTINGS, "low", "high", "log", "integer", "value", "search", "count", "tune", "size", "", 1, None]
            return {rng.choice(keys): value(depth + 1) for _ in range(rng.randrange(4))}
        if kind == 2:
            return rng.choice([None, True, False, 0, 1, 3, -1, *LARGE])
        if kind == 3:
            return rng.choice([0.5, 0.0, -1e300, float("nan"), float("inf"), 1e-3])
        return rng.choice([*OPTIONS, "", "1e-3", "BiLevel/TollBridge-v0", "word", "nan", "2020-01-01", "a" * 5000])

    found: dict[Any, Any] = {"env": "BiLevel/TollBridge-v0", "runs": 2, "seed": 0, "leader": ["bchg", "exact"]}
    changes = {
        rng.choice([*SETTINGS, "blocks", "tune", "stack", "word", 5]): value() for _ in range(rng.choice([1, 2]))
    }
    found |= changes
    text = yaml.safe_dump(found, allow_unicode=True)
    if rng.random() < 0.3:
        at = rng.randrange(len(text))
        text = (
            text[:at]
            + rng.choice(["", "\0", ":", "[", "{", "&a *a", "\t", "!!python/object:os.system", "- "])
            + text[at:]
        )

    def run() -> str | None:
        Path("fuzzed.yaml").write_text(text, encoding="utf-8")
        made = study_of(read_source(Path("fuzzed.yaml")), SETTINGS)
        if len(made.cells) < 200:
            jobs = [cell.job({}) for cell in made.cells]
            arranged(jobs, lambda job: False, made.stack)
            StudyDirectory(Path("study"), made).check()
        return None

    names = tuple(str(name) for name in changes)
    return Case(f"study {short(changes)}; {len(text)}", (*names, "study", "out", "YAML"), run)


def damaged(rng: random.Random) -> Case:
    name = rng.choice(
        ["leader.zip"] * 3 + ["leader.json"] * 3 + ["config.json", RESULT, "study.json", "leader.history"]
    )
    how, at, content = rng.choice(["flip", "cut", "insert", "other", "json"]), rng.random(), rng.randbytes(8)
    where, value = rng.random(), json_value(rng)
    reader = rng.choice(["load", "read", "command"])

    def spoil(data: bytes) -> bytes:
        place = int(at * len(data))
        if how == "json" and name.endswith("json"):
            whole = json.loads(data)
            into = whole
            while isinstance(into, (dict, list)) and into:
                keys = list(into) if isinstance(into, dict) else list(range(len(into)))
                key = keys[int(where * len(keys))]
                if not isinstance(into[key], (dict, list)) or not into[key] or where < 0.3:
                    into[key] = value
                    break
                into = into[key]
            return json.dumps(whole).encode()
        if how == "cut":
            return data[:place]
        if how == "other":
            return content
        return data[:place] + content + data[place + (8 if how == "flip" else 0) :]

    def run() -> str | None:
        run_ = Path("damaged")
        shutil.rmtree(run_, ignore_errors=True)
        shutil.copytree("study" if name == "study.json" else "under-way" if name == "leader.history" else "run", run_)
        if name == "leader.json":
            with zipfile.ZipFile(run_ / "leader.zip") as archive:
                parts = {one: archive.read(one) for one in archive.namelist()}
            with zipfile.ZipFile(run_ / "leader.zip", "w") as archive:
                for one, part in parts.items():
                    archive.writestr(one, spoil(part) if one == name else part)
        else:
            (run_ / name).write_bytes(spoil((run_ / name).read_bytes()))
        return read(run_, reader)

    def read(run_: Path, reader: str) -> str | None:
        if name == "study.json":
            StudyDirectory(run_, study_of({"env": "BiLevel/TollBridge-v0", "iterations": 1}, SETTINGS)).check()
        elif reader == "load" or name == "leader.history":
            return led(BCHG.load(run_ / "leader.zip", wrapped("TollBridge")))
        elif reader == "read":
            read_config(run_)
            RunDirectory(run_, {}).check(resume=True)
            read_result(run_)
        else:
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                try:
                    main(["report", str(run_)])
                    main(["curves", str(run_), "--out", "curves.png"])
                except SystemExit as end:
                    return None if end.code in (0, 2, 3) else f"status {end.code}: {said.getvalue()[-300:]}"
        return None

    told = f"{how} {name} at {at:.3f}, {content!r}, {short(value)}, {where:.3f}, {reader}"
    return Case(told, (name.replace("json", ""), "path", "out", "damaged", "env"), run)


def json_value(rng: random.Random) -> Any:
    """A value of JSON."""
    return rng.choice(
        [None, True, -1, 0, 1, 10**30, 1e300, "", "word", [], {}, [[]], [1, 2], {"a": 1}, ["x"], "os:system"]
    )


KINDS: dict[str, tuple[int, Callable[[random.Random], Case]]] = {
    "leader": (5, leader),
    "follower": (4, follower),
    "environment": (3, environment),
    "theta": (4, theta),
    "tables": (5, tables),
    "answer": (4, answer),
    "command": (3, command),
    "study": (4, study),
    "damaged": (4, damaged),
}  # how many of each 36 cases


def case(seed: int, index: int, kinds: list[str]) -> tuple[str, Case]:
    """The case of a number: its kind, and what is done."""
    rng = random.Random(f"{seed}:{index}")
    kind = rng.choices(kinds, [KINDS[one][0] for one in kinds])[0]
    return kind, KINDS[kind][1](rng)


# How a case is judged -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bounded(seconds: float, gigabytes: float) -> Iterator[None]:
    """Raises Hang after so much processor time, and MemoryError beyond so much memory."""

    def out(*_: object) -> None:
        raise Hang

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    heard = signal.signal(signal.SIGPROF, out)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * 2**30), before[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, heard)


def named(error: BaseException, names: tuple[str, ...]) -> bool:
    """Whether a message names an argument."""
    message = str(error)
    return any(name in message for name in names) or re.search(r"`[\w.]+`", message) is not None


def judge(one: Case, seconds: float = SECONDS) -> str | None:
    """What is wrong, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (RuntimeWarning, np.exceptions.ComplexWarning, FutureWarning):
            warnings.simplefilter("error", kind)
        try:
            with bounded(seconds, GIGABYTES):
                wrong = one.run()
            return None if wrong is None else f"went through, but: {wrong}"
        except Hang:
            return f"took more than {seconds:g} s"
        except REFUSALS as error:
            if named(error, one.names):
                return None
            return f"refused without a name: {type(error).__name__}: {str(error)[:200]} {place(error)}"
        except BaseException as error:
            if isinstance(error, RuntimeError) and re.search(r"`\w+`", str(error)):  # of ours, with a remedy
                return None
            return f"{type(error).__name__}: {str(error)[:200]} {place(error)}"


def place(error: BaseException) -> str:
    """Where it was raised: the last lines of ours."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "/site-packages/" not in one.filename]
    return " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(frames[-4:]))


@contextlib.contextmanager
def workshop() -> Iterator[None]:
    """A folder to work in, with whole runs and a study."""
    here, folder = Path.cwd(), tempfile.mkdtemp(prefix="fuzz-")
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main(["train", *KINDS_OF_COMMANDS["train"], "--out", "run"])
            main(["sweep", *KINDS_OF_COMMANDS["sweep"], "--out", "study", "--no-progress"])
        directory = RunDirectory(Path("under-way"), {})
        directory.begin()
        directory.save_checkpoint(BCHG(wrapped("TollBridge"), runs=2, batch_size=40).learn(3))
        Path("empty").mkdir()
        Path("file").write_text("mine")
        Path("study.yaml").write_text("env: BiLevel/TollBridge-v0\n")
        yield
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Round:
    """What came of many cases.

    Attributes:
      cases: how many.
      seed: of the first.
      kinds: how many of each kind.
      faults: those that did not pass, each with its number and what was done.
      seconds: what all took.
      version: of the library.
    """

    cases: int
    seed: int
    kinds: dict[str, int]
    faults: list[str]
    seconds: float
    version: str = field(default_factory=lambda: version("bilevel-envs"))


def fuzz(cases: int, seed: int = 0, kinds: list[str] | None = None, tell: Callable[[str], None] = print) -> Round:
    """Runs cases."""
    faults, counts, began = [], Counter[str](), time.monotonic()
    with workshop():
        for index in range(cases):
            kind, one = case(seed, index, kinds or list(KINDS))
            counts[kind] += 1
            for leftover in ("out", "report.html", "curves.png"):
                shutil.rmtree(leftover, ignore_errors=True)
            wrong = judge(one)
            if wrong is not None:
                faults.append(f"{index} {kind}: {one.told}\n    {wrong}")
                tell(faults[-1])
            if (index + 1) % 1000 == 0:
                tell(f"{index + 1} cases, {len(faults)} faults, {time.monotonic() - began:.0f} s")
    tell(f"{cases} cases ({dict(counts)}), {len(faults)} faults, {time.monotonic() - began:.0f} s")
    return Round(cases, seed, dict(sorted(counts.items())), faults, round(time.monotonic() - began, 1))


@dataclass
class Args:
    """How many cases of what."""

    cases: int = 20_000
    seed: int = 0
    kinds: tuple[str, ...] = ()
    only: int | None = None
    """the number of one case, whose traceback is shown"""
    out: Path | None = None
    """a JSON file for the record: cases, seed, counts of each kind, faults, seconds, version"""


def run(args: Args) -> None:
    kinds = list(args.kinds or KINDS)
    torch.set_num_threads(1)
    if args.only is not None:
        with workshop():
            kind, one = case(args.seed, args.only, kinds)
            print(kind, one.told, one.names)
            print(one.run())
        return
    out = None if args.out is None else check_writable(args.out, "out").resolve()
    found = fuzz(args.cases, args.seed, kinds, lambda line: print(line, flush=True))
    if out is not None:
        out.write_text(json.dumps(asdict(found), indent=1) + "\n")
    sys.exit(1 if found.faults else 0)


if __name__ == "__main__":
    run(tyro.cli(Args))
