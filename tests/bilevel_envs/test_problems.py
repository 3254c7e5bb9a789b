"""A problem that cannot work is refused where it enters, with what is wrong and what to do about it."""

import copy
import re
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, ConfigurableMDP, LeaderEnv, Preferences, TabularEnv, TabularModel
from bilevel_envs.core.noise import Noise
from bilevel_envs.core.problems import completed
from bilevel_envs.envs.building_thermal_control import BuildingThermalControl
from bilevel_envs.envs.tax_design import TaxDesign
from bilevel_envs.envs.tax_env import TaxEnv
from bilevel_envs.envs.toll_bridge import TollBridge
from bilevel_envs.games.pettingzoo_env import GameEnv, ParallelGameEnv
from bilevel_envs.gym_env import make_env
from bilevel_envs.markov_games.bilevel_lqr_v0 import BilevelLQR
from bilevel_envs.markov_games.guided_pendulum_v0 import GuidedPendulum
from bilevel_envs.markov_games.toy_markov_game_v0 import ToyMarkovGame
from bilevel_envs.worlds.declared.env import SimulatedEnv
from bilevel_envs.worlds.linear_quadratic.env import LinearEnv
from leaders import BCHG
from tests.helpers import ForeignEnv


@dataclass(frozen=True)
class Switch(ConfigurableMDP):
    """Two states; the second action goes to the other one, and θ is paid for it."""

    theta_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
    default_theta = np.array([0.5, -1.0])
    preferences = Preferences(0.9, 0.9, 1.0)

    def model(self, theta):
        eye = torch.eye(2, dtype=torch.float64)
        transition = torch.stack([eye, eye.flip(0)], 1)[None]
        reward = torch.stack([torch.zeros_like(theta), theta], -1)
        return TabularModel(transition, eye[:1], reward, reward)


def changed(**parts):
    return type("Changed", (Switch,), parts)()


class Unwritten(ConfigurableMDP):
    """Nothing of it is there."""


class Duck:
    """No ConfigurableMDP."""

    theta_space = Switch.theta_space
    preferences = Switch.preferences


class LateNone(Switch):
    """Returns a model at the default θ alone."""

    def model(self, theta):
        return super().model(theta) if theta[0, 0] == 0.5 else None


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TabularEnv(Switch), "Switch"),
        (lambda: TabularEnv.vector_class(Switch, 2), "Switch"),
        (lambda: LinearEnv(BuildingThermalControl), "BuildingThermalControl"),
        (lambda: LinearEnv.vector_class(BuildingThermalControl, 2), "BuildingThermalControl"),
        (lambda: SimulatedEnv(GuidedPendulum), "GuidedPendulum"),
        (lambda: SimulatedEnv.vector_class(GuidedPendulum, 2), "GuidedPendulum"),
        (lambda: TaxEnv(TaxDesign), "TaxDesign"),
        (lambda: TaxEnv.vector_class(TaxDesign, 2), "TaxDesign"),
        (lambda: GameEnv(ToyMarkovGame, "toy", None, None), "ToyMarkovGame"),
        (lambda: ParallelGameEnv(ToyMarkovGame, "toy", None, None), "ToyMarkovGame"),
        (lambda: LeaderEnv(ToyMarkovGame), "ToyMarkovGame"),
        (lambda: BilevelWrapper(TabularEnv), "TabularEnv"),
    ],
)
def test_a_class_in_place_of_an_object_is_refused(make, name):
    with pytest.raises(TypeError, match=rf"` must be an object, got the class {name}: make one, {name}\(\.\.\.\)$"):
        make()


