"""Worlds and followers in the folder where the installed command runs."""

import csv
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from leaders.cli.arguments import env_of, find_modules_here
from leaders.cli.main import main

SHOP = '''
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch

from bilevel_envs import ConfigurableMDP, Preferences, TabularModel
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.parameterizations import Box


@dataclass(frozen=True)
class Shop(ConfigurableMDP):
    """One customer buys (1) or not (0) at the price θ; then the episode ends."""

    theta_space = gym.spaces.Box(0.0, 2.0, (1,), np.float64)
    default_theta = np.zeros(1)
    preferences = Preferences(gamma_leader=0.9, gamma_follower=0.9, beta=0.5)

    def model(self, theta):
        nothing = torch.zeros(len(theta), 1, dtype=torch.float64)
        r_follower = torch.stack([nothing, 1 - theta], -1)
        r_leader = torch.stack([nothing, theta], -1)
        ones = torch.ones(1, 1, 2, 1, dtype=torch.float64)
        return TabularModel(ones, ones[0, 0, :1], r_leader, r_follower, 0 * ones[..., 0])

    def parameterization(self, runs, noise):
        return Box(np.full((runs, 1), np.log(3.0)), 0.0, 2.0)  # θ = 2 · 3/4 at first

    def draw(self, state, theta):
        return np.full((64, 64, 3), 255, np.uint8)


class Customer:
    def __init__(self, beta):
        self.beta = beta

    def __repr__(self):
        return f"Customer({self.beta})"

    def best_response(self, model, preferences, start=None):
        return SoftValueIteration().best_response(model, preferences, start)


gym.register(
    "My/Shop-v0",
    entry_point="bilevel_envs.gym_env:make_env",
    vector_entry_point="bilevel_envs.gym_env:make_vector_env",
    max_episode_steps=10,
    kwargs={"problem": "my_shop:Shop"},
)
'''
# J_L(θ) = θ σ((1 − θ) / β), at θ = 3/2 and the customer's own β = 1/4
FIRST_VALUE = 1.5 / (1 + math.exp(0.5 / 0.25))
WHO = ["--env", "my_shop:My/Shop-v0", "--follower", "my_shop:Customer", "--follower-args", "beta=0.25"]
TRUST = ["--trust", "my_shop:Customer", "my_shop:My/Shop-v0"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_shop.py").write_text(SHOP)
    (tmp_path / "queue.py").write_text("raise RuntimeError('a file named like a standard module was imported')")
    return tmp_path


def bilevel(folder, *arguments):
    """Runs the installed command in a folder."""
    command = [str(Path(sys.executable).with_name("bilevel")), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def first_value(folder):
    with open(folder / "out" / "history.csv") as file:
        return float(next(csv.DictReader(file))["leader_value"])


@pytest.mark.slow
def test_a_world_and_a_follower_in_the_working_directory_are_trained(folder):
    done = bilevel(folder, "train", *WHO, "--iterations", 3, "--runs", 2, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert first_value(folder) == pytest.approx(FIRST_VALUE, rel=1e-9)


@pytest.mark.slow
def test_every_command_that_takes_them_finds_them(folder):
    train = ["train", *WHO, "--runs", 2, "--out", "out"]
    erring = [
        "--follower",
        "mixture",
        "--follower-args",
        "share=0.1",
        "follower=my_shop:Customer",
        "follower.beta=0.25",
    ]
    for command in (
        [*train, "--iterations", 2],
        [*train, "--iterations", 4, "--resume"],
        ["video", "out", "--steps", 3, *TRUST],
        [*train[:-1], "erring", "--iterations", 1, *erring],
        ["compare", *WHO, "--leaders", "bchg,exact", "--runs", 2, "--iterations", 2, "--out", "compared"],
    ):
        done = bilevel(folder, *command)
        assert done.returncode == 0, done.stderr
    assert len((folder / "out" / "history.csv").read_text().splitlines()) == 1 + 2 * 4
    assert (folder / "out" / "follower.mp4").stat().st_size > 1000
    assert (folder / "compared" / "comparison.png").exists()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    done = bilevel(elsewhere, "video", "../out", *TRUST)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "`env` must be an id, or MODULE:ID with a module that can be imported, got 'my_shop:My/Shop-v0'" in done.stderr
    )
    assert f"in PYTHONPATH and in {elsewhere}" in done.stderr


PAGE = Path(__file__).parents[2] / "docs/own_environment.md"


@pytest.fixture
def cart(tmp_path, monkeypatch):
    """A working directory with the module of the page, and an id whose function takes everything and reads nothing."""
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "gym.register" in one]
    deaf = 'gym.register("My/Deaf-v0", entry_point=lambda **_: make_cart())\n'
    (tmp_path / "my_cart.py").write_text(block + deaf)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    yield tmp_path
    sys.modules.pop("my_cart", None)


@pytest.mark.slow
def test_the_commands_of_the_page_lead_its_cart_with_its_beta(cart):
    commands = re.findall(r"^    (bilevel (?:.*\\\n)*.*)$", PAGE.read_text(), re.MULTILINE)
    assert [one.split()[1] for one in commands] == ["check", "train", "curves"]
    for command in commands:
        done = bilevel(cart, *shlex.split(command.replace("\\\n", " "))[1:])
        assert done.returncode == 0, done.stderr
    assert (cart / "runs" / "cart" / "history.csv").exists()
    find_modules_here()
    assert env_of("my_cart:My/Cart-v0", {"beta": 0.2}).unwrapped.preferences.beta == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["My/Cart-v0", "--env-args", "length=2"],
            "has no argument 'length'; its entry point takes beta. Only what it",
        ),
        (["My/Cart-v0", "--dynamics", "classic"], "has no argument 'dynamics'; its entry point takes beta."),
        (["My/Cart-v0", "--env-args", "theta=[1,1]"], "`env_args` must not give theta, which leaders do not read"),
        (["My/Deaf-v0", "--beta", "0.2"], "`beta` = 0.2 did not reach 'my_cart:My/Deaf-v0', whose β is 0.1. Make its"),
    ],
)
def test_what_does_not_reach_an_environment_is_refused_by_name(cart, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--env", f"my_cart:{arguments[0]}", "--follower", "sb3", *arguments[1:], "--out", "out"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (cart / "out").exists()


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """A working directory of modules that do not do."""
    sources = {
        "empty_shop": "",
        "shop_in_need": "import gymnasium\nimport no_such_package\n",
        "shop_misspelt": "print(\n",
        "shop_at_fault": "1 / 0\n",
    }
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    yield tmp_path
    for name in sources:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--env", "no_such_shop:My/Shop-v0"],
            "`env` must be an id, or MODULE:ID with a module that can be imported, got 'no_such_shop:My/Shop-v0' "
            "(ModuleNotFoundError: No module named 'no_such_shop'; looked for among installed packages, in PYTHONPATH "
            "and in {here})",
        ),
        (
            ["--env", "shop_in_need:My/Shop-v0"],
            "(ModuleNotFoundError: No module named 'no_such_package', {here}/shop_in_need.py, line 2)",
        ),
        (["--env", "shop_misspelt:My/Shop-v0"], "(SyntaxError: '(' was never closed (shop_misspelt.py, line 1))"),
        (["--env", "empty_shop:My/Other-v0"], "Imported: the module empty_shop ({here}/empty_shop.py)."),
        (["--env", ":My/Shop-v0"], "`env` must be an id, or MODULE:ID with a module that can be imported, got ':My"),
        (["--env", "empty_shop:"], "`env` must be a registered id"),
        (
            ["--follower", "no_such_shop:Customer"],
            "`follower` must be MODULE:CLASS that can be imported, got 'no_such_shop:Customer' (ModuleNotFoundError:",
        ),
        (
            ["--follower", "empty_shop:Customer"],
            "`follower` must be MODULE:CLASS, got 'empty_shop:Customer'; the module empty_shop ({here}/empty_shop.py) "
            "has no 'Customer'",
        ),
        (["--follower", "shop_at_fault:Customer"], "(ZeroDivisionError: division by zero, {here}/shop_at_fault.py, l"),
        (
            ["--env", "My/ShopWithoutClass-v0"],
            "`problem` must be MODULE:CLASS that can be imported, got 'empty_shop:Shop'",
        ),
        (
            ["--env", "My/ShopWithoutModule-v0"],
            "`problem` must be MODULE:CLASS that can be imported, got 'no_such_shop:Shop'",
        ),
    ],
)
def test_a_module_that_cannot_be_had_ends_in_one_line(faulty, capsys, command, arguments, message):
    for name, problem in (
        ("My/ShopWithoutClass-v0", "empty_shop:Shop"),
        ("My/ShopWithoutModule-v0", "no_such_shop:Shop"),
    ):
        gym.register(name, entry_point="bilevel_envs.gym_env:make_env", kwargs={"problem": problem})
    with pytest.raises(SystemExit) as stop:
        main([command, "--env", "BiLevel/TollBridge-v0", *arguments, "--out", "out"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("bilevel: `")  # the argument's name
    assert message.format(here=faulty) in error
    assert error.count("\n") == 1
    assert not (faulty / "out").exists()


@pytest.mark.parametrize(
    ("leader", "message"),
    [
        (
            "no_such_shop:Owner",
            "`leader` must be MODULE:CLASS that can be imported, got 'no_such_shop:Owner' (ModuleNotFoundError:",
        ),
        (
            "empty_shop:Owner",
            "`leader` must be MODULE:CLASS, got 'empty_shop:Owner'; the module empty_shop ({here}/empty_shop.py) "
            "has no 'Owner'",
        ),
    ],
)
def test_a_leader_that_cannot_be_had_ends_in_one_line(faulty, capsys, leader, message):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--env", "BiLevel/TollBridge-v0", "--leader", leader, "--out", "out"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.format(here=faulty) in error
    assert error.count("\n") == 1
    assert not (faulty / "out").exists()
