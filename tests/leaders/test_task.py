"""A task is its whole data: what differs in one entry is another one, what is made again is the same."""

import math
import subprocess
import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property, partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, ConfigurableMDP, Preferences, TabularEnv, TabularModel
from bilevel_envs.followers import ObservedFollower, SB3Follower, SoftValueIteration, Truncated
from bilevel_envs.parameterizations import Free
from leaders import BCHG, NaivePGD
from leaders.cli.main import main
from leaders.training.task import differences, digest, task_of
from tests.helpers import ForeignEnv


@dataclass(frozen=True, eq=False)
class Ring(ConfigurableMDP):
    """Seventy states in a row that closes; `pay` are the leader's rewards, more than NumPy prints."""

    pay: np.ndarray = field(default_factory=lambda: np.zeros((70, 20)))
    tensor: torch.Tensor = field(default_factory=lambda: torch.zeros(2_000))
    nested: dict = field(default_factory=dict)

    theta_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
    default_theta = np.zeros(2)
    preferences = Preferences(0.5, 0.5, 1.0)

    @cached_property
    def transition(self):
        return torch.eye(70, dtype=torch.float64).roll(1, 1)[None, :, None].expand(1, 70, 20, 70)

    def model(self, theta):
        reward = torch.from_numpy(self.pay)[None] + theta[:, :1, None]
        return TabularModel(self.transition, torch.full((1, 70), 1 / 70).double(), reward, reward * theta[:, 1:, None])

    def parameterization(self, runs, noise):
        return Free(np.zeros((runs, 2)))


def one_more(shape, at):
    pay = np.zeros(shape)
    pay[at] = 1e-9
    return pay


def ring(**kwargs):
    return BilevelWrapper(gym.wrappers.TimeLimit(TabularEnv(Ring(**kwargs)), 10))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: ring(pay=one_more((70, 20), (35, 10))), "problem: other data in `pay`"),
        (lambda: ring(tensor=torch.from_numpy(one_more(2_000, 1_000)).float()), "problem: other data in `tensor`"),
        (lambda: ring(nested={"a": [1, {"b": one_more(5_000, 2_500)}]}), r"problem: nested=.* there, nested=.* here"),
        (
            lambda: BilevelWrapper(gym.wrappers.TimeLimit(TabularEnv(Ring()), 11)),
            "time limit: 10 there, 11 here",
        ),
        (lambda: BilevelWrapper(TabularEnv(Ring())), "time limit: 10 there, None here"),
        (
            lambda: BilevelWrapper(gym.wrappers.TimeLimit(TabularEnv(Ring()), 10), SoftValueIteration(tol=1e-9)),
            "follower: tol=None there, tol=1e-09 here",
        ),
        (
            lambda: BilevelWrapper(gym.wrappers.TimeLimit(TabularEnv(Ring()), 10), Truncated()),
            "in; follower: SoftValueIteration there, Truncated here$",
        ),
        (lambda: BilevelWrapper(gym.make("BiLevel/TollBridge-v0")), "in; problem: Ring there, TollBridge here; theta"),
    ],
)
def test_a_leader_is_not_loaded_into_another_task(tmp_path, other, message):
    path = tmp_path / "leader.zip"
    BCHG(ring(), batch_size=10).learn(1).save(path)
    BCHG.load(path, env=ring()).learn(1)
    with pytest.raises(ValueError, match=f"`env` must be the task that the leader was saved {message}|.*{message}"):
        BCHG.load(path, env=other())


class Elsewhere(Ring):
    """Keeps its data where no field tells of it."""

    bonus = 0.0

    def model(self, theta):
        model = super().model(theta)
        return model.with_rewards(model.r_leader + self.bonus, model.r_follower)


class Steeper(Elsewhere):
    """The same at the default θ and by name, and nowhere else."""

    __qualname__ = "Elsewhere"

    def model(self, theta):
        model = super().model(theta)
        return model.with_rewards(model.r_leader + 3 * theta[:, :1, None], model.r_follower)


def test_data_that_no_field_holds_count_too(monkeypatch):
    env = BilevelWrapper(TabularEnv(Elsewhere()))
    before = task_of(env)
    assert differences(before, task_of(env)) == []
    monkeypatch.setattr(Elsewhere, "bonus", 0.25)
    assert differences(before, task_of(env)) == ["problem: other data in `model(θ)`"]
    monkeypatch.undo()
    steeper = BilevelWrapper(TabularEnv(Steeper()))
    assert differences(before, task_of(steeper)) == ["problem: other data in `model(θ)`"]


