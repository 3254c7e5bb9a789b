"""An extension is one new file and one line that registers it."""

import sys
from importlib import import_module

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper, LeaderEnv
from bilevel_envs.followers import FOLLOWERS
from leaders import BCHG, exact
from leaders.cli.main import COMMANDS, main
from leaders.functional.guiding import ESTIMATORS
from leaders.worlds.tabular import TABULAR
from tests.helpers import policy_at, random_mdp, toll_bridge, z_scores

ESTIMATOR = '''
from leaders.config import EstimatorConfig, Forms
from leaders.estimators.trajectory import TrajectoryLeader
from leaders.functional.guiding import ESTIMATORS, Rule, guiding_bc_hg


def guiding_half(batch, values, discounts, preferences):
    return guiding_bc_hg(batch, values, discounts, preferences) / 2


class Half(TrajectoryLeader):
    """Half of BC-HG's guiding weight."""

    name = "half"

    def __init__(self, env, **keywords):
        super().__init__(env, {}, keywords, Forms({None: EstimatorConfig("half")}))
'''
ESTIMATOR_LINE = 'ESTIMATORS["half"] = Rule(guiding_half)'

CRITIC = '''
import torch

from leaders.worlds.tabular import TABULAR
from leaders.worlds.world import CriticEntry


class Rewards:
    """Q_L(s, b) = r_L(s, b)."""

    keeps = False

    def fit(self, batch, best, model, noise):
        self.model = model

    def values(self, batch, policy):
        v = (policy.probs * self.model.r_leader).sum(-1)[0]
        return batch.r_leader, v[batch.state], torch.where(batch.terminated, 0.0, v[batch.next_state])

    def copies(self, count):
        return Rewards()

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
'''
CRITIC_LINE = 'TABULAR.critics["rewards"] = CriticEntry(Rewards, lambda config, facts, theta_moves: Rewards())'

ENVIRONMENT = '''
import gymnasium as gym
import numpy as np
import torch

from bilevel_envs import ConfigurableMDP, Preferences, TabularModel
from bilevel_envs.parameterizations import Box


class Stall(ConfigurableMDP):
    """One customer buys (1) or not (0) at the price θ; then the episode ends."""

    theta_space = gym.spaces.Box(0.0, 2.0, (1,), np.float64)
    default_theta = np.ones(1)
    preferences = Preferences(gamma_leader=0.9, gamma_follower=0.9, beta=0.5)

    def model(self, theta):
        nothing = torch.zeros(len(theta), 1, dtype=torch.float64)
        rewards = (torch.stack([nothing, pay], -1) for pay in (theta, 1 - theta))
        ones = torch.ones(1, 1, 2, 1, dtype=torch.float64)
        return TabularModel(ones, ones[0, 0, :1], *rewards, 0 * ones[..., 0])

    def parameterization(self, runs, noise):
        return Box(np.zeros((runs, 1)), 0.0, 2.0)
'''
ENVIRONMENT_LINE = (
    """gym.register("My/Stall-v0", "bilevel_envs.gym_env:make_env", kwargs={"problem": "my_world:Stall"})"""
)

GAME = '''
import gymnasium as gym
import numpy as np
import torch

from bilevel_envs import GameTables, Preferences, TabularGame


class Favour(TabularGame):
    """Both may do the other a favour (0), which costs 1 and is worth 3; the state is what the follower did last."""

    preferences = Preferences(gamma_leader=0.9, gamma_follower=0.9, beta=0.5)

    @property
    def tables(self):
        favour = torch.tensor([1.0, 0.0], dtype=torch.float64)
        transition = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
        transition[:, :, 0, 0] = transition[:, :, 1, 1] = 1.0
        r_leader = (3 * favour - favour[:, None]).expand(2, 2, 2)
        return GameTables(transition, favour, r_leader, r_leader.mT)
'''
GAME_LINE = """gym.register("My/Favour-v0", "bilevel_envs.gym_env:make_env", kwargs={"problem": "my_game:Favour"})"""

FOLLOWER = '''
from bilevel_envs.followers import FOLLOWERS, SoftValueIteration


class Calm:
    """Optimal at a β of its own."""

    beta = 0.8

    def best_response(self, model, preferences, start=None):
        return SoftValueIteration().best_response(model, preferences, start)
'''
FOLLOWER_LINE = 'FOLLOWERS["calm"] = Calm'

COMMAND = '''
from dataclasses import dataclass

import gymnasium as gym
import tyro

from leaders import exact
from leaders.cli.main import COMMANDS


@dataclass
class Value:
    """Print the leader's value at a toll."""

    toll: float = 0.0
    """θ"""

    def run(self):
        print(f"J_L = {exact.objective(gym.make('BiLevel/TollBridge-v0'), [self.toll]):.6f}")
'''
COMMAND_LINE = 'COMMANDS.append((Value, tyro.conf.subcommand("value")))'