@pytest.mark.parametrize("env", [TabularEnv, TabularEnv.vector_class])
@pytest.mark.parametrize(
    ("problem", "error", "message"),
    [
        (
            changed(default_theta=np.array([0.5, -3.0])),
            ValueError,
            "`default_theta` of Changed must be a θ that its `check_theta` allows: `theta` must lie in theta_space; at "
            "(1,) it is -3, outside [-1, 1]. Change it, or `theta_space`",
        ),
        (
            changed(default_theta=np.zeros(3)),
            ValueError,
            "`default_theta` of Changed must be numbers of the shape [2] of its `theta_space`, got "
            "array([0., 0., 0.]): give it as many numbers, inside the space, or change the space",
        ),
        (
            changed(default_theta=np.zeros((1, 2))),
            ValueError,
            "of the shape [2] of its `theta_space`, got array([[0., 0.]])",
        ),
        (changed(default_theta=None), ValueError, "of the shape [2] of its `theta_space`, got None"),
        (changed(default_theta=np.array([0.0, np.nan])), ValueError, "`theta` must be finite; at (1,) it is nan"),
        (
            changed(theta_space=gym.spaces.Discrete(3)),
            TypeError,
            "`theta_space` of Changed must be a gymnasium.spaces.Box, got Discrete(3): θ is an array of numbers "
            "between bounds, Box(low, high, shape, np.float64)",
        ),
        (changed(preferences=(0.9, 0.9, 1.0)), TypeError, "`preferences` of Changed must be a Preferences, got (0.9, "),
        (Unwritten(), TypeError, "`theta_space` of Unwritten must be a gymnasium.spaces.Box, got None"),
        (
            Duck(),
            TypeError,
            "got Duck, which lacks default_theta, model, simulator, check_theta: derive its class from",
        ),
        (
            changed(model=lambda self, theta: None),
            TypeError,
            "`model(theta)` of Changed must return a TabularModel, got None: did you forget `return`?",
        ),
        (
            changed(model=lambda self, theta: np.zeros(2)),
            TypeError,
            "`model(theta)` of Changed must return a TabularModel, got ndarray: build one from your tables or matrices",
        ),
        (changed(simulator=lambda self, theta: None), TypeError, "`simulator(theta)` of Changed must return a Tabular"),
        (
            BuildingThermalControl(),
            TypeError,
            "`model(theta)` of BuildingThermalControl must return a TabularModel, got LinearQuadraticModel: put the "
            "problem into a LinearEnv",
        ),
    ],
)
def test_an_invalid_problem_is_refused_when_it_is_put_into_an_environment(env, problem, error, message):
    with pytest.raises(error, match=re.escape(message)):
        env(problem)


@pytest.mark.parametrize("env", [LinearEnv, SimulatedEnv])
def test_a_problem_in_an_environment_of_another_kind_lacks_what_that_needs(env):
    with pytest.raises(
        TypeError, match=r"got Switch, which lacks state_space, action_space.* \(TabularEnv, LinearEnv, S"
    ):
        env(Switch())


def test_a_model_is_checked_at_every_theta():
    env = TabularEnv(LateNone())
    message = r"`model\(theta\)` of LateNone must return a TabularModel, got None"
    with pytest.raises(TypeError, match=message):
        env.model(np.zeros(2))
    with pytest.raises(TypeError, match=message):
        env.configure(np.zeros(2))
    assert env.theta.tolist() == [0.5, -1.0]  # as before


class Foreign(ForeignEnv):
    """Somebody's environment around the switch."""

    def __init__(self, **parts):
        super().__init__(TabularEnv(Switch()))
        for name, part in parts.items():
            setattr(self, name, part)


def test_parts_of_a_foreign_environment_are_checked_too():
    with pytest.raises(TypeError, match=r"`theta_space` of Foreign must be a gymnasium.spaces.Box, got \(-1, 1\)"):
        BilevelWrapper(Foreign(theta_space=(-1, 1)))
    env = BilevelWrapper(Foreign(model=lambda theta: None))
    with pytest.raises(
        TypeError, match=r"`model\(theta\)` of Foreign must return a model .*, got None: did you forget"
    ):
        BCHG(env)