class Foreign(ForeignEnv):
    """Somebody's environment, which changes while it is used."""

    def __init__(self, size=10, bonus=0.0):
        super().__init__(TabularEnv(Elsewhere()), ("theta_space", "preferences", "configure", "parameterization"))
        self.steps, self.bonus = 0, bonus

    def model(self, theta):
        model = self.inner.model(theta)
        return model.with_rewards(model.r_leader + self.bonus, model.r_follower)

    def reset(self, *, seed=None, options=None):
        self.state, info = super().reset(seed=seed, options=options)
        return self.state, info

    def step(self, action):
        self.steps += 1
        return super().step(action)


@pytest.fixture
def foreign():
    gym.register("Ring-v0", entry_point=Foreign, max_episode_steps=5)
    yield lambda **kwargs: BilevelWrapper(gym.make("Ring-v0", disable_env_checker=True, **kwargs))
    del gym.registry["Ring-v0"]


def test_a_foreign_environment_is_the_same_after_use_and_another_with_other_data(foreign, tmp_path):
    env, policy = foreign(), Free(np.zeros((1, 2)))
    leader = BCHG(env, policy=policy, sampler="steps", batch_size=10).learn(1)
    env.reset(seed=3)
    env.step(0)
    leader.save(tmp_path / "leader.zip")
    for same in (env, foreign()):
        BCHG.load(tmp_path / "leader.zip", env=same, policy=Free(np.zeros((1, 2))))
    for kwargs, message in (
        ({"bonus": 1e-3}, "problem: bonus=nothing there, bonus=0.001 here"),
        ({"max_episode_steps": 6}, "time limit: 5 there, 6 here"),
    ):
        with pytest.raises(ValueError, match=message):
            BCHG.load(tmp_path / "leader.zip", env=foreign(**kwargs), policy=Free(np.zeros((1, 2))))
    changed = foreign()
    changed.unwrapped.bonus = 1.0
    with pytest.raises(ValueError, match=r"problem: other data in `model\(θ\)`"):
        BCHG.load(tmp_path / "leader.zip", env=changed, policy=Free(np.zeros((1, 2))))


class Colour(Enum):
    RED = 1
    BLUE = 2


class Plain:
    """Keeps its constructor's argument, and what it learns."""

    def __init__(self, data):
        self.data, self.learnt = data, np.random.default_rng().random(3)