@pytest.fixture
def new_file(tmp_path, monkeypatch):
    """`new_file(name, text)`: the imported module of the only file in a new folder; what it registers is removed."""
    registries = (ESTIMATORS, TABULAR.critics, FOLLOWERS, gym.registry)
    before, commands, names = [dict(one) for one in registries], list(COMMANDS), []
    monkeypatch.syspath_prepend(tmp_path)

    def written(name, text):
        names.append(name)
        (tmp_path / f"{name}.py").write_text(text)
        return import_module(name)

    yield written
    for name in names:
        del sys.modules[name]
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
    COMMANDS[:] = commands


def register(module, line):
    """Runs the line at the end of the module."""
    assert "\n" not in line
    exec(compile(line, module.__file__, "single"), vars(module))


def check_led(leader):
    """A few iterations move θ, to finite numbers."""
    before = leader.theta
    leader.learn(3)
    assert np.isfinite(leader.theta).all()
    assert (leader.theta != before).any()


def test_an_estimator_is_a_file_and_a_line(new_file, tmp_path):
    module, env = new_file("my_estimator", ESTIMATOR), random_mdp()
    with pytest.raises(KeyError, match="half"):
        module.Half(env)
    register(module, ESTIMATOR_LINE)
    check_led(module.Half(env, seed=0))
    leader = module.Half(env, critic="exact")
    direct, guiding = exact.hypergradient_parts(env, leader.theta)
    samples = leader.gradient_samples(400)
    assert np.abs(z_scores(samples, direct + guiding / 2)).max() < 4
    assert np.abs(z_scores(samples, direct + guiding)).max() > 8
    assert np.abs(z_scores(samples, direct - guiding / 2)).max() > 8
    out = tmp_path / "out"
    who = ["--env", "BiLevel/TollBridge-v0", "--leader", "my_estimator:Half"]
    main(["train", *who, "--iterations", "2", "--runs", "1", "--out", str(out)])
    assert module.Half.load(out / "leader.zip", toll_bridge()).progress.iterations == 2


def test_a_critic_is_a_file_and_a_line(new_file):
    # where the leader looks no further than the step itself, Q_L is r_L
    module, env = new_file("my_critic", CRITIC), random_mdp(gamma_leader=1e-9)
    with pytest.raises(ValueError, match="`critic` must be one of .* got 'rewards'"):
        BCHG(env, critic="rewards")
    register(module, CRITIC_LINE)
    leader = BCHG(env, critic="rewards", seed=0)
    check_led(leader)
    truth = exact.hypergradient(env, leader.theta)
    assert np.abs(z_scores(leader.gradient_samples(400), truth)).max() < 4


def test_an_environment_is_a_file_and_a_line(new_file):
    module = new_file("my_world", ENVIRONMENT)
    with pytest.raises(gym.error.NamespaceNotFound):
        gym.make("My/Stall-v0")
    register(module, ENVIRONMENT_LINE)
    leader = BCHG(BilevelWrapper(gym.make("My/Stall-v0")), seed=0)
    check_led(leader)
    assert leader.history["leader_value"][0, 0] == pytest.approx(1 / 2)  # θ σ((1 − θ) / β) at θ = 1


def test_a_game_is_a_file_and_a_line(new_file):
    module = new_file("my_game", GAME)
    with pytest.raises(gym.error.NamespaceNotFound):
        gym.make("My/Favour-v0")
    register(module, GAME_LINE)
    env = gym.make("My/Favour-v0")
    check_led(BCHG(BilevelWrapper(env), seed=0))
    side = LeaderEnv(env)
    side.reset(seed=0)
    _, reward, *_, info = side.step(1)  # no favour to the follower
    assert reward == 3 * (info["follower_action"] == 0)


def test_a_follower_is_a_file_and_a_line(new_file):
    module, env = new_file("my_follower", FOLLOWER), gym.make("BiLevel/TollBridge-v0")
    with pytest.raises(ValueError, match="`follower` must be one of .* got 'calm'"):
        BilevelWrapper(env, "calm")
    register(module, FOLLOWER_LINE)
    leader = BCHG(BilevelWrapper(env, "calm"), policy=policy_at([0.1]), seed=0)
    check_led(leader)
    expected = 0.9 / (1 + np.exp((1 - 0.1 - 0.5) / 0.8))  # γ_L σ((ferry − 1 + θ) / β)
    assert leader.history["leader_value"][0, 0] == pytest.approx(expected)


def test_a_command_is_a_file_and_a_line(new_file, capsys):
    module = new_file("my_command", COMMAND)
    with pytest.raises(SystemExit):
        main(["value", "--toll", "2"])
    capsys.readouterr()
    register(module, COMMAND_LINE)
    main(["value", "--toll", "2"])
    assert capsys.readouterr().out == f"J_L = {0.9 / (1 + np.exp(-1.5 / 0.2)):.6f}\n"