@pytest.mark.parametrize(
    ("space", "default", "first"),
    [
        (gym.spaces.Box(0.0, 5.0, (2,), np.float64), [1.0, 2.5], [1.0, 2.5]),
        (gym.spaces.Box(np.array([0.0, 2.0]), np.array([1.0, 2.0]), dtype=np.float64), [0.25, 2.0], [0.25, 2.0]),
        (gym.spaces.Box(-np.inf, np.inf, (2,), np.float64), [1.0, -7.0], [1.0, -7.0]),
    ],
)
@pytest.mark.parametrize("runs", [None, 3])
def test_a_problem_without_a_parameterization_begins_at_its_default(space, default, first, runs):
    env = BilevelWrapper(TabularEnv(changed(theta_space=space, default_theta=np.array(default))))
    leader = BCHG(env, runs=runs, batch_size=20)
    np.testing.assert_allclose(leader.theta, np.broadcast_to(first, leader.theta.shape), rtol=1e-12)
    assert leader.learn(1).theta.shape == ((2,) if runs is None else (runs, 2))


def test_a_default_at_a_bound_is_told_and_moved_to_where_a_sigmoid_moves():
    space = gym.spaces.Box(np.array([0.0, 2.0]), np.array([5.0, 2.0]), dtype=np.float64)  # θ₂ is 2
    env = BilevelWrapper(TabularEnv(changed(theta_space=space, default_theta=np.array([5.0, 2.0]))))
    with pytest.warns(UserWarning, match="`default_theta` lies at a bound of `theta_space` in 1 of 1 entries"):
        leader = BCHG(env, runs=3, batch_size=20)
    np.testing.assert_allclose(leader.theta, [[4.995, 2.0]] * 3, rtol=1e-12)


def test_where_some_bounds_are_missing_a_policy_must_be_given():
    space = gym.spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 1.0]), dtype=np.float64)
    env = BilevelWrapper(TabularEnv(changed(theta_space=space, default_theta=np.zeros(2))))
    with pytest.raises(ValueError, match="`policy` must be given, since .* some bounds of `theta_space` are missing"):
        BCHG(env)


@dataclass(frozen=True)
class Routers(Switch):
    """A tabular problem whose fields are called like what only games and worlds of vectors have."""

    network: str = "ring"
    state_space: int = 2
    action_space: int = 2


def test_fields_of_a_tabular_problem_may_have_any_name():
    gym.register(
        "Test/Routers-v0",
        entry_point="bilevel_envs.gym_env:make_env",
        vector_entry_point="bilevel_envs.gym_env:make_vector_env",
        kwargs={"problem": f"{__name__}:Routers"},
        max_episode_steps=5,
    )
    try:
        env = gym.make("Test/Routers-v0", network="star", state_space=7)
        assert (type(env.unwrapped), env.unwrapped.problem) == (TabularEnv, Routers("star", 7))
        assert isinstance(gym.make_vec("Test/Routers-v0", num_envs=2), TabularEnv.vector_class)
        # θ_s is paid for going over from s; with θ_0 = θ_1 = θ both states are worth the same: p(go) = σ(θ / β)
        best = BilevelWrapper(env).best_response(np.array([0.5, 0.5]))
        np.testing.assert_allclose(best.policy.probs[0, :, 1], 1 / (1 + np.exp(-0.5)), rtol=1e-9)
    finally:
        del gym.registry["Test/Routers-v0"]


@dataclass(frozen=True)
class Stepped(Switch):
    """Names the environment that steps it."""

    environment = "bilevel_envs.worlds.linear_quadratic.env:LinearEnv"


def test_the_environment_that_a_problem_declares_is_taken():
    with pytest.raises(TypeError, match="got Stepped, which lacks state_space, action_space"):
        make_env(f"{__name__}:Stepped")
    assert type(make_env(f"{TaxDesign.__module__}:TaxDesignSmall")) is TaxEnv
    assert type(make_env(f"{BilevelLQR.__module__}:BilevelLQR")) is LinearEnv
    assert type(make_env(f"{BilevelLQR.__module__}:BilevelLQR", policy="mlp")) is SimulatedEnv