def test_equal_data_have_equal_digests_and_no_other():
    big = np.arange(5_000.0)
    other = big.copy()
    other[2_500] += 1e-9
    same = [
        (big, torch.from_numpy(big.copy())),
        (1, 1.0),
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        ((1, 2), [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({3, 1, 2}, {2, 3, 1}),
        (gym.spaces.Box(0.0, 1.0, (3,)), gym.spaces.Box(0.0, 1.0, (3,))),
        (Plain(big), Plain(big)),
        (float("nan"), np.nan),
    ]
    for one, two in same:
        assert digest(one) == digest(two)
    assert len(digest(big)) == 64
    different = [
        *(big, other, big[:-1], big.astype(np.float32), big.reshape(50, 100), big.tolist()),
        *(1, 2, True, "1", None, 1.5, -1, b"1", (1,), (1, (2,)), ((1, 2),), [[], []], [[[]]], {}, {"a": 1}, {1}),
        *(Colour.RED, Colour.BLUE, Plain(big), Plain(other), Plain, Path("a"), len, torch.nn.Linear(2, 2)),
        *(gym.spaces.Box(0.0, 1.0, (3,)), gym.spaces.Box(0.0, 2.0, (3,)), gym.spaces.Discrete(3)),
        *(Ring(), Ring(nested={"a": 1}), SoftValueIteration(), replace(SoftValueIteration(), tol=0.1)),
    ]
    assert len({digest(value) for value in different}) == len(different)
    loop = [1]
    loop.append(loop)
    assert len(digest(loop)) == 64


def paying(amount, table=None):
    def pay(state, bonus=0.0):
        shares = {share + 1 for share in (1, 2, amount)}
        return (lambda x: amount * x + bonus + len(shares))(state if table is None else table[state])

    return pay


def recursive():
    def down(n):
        return n and down(n - 1)

    return down


def renamed(function, name="f"):
    function.__qualname__ = name
    return function


class Scaled:
    """Has a method whose object matters."""

    def __init__(self, scale):
        self.scale = scale

    def pay(self, state):
        return self.scale * state


def test_functions_count_by_their_code_and_by_what_they_hold():
    big = np.arange(5_000.0)
    other = big.copy()
    other[2_500] += 1e-9
    same = [
        (paying(1), paying(1)),
        (paying(1, big), paying(1, torch.from_numpy(big.copy()))),
        (paying(paying(2)), paying(paying(2))),
        (recursive(), recursive()),
        (partial(paying(1), bonus=2.0), partial(paying(1), bonus=2)),
        (Scaled(2).pay, Scaled(2).pay),
        (renamed(lambda x: x in {"a", "b", "c"}), renamed(lambda x: x in {"c", "a", "b"})),
    ]
    for one, two in same:
        assert digest(one) == digest(two)
    different = [
        *(paying(1), paying(2), paying(1, big), paying(1, other), paying(paying(1)), paying(paying(2)), recursive()),
        *(partial(paying(1), bonus=2.0), partial(paying(1), bonus=3.0), partial(paying(2), bonus=2.0)),
        *(Scaled(2).pay, Scaled(3).pay, Scaled.pay, np.sin, torch.sin, math.sin),
        *(renamed(f) for f in (lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, lambda x: x.a, lambda x: x.b)),
        *(renamed(f) for f in (lambda x=1: x, lambda x=2: x, lambda *, x=1: x, lambda *, x=2: x, lambda *x: x)),
        *(renamed(f) for f in (lambda: lambda: 1, lambda: lambda: 2)),
    ]
    assert len({digest(value) for value in different}) == len(different)


def test_addresses_in_texts_make_no_other_task():
    tasks = [task_of(ring(nested={"a": Scaled(scale)})) for scale in (1, 1, 2)]
    assert differences(tasks[0], tasks[1]) == []
    assert len(differences(tasks[0], tasks[2])) == 1


def test_a_leader_is_not_loaded_into_a_task_with_another_function(tmp_path):
    path = tmp_path / "leader.zip"
    BCHG(ring(nested={"pay": paying(1)}), batch_size=10).learn(1).save(path)
    BCHG.load(path, env=ring(nested={"pay": paying(1)})).learn(1)
    with pytest.raises(
        ValueError, match="must be the task that the leader was saved in; problem: other data in `nested`$"
    ):
        BCHG.load(path, env=ring(nested={"pay": paying(2)}))


@pytest.mark.slow
def test_digests_are_the_same_in_every_process():
    code = (
        "import gymnasium as gym, bilevel_envs\n"
        "from bilevel_envs import BilevelWrapper\n"
        "from bilevel_envs.followers import *\n"
        "from leaders.training.task import task_of, digest\n"
        "env = gym.make('BiLevel/RandomMDP-v0')\n"
        "follower = ObservedFollower(SB3Follower('DQN', steps=99))\n"
        "held = {'a', 'b', 'c'}\n"
        "def pay(state):\n"
        "    return state in {'d', 'e', 'f'} or state in held or (lambda: held)()\n"
        "def outer(held):\n"
        "    return lambda state: state in {'d', 'e', 'f'} or state in held\n"
        "print(digest(task_of(BilevelWrapper(env, follower))), digest(pay), digest(outer(held)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "1")
    }
    assert len(found) == 1


def test_followers_tell_their_arguments_and_not_what_they_have_learnt():
    env = gym.make("BiLevel/TollBridge-v0")

    def task(follower):
        return task_of(BilevelWrapper(env, follower))

    follower = ObservedFollower(observations=50)
    before = task(follower)
    NaivePGD(BilevelWrapper(env, follower)).learn(1)
    assert follower.responses == 1
    assert differences(before, task(follower)) == []
    (line,) = differences(before, task(ObservedFollower(observations=51)))
    assert line.startswith("follower: ObservedFollower(None, observations=50, ")
    assert "there, ObservedFollower(None, observations=51, " in line
    wide = [SB3Follower("SAC", action_range=np.where(np.arange(2_000) == 1_000, r, 1.0)) for r in (1.0, 2.0)]
    assert differences(*map(task, wide)) == ["follower: other data in `follower`"]


def test_a_comparison_is_not_resumed_in_another_task(tmp_path, monkeypatch, capsys):
    gym.register("Elsewhere-v0", entry_point=lambda: TabularEnv(Elsewhere()), max_episode_steps=5)
    command = ["compare", "--env", "Elsewhere-v0", "--leaders", "exact", "--runs", "2", "--iterations", "1"]
    command += ["--out", str(tmp_path / "out"), "--no-progress"]
    try:
        main(command)
        main([*command, "--resume"])
        monkeypatch.setattr(Elsewhere, "bonus", 0.5)
        with pytest.raises(SystemExit):
            main([*command, "--resume"])
    finally:
        del gym.registry["Elsewhere-v0"]
    assert "another configuration (problem: other data in `model(θ)`)" in capsys.readouterr().err