class Plain:
    """Derives from nothing of ours."""

    theta_space, preferences = Switch.theta_space, Switch.preferences

    def __init__(self):
        self.default_theta = np.array([0.25, 0.5])

    def model(self, theta):
        return Switch().model(theta)

    simulator = model

    def check_theta(self, theta):
        """Any."""


def test_a_problem_of_no_base_class_has_the_hooks_of_one():
    plain = Plain()
    problem = completed(plain)
    assert problem.default_theta is plain.default_theta  # not hidden by the property of that name
    assert (problem.draw, problem.advised, problem.environment, problem.on_grid) == (None, {}, None, False)
    assert problem.best_known(problem.preferences) is None
    assert type(problem).__name__ == "Plain"
    assert isinstance(problem, Plain)
    assert completed(problem) is problem
    assert copy.deepcopy(problem).default_theta.tolist() == [0.25, 0.5]
    plain.default_theta = np.zeros(2)
    assert problem.default_theta is plain.default_theta
    env = BilevelWrapper(TabularEnv(plain))
    assert env.rollout(np.zeros(2), env.best_response(np.zeros(2)), Noise([0]), rows=2, horizon=3).state.shape == (
        1,
        2,
        3,
    )


def leading(runs=None, **parts):
    """A leader of a toll bridge with some parts changed, after an iteration."""
    changed = type("Changed", (TollBridge,), parts)
    return BCHG(BilevelWrapper(TabularEnv(changed())), runs=runs, seed=0).learn(1)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"advised": ["batch_size"]}, TypeError, r"`advised` of Changed must map names .*, got \['batch_size'\]"),
        ({"advised": {"batchsize": 3}}, ValueError, "`advised` of Changed must have names among .*, got 'batchsize'"),
        (
            {"parameterization": lambda self, runs: None},
            ValueError,
            r"`parameterization` of Changed must be a method of \(runs, noise\) .* it raised TypeError",
        ),
        (
            {"theta_space": gym.spaces.Box(0.0, 1.0, (0,)), "default_theta": np.zeros(0)},
            ValueError,
            r"`theta_space` of Changed must have at least one entry, got shape \[0\]",
        ),
    ],
)
def test_hooks_that_return_something_else_are_named(parts, error, message):
    with pytest.raises(error, match=message):
        leading(**parts)


@pytest.mark.parametrize("count", [1, 6])
def test_a_model_of_other_runs_than_theta_is_refused(count):
    """One run's model would silently stand for all three."""

    def model(self, theta):
        return TollBridge.model(self, theta if len(theta) == 1 else theta[torch.arange(count) % 3])

    with pytest.raises(ValueError, match=rf"`model\(theta\)` of Changed must be of 3 runs, .* got {count}: keep θ's"):
        leading(3, model=model)


class TakesToNumPy(gym.Env):
    """Somebody's environment, whose model is made of NumPy's functions."""

    observation_space, action_space = gym.spaces.Discrete(1), gym.spaces.Discrete(2)
    theta_space, preferences = gym.spaces.Box(0.0, 1.0, (1,), np.float64), Preferences(0.9, 0.9, 0.1)
    theta = np.zeros(1)

    def configure(self, theta):
        self.theta = theta

    def model(self, theta):
        assert theta.shape[1:] == (1,)
        assert theta.dtype == torch.float64
        reward = torch.from_numpy(np.exp(theta.numpy()))[..., None].expand(-1, 1, 2)
        return TabularModel(torch.ones(1, 1, 2, 1).double(), torch.ones(1, 1).double(), reward, reward)


def test_a_model_that_takes_theta_to_numpy_is_told_by_name():
    env = BilevelWrapper(TakesToNumPy())
    for theta in (np.zeros(1), np.zeros((3, 1))):  # a model is given θ as a tensor with a runs axis, whoever asks
        assert env.model(theta).r_leader.shape[1:] == (1, 2)
    with pytest.raises(TypeError, match=r"`model\(theta\)` of TakesToNumPy must keep to torch operations on θ"):
        env.model(torch.zeros(1, 1, dtype=torch.float64, requires_grad=True))
