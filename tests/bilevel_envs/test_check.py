"""The conformance checkers: one fault at a time is found and named, and what has none passes."""

import re
import sys
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

from bilevel_envs import (
    BestResponse,
    BilevelWrapper,
    BoltzmannPolicy,
    ConfigurableDynamics,
    ConfigurableMDP,
    ConfigurableRewards,
    FiniteGame,
    GameEnv,
    GaussianPolicy,
    LeaderEnv,
    LinearEnv,
    ParallelGameEnv,
    Preferences,
    SimulatedEnv,
    Table,
    TabularEnv,
    TabularModel,
    TabularVectorEnv,
)
from bilevel_envs.core.follower import Capabilities
from bilevel_envs.followers import Quantal, Riccati, SB3Follower, SoftValueIteration
from bilevel_envs.markov_games.guided_pendulum_v0 import GuidedPendulum
from bilevel_envs.networks.leader_policies import GaussianTanhNetwork
from bilevel_envs.networks.policies import NetworkGaussian
from bilevel_envs.parameterizations import Box, Free
from bilevel_envs.registration import PROBLEMS
from bilevel_envs.testing import ConformanceError, check_bilevel_env, check_follower
from bilevel_envs.testing.env import env_of
from bilevel_envs.testing.follower import _integral
from bilevel_envs.testing.laws import Points, law_of
from bilevel_envs.testing.model import STEP, _differences
from bilevel_envs.testing.statistics import binomial, chi_square
from bilevel_envs.testing.subject import Steps
from leaders.cli.main import main
from tests.helpers import Pendulums
from tests.lake import PREFERENCES, SPACE, Knowing, led_lake, logged, r_follower, r_leader

# A user's own environment, as healthy as can be, and the same with one fault ------------------------------------

STATES, ACTIONS = 4, 2
SHIFT = torch.eye(STATES, dtype=torch.float64).roll(1, 1)  # from every state to the next


def street_model(theta):
    """On a ring of houses; θ₀ is the toll of going on, θ₁ how often that fails, and where one begins."""
    toll, fails = theta[:, 0, None, None], 0.2 + 0.5 * theta[:, 1, None, None]
    eye = torch.eye(STATES, dtype=torch.float64)
    goes = fails * eye + (1 - fails) * SHIFT
    stays = 0.9 * eye + 0.1 * SHIFT
    p = torch.stack([stays.expand(len(theta), -1, -1), goes], 2)
    worth = torch.tensor([0.0, 0.3, 1.0, -0.5], dtype=torch.float64)[None, :, None].expand(len(theta), -1, ACTIONS)
    going = torch.tensor([0.0, 1.0], dtype=torch.float64)
    first = torch.stack([theta[:, 1] / 2, 1 - theta[:, 1] / 2, 0 * toll[:, 0, 0], 0 * toll[:, 0, 0]], 1)
    continues = torch.ones(1, STATES, ACTIONS, dtype=torch.float64)
    continues[0, 3, 1] = 0
    return TabularModel(p, first, worth.flip(1) + toll * going, worth - toll * going, continues)


class Street(gym.Env):
    """The ring as somebody writes it who knows Gymnasium."""

    theta_space = gym.spaces.Box(0.0, 1.0, (2,), np.float64)
    preferences = Preferences(0.9, 0.9, 0.2)
    default_theta = np.array([0.5, 0.5])
    observation_space = gym.spaces.Discrete(STATES)
    action_space = gym.spaces.Discrete(ACTIONS)

    def __init__(self):
        self.known = {}
        self.configure(self.default_theta)

    def model(self, theta):
        theta = torch.as_tensor(theta)
        return street_model(theta.reshape(-1, 2))

    def parameterization(self, runs, noise):
        return Box(noise.normal(2), 0.0, 1.0)

    def checked(self, theta):
        theta = np.array(theta, dtype=float)
        if theta.shape != (2,) or not ((theta >= 0) & (theta <= 1)).all():
            raise ValueError("θ must be two numbers in [0, 1]")
        return theta

    def configure(self, theta):
        self.theta = self.checked(theta)

    def draw(self, p):
        return int(np.searchsorted(p.cumsum()[:-1], self.np_random.random(), side="right"))

    def tables_at(self, theta):
        if theta.tobytes() not in self.known:
            model = self.model(theta)
            tables = (model.r_follower, model.r_leader, model.continues, model.moves.dense(), model.initial)
            self.known[theta.tobytes()] = [table.numpy() for table in tables]
        return list(self.known[theta.tobytes()])

    def begin(self):
        *self.tables, initial = self.tables_at(self.theta)
        self.state, self.clock = self.draw(initial[0]), 0

    def seen(self):
        return self.state

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options:
            self.configure(options["theta"])
        self.begin()
        return self.seen(), {}

    def step(self, action):
        at = (0, self.state, int(action))
        r_f, r_l, goes_on, p = (float(table[at]) if table.ndim == 3 else table[at] for table in self.tables)
        over = goes_on == 0
        self.state = self.draw(p)
        self.clock += 1
        return self.seen(), r_f, over, False, {"leader_reward": r_l}


class Forgets(Street):
    def reset(self, *, seed=None, options=None):
        told = super().reset(seed=seed, options=options)
        self.theta = self.default_theta.copy()
        return told


class AcceptsAll(Street):
    def checked(self, theta):
        return np.clip(super().checked(np.clip(np.nan_to_num(np.resize(theta, 2)), 0, 1)), 0, 1)


class AssertsOnly(Street):
    def checked(self, theta):
        assert np.shape(theta) == (2,), "two numbers"
        return super().checked(theta)


class SetsFirst(Street):
    def configure(self, theta):
        self.theta = np.resize(np.nan_to_num(theta), 2).clip(0, 1)
        self.theta = self.checked(theta)


class DeafReset(Street):
    def reset(self, *, seed=None, options=None):
        if options:
            self.checked(options["theta"])
        return super().reset(seed=seed)


class Borrows(Street):
    def configure(self, theta):
        self.checked(theta)
        self.theta = theta


class NoEdge(Street):
    def checked(self, theta):
        if (np.asarray(theta) == 1).any():
            raise ValueError("not quite")
        return super().checked(theta)


class Oversteps(Street):
    def parameterization(self, runs, noise):
        return Free(5 + noise.normal(2))


class NoMatter(Street):
    def model(self, theta):
        theta = torch.as_tensor(theta).reshape(-1, 2)
        return street_model(0 * theta + 0.5)


class Modelled(Street):
    """With a fault of `changed`, of which the environment's own steps know nothing."""

    def model(self, theta):
        return self.changed(torch.as_tensor(theta).reshape(-1, 2))


class CutReward(Modelled):
    def changed(self, theta):
        model = street_model(theta)
        return replace(model, r_follower=model.r_follower.detach())


class CutLeaderTerm(Modelled):
    def changed(self, theta):
        model = street_model(theta)
        half = model.r_leader / 2
        return replace(model, r_leader=half + half.detach())


class CutMoves(Modelled):
    def changed(self, theta):
        model = street_model(theta)
        return TabularModel(model.transition.detach(), model.initial, model.r_leader, model.r_follower, model.continues)


class CutStart(Modelled):
    def changed(self, theta):
        model = street_model(theta)
        return TabularModel(model.transition, model.initial.detach(), model.r_leader, model.r_follower, model.continues)


class FirstRunOnly(Modelled):
    def changed(self, theta):
        return street_model(theta[:1].expand(len(theta), -1))


class OldTable(Street):
    """Steps in the world of the default θ, whatever is configured, but for the rewards and the start."""

    def reset(self, *, seed=None, options=None):
        told = super().reset(seed=seed, options=options)
        self.tables[3] = self.tables_at(self.default_theta)[3]
        return told


class PaysArrival(Street):
    def step(self, action):
        seen, _, *rest = super().step(action)
        return seen, float(self.tables[0][0, self.state, int(action)]), *rest


class PaysByChance(Street):
    """r_F as a mean: what a step pays depends on where it leads, and on a coin."""

    def step(self, action):
        before = self.state
        p = self.tables[3][0, before, int(action)]
        seen, reward, over, cut, info = super().step(action)
        surplus = np.arange(STATES) - p @ np.arange(STATES)
        return seen, reward + surplus[self.state] + self.np_random.choice([-0.1, 0.1]), over, cut, info


class PaysMoreByChance(PaysByChance):
    def step(self, action):
        seen, reward, *rest = super().step(action)
        return seen, reward + 0.2, *rest


class PaysLeaderTwice(Street):
    def step(self, action):
        *told, info = super().step(action)
        return *told, {"leader_reward": 2 * info["leader_reward"]}


class StartsAnywhere(Street):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.state = self.draw(np.full(STATES, 1 / STATES))
        return self.seen(), {}


class NeverEnds(Street):
    def step(self, action):
        seen, reward, _, cut, info = super().step(action)
        return seen, reward, False, cut, info


class CutsItself(Street):
    def step(self, action):
        seen, reward, over, _, info = super().step(action)
        return seen, reward, over, self.clock >= 7, info


class Unseeded(Street):
    def draw(self, p):
        return int(np.random.default_rng().choice(len(p), p=p))


class OneSeed(Street):
    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=0)
        if options:
            self.configure(options["theta"])
        self.begin()
        return self.seen(), {}


class Elsewhere(Street):
    observation_space = gym.spaces.Discrete(STATES - 1)


class NotANumber(Street):
    def step(self, action):
        seen, reward, *rest = super().step(action)
        return seen, float("nan") if self.clock == 5 else reward, *rest


class Silent(Street):
    def step(self, action):
        *told, _ = super().step(action)
        return *told, {}


class Arrays(Street):
    """Shows the house as a vector of one entry."""

    observation_space = gym.spaces.Box(0.0, STATES - 1.0, (1,), np.float64)

    def observations(self):
        return np.arange(float(STATES))[:, None]

    def seen(self):
        return np.array([float(self.state)])


class OneBuffer(Arrays):
    buffer = np.zeros(1)

    def seen(self):
        self.buffer[0] = self.state
        return self.buffer


class SharedTheta(Street):
    """θ of the class: all copies have the one that was set last."""

    kept = np.array([0.5, 0.5])

    @property
    def theta(self):
        return type(self).kept.copy()

    @theta.setter
    def theta(self, theta):
        type(self).kept = theta

    def step(self, action):
        *self.tables, _ = self.tables_at(self.theta)
        return super().step(action)


class OwnGenerator(Street):
    def reset(self, *, seed=None, options=None):
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        if options:
            self.configure(options["theta"])
        self.begin()
        return self.seen(), {}

    def draw(self, p):
        return int(self.rng.choice(len(p), p=p))


class Breaks(Street):
    def step(self, action):
        raise KeyError("the key to the house")


# Other kinds of worlds, likewise ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreetProblem(ConfigurableMDP):
    theta_space = Street.theta_space
    default_theta = Street.default_theta
    preferences = Street.preferences

    def model(self, theta):
        return street_model(theta)

    def parameterization(self, runs, noise):
        return Box(noise.normal(2), 0.0, 1.0)


class Budgeted(StreetProblem):
    """θ sums to 0.3 at most, by a rule of its own, and has no parameterisation."""

    default_theta = np.array([0.1, 0.1])

    def check_theta(self, theta):
        super().check_theta(theta)
        if (theta.sum(-1) > 0.3).any():
            raise ValueError("too much")

    def parameterization(self, runs, noise):
        return None


class GenerousCopies(TabularVectorEnv):
    def step(self, actions):
        seen, reward, *rest = super().step(actions)
        return seen, reward + 1, *rest


class Generous(TabularEnv):
    def copies(self, count, max_episode_steps=None):
        return GenerousCopies(self.problem, count, max_episode_steps=max_episode_steps)


class Restless(LinearEnv):
    """Noise of three standard deviations instead of one."""

    def _advance(self, action):
        mean = self._stepper.model.mean_next(*(torch.tensor(x)[None, None] for x in (self._state, action)))[0, 0]
        arrived, *rest = super()._advance(action)
        return mean.numpy() + 3 * (arrived - mean.numpy()), *rest


class WritesActions(LinearEnv):
    def step(self, action):
        told = super().step(action)
        action *= 0
        return told


class Ends(LinearEnv):
    def step(self, action):
        seen, reward, _, cut, info = super().step(action)
        return seen, reward, self._step > 9, cut, info


@dataclass(frozen=True)
class WideNetwork(GaussianTanhNetwork):
    """Draws with half of the deviation that its density has."""

    def sample(self, theta, state, normal):
        return super().sample(theta, state, normal / 2)


@dataclass(frozen=True)
class WidePendulum(GuidedPendulum):
    @property
    def network(self):
        return WideNetwork((len(self.low), 8, 1), self.reaches[0])


@dataclass(frozen=True)
class SmallPendulum(GuidedPendulum):
    @property
    def network(self):
        return GaussianTanhNetwork((len(self.low), 8, 1), self.reaches[0])


FAVOUR = np.array([1.0, 0.0])
MOVES = np.zeros((2, 2, 2, 2))
MOVES[:, :, 0] = [0.8, 0.2]
MOVES[:, :, 1] = [0.3, 0.7]


class Favours(FiniteGame):
    def __init__(self):
        super().__init__(
            MOVES,
            [0.5, 0.5],
            np.tile(3 * FAVOUR - FAVOUR[:, None], (2, 1, 1)),
            np.tile(3 * FAVOUR[:, None] - FAVOUR, (2, 1, 1)),
            horizon=20,
        )


class PaysOther(Favours):
    def advance(self, state, leader_action, action, rng=None):
        following, r_l, r_f = super().advance(state, leader_action, action, rng)
        return following, r_l, r_f + 0.5


class MovesOther(Favours):
    def advance(self, state, leader_action, action, rng=None):
        return (
            super().advance(state, leader_action, 1 - action, rng)[:1]
            + super().advance(state, leader_action, action, rng)[1:]
        )


class OwnChance(Favours):
    def advance(self, state, leader_action, action, rng=None):
        return super().advance(state, leader_action, action, np.random.default_rng())


def lake(**changed):
    how = {
        "theta_space": SPACE,
        "r_follower": r_follower,
        "r_leader": r_leader,
        "preferences": PREFERENCES,
        "components": logged,
    }
    return ConfigurableRewards("FrozenLake-v1", **(how | changed))


class Counter:
    """Counts its calls."""

    count = 0

    def __call__(self, *_):
        self.count += 1
        return float(self.count)


def counted():
    counter = Counter()
    return lake(components=lambda *step: [*logged(*step)[:3], counter()])


def uneven():
    return lake(components=lambda *step: [*logged(*step)] + [1.0] * (step[3] == 4))


def elsewhere():
    one = gym.make("FrozenLake-v1")
    how = {"components": lambda o, a, r, n, i: [r, one.unwrapped.s % 4 == 0, one.unwrapped.s % 4 == 2, 1.0]}
    how |= {"theta_space": SPACE, "r_follower": r_follower, "r_leader": r_leader, "preferences": PREFERENCES}
    return ConfigurableRewards(one, **how)


def moody():
    counter, made = Counter(), []
    made.append(lake(r_leader=lambda theta, c: r_leader(theta, c) + (counter() if made else 0)))
    return made[0]


def thresholded():
    return lake(r_leader=lambda theta, c: r_leader(theta, c) - 0.3 * (theta[..., 0] > 0.55))


def pendulum(configure, env="Pendulum-v1", entries=1):
    """Gymnasium's pendulum with θ in its physics, and a tax on θ₀ in the leader's reward."""
    return ConfigurableDynamics(
        env,
        gym.spaces.Box(0.5, 1.5, (entries,), np.float64),
        configure,
        lambda theta, c: c[..., 0] - theta[..., 0],
        Preferences(0.95, 0.95, 0.1),
    )


def set_mass(env, theta):
    env.unwrapped.m = theta[0]


def heavier():
    return pendulum(set_mass)


def misspelt():
    def configure(env, theta):
        env.unwrapped.mass = theta[0]

    return pendulum(configure)


def set_on_a_wrapper():
    def configure(env, theta):
        env.m = theta[0]

    return pendulum(configure, gym.wrappers.TimeAwareObservation(gym.make("Pendulum-v1")))


def scaled_again_and_again():
    def configure(env, theta):
        env.unwrapped.m *= theta[0]

    return pendulum(configure)


def moved_by_what_was_set_before():
    """Keeps the heaviest mass that was ever set."""

    def configure(env, theta):
        env.unwrapped.m = max(getattr(env.unwrapped, "heaviest", 0.0), theta[0])
        env.unwrapped.heaviest = env.unwrapped.m

    return pendulum(configure)


class OneKilogram(gym.Wrapper):
    """Begins every episode with the same mass."""

    def reset(self, **how):
        self.unwrapped.m = 1.0
        return super().reset(**how)


def undone():
    """Of mass and length, the one is set again by `reset`."""

    def configure(env, theta):
        env.unwrapped.m, env.unwrapped.l = theta[0], theta[1]

    return pendulum(configure, OneKilogram(gym.make("Pendulum-v1")), entries=2)


def generous():
    return Generous(StreetProblem())


def restless():
    return Restless(Pendulums())


def writes_actions():
    return WritesActions(Pendulums())


def ends_early():
    return Ends(Pendulums())


def wide():
    return SimulatedEnv(WidePendulum())


@pytest.fixture
def clocks():
    """An id whose environment takes its own time limit for an end."""

    class Clock(Street):
        def step(self, action):
            seen, reward, _, cut, info = super().step(action)
            return seen, reward, self.clock >= 6, cut, info

        def model(self, theta):
            model = super().model(theta)
            return replace(model, continues=torch.ones_like(model.continues), structure=None)

    gym.register("Clock-v0", entry_point=Clock, max_episode_steps=6, disable_env_checker=True)
    yield "Clock-v0"
    del gym.registry["Clock-v0"]


FAULTS = [
    (Breaks, "episodes can be stepped", "KeyError: 'the key to the house'"),
    (Oversteps, "θ: its parameterisation stays in its space", "is refused: ValueError: θ must be two numbers"),
    (NoEdge, "θ: accepted inside its space", r"a θ at the edge of the space\nfound:     \[1.0, 1.0\] is refused"),
    (AcceptsAll, "θ: refused outside its space", "of one entry too many, .*\nfound:     it is accepted"),
    (AssertsOnly, "θ: refused outside its space", "it raises AssertionError: two numbers"),
    (SetsFirst, "θ: kept when another is refused", "`theta` is .*, before it was"),
    (Forgets, "θ: kept over resets", r"`theta` is \[0.5, 0.5\] where \[.*\] was configured"),
    (DeafReset, "θ: `reset` options and `configure` agree", r"`theta` is \[0.5, 0.5\] where the options say"),
    (Borrows, "θ: an array of its own", "after the array given to `configure` was changed"),
    (NoMatter, "θ: changes rewards or dynamics", "they are the same to the last digit"),
    (FirstRunOnly, "model: several θ at once", "in run 1 they differ by up to"),
    (CutReward, "model: gradients are those of differences", "autograd gives none, while r_follower at"),
    (CutLeaderTerm, "model: gradients are those of differences", "differences give .* for r_leader at"),
    (CutMoves, "model: gradients are those of differences", "autograd gives none, while p at"),
    (CutStart, "model: gradients are those of differences", "autograd gives none, while ρ0 at"),
    (thresholded, "model: no jumps in θ", r"near θ = \[.*\] it changes by"),
    (PaysArrival, "steps: rewards are the model's", "the reward of .* against model.θ..r_follower"),
    (PaysMoreByChance, "steps: rewards are the model's", "steps paid .* on average, the model has"),
    (PaysLeaderTwice, "steps: rewards are the model's", 'leader_reward"] of .* against model.θ..r_leader'),
    (OldTable, "steps: transitions are the model's", "while the model has"),
    (StartsAnywhere, "steps: first states are the model's", "began in state [23], of which ρ0 is 0"),
    (NeverEnds, "ends: limits truncate, ends terminate", r"\(3, 1\) it was False, and `continues` is 0"),
    (CutsItself, "ends: limits truncate, ends terminate", "episodes were cut earlier, the first after 7 steps"),
    (Unseeded, "seeds: the same one repeats an episode", "at step .* observation is|the first observation is"),
    (OneSeed, "seeds: another one is another episode", "all of them are the same; 0 of 12 without a seed differ"),
    (Elsewhere, "spaces: observations are members", "3 .* is no member"),
    (NotANumber, "rewards: finite, the leader's in `info`", "are not finite; step 4 of an episode"),
    (Silent, "rewards: finite, the leader's in `info`", 'it has no "leader_reward"; its keys are'),
    (OneBuffer, "shared objects: observations stay as they were", "have changed, the first from"),
    (SharedTheta, "shared objects: copies are independent", "θ is .*, not"),
    (OwnGenerator, "Gymnasium: check_env", "random number generator|np_random"),
    (generous, "vector form: copies are scalar environments", "at step 0 reward is"),
    (restless, "steps: transitions are the model's", "the standard deviation (2.9|3.0).* where 1 is"),
    (writes_actions, "shared objects: actions are not written into", "given was"),
    (ends_early, "ends: limits truncate, ends terminate", "the first of them step 9"),
    (PaysOther, "game: moves are the model's", r"steps paid \S+ on average, the model has (-1|0|2|3)\n"),
    (MovesOther, "game: moves are the model's", "transitions of .* draws against p"),
    (OwnChance, "game: both PettingZoo forms agree", "after step"),
    (counted, "components: the same when logged twice", "and then"),
    (
        uneven,
        "episodes can be stepped",
        "`components` must give as many numbers at every step, 4 as at the first, got 5",
    ),
    (moody, "components: the same when logged twice", "r_leader.θ, components. of .* computed twice"),
    (elsewhere, "components: of the step alone", "at step .* they are"),
    (misspelt, "configure: θ moves the steps", "θ does not reach the steps"),
    (set_on_a_wrapper, "configure: θ moves the steps", "θ does not reach the steps"),
    (undone, "configure: θ moves the steps", r"values of θ.0., set(.|\n)*`reset` of the environment sets again"),
    (
        scaled_again_and_again,
        "configure: the same θ makes the same world",
        "and once more\n.* in one and .* in the other",
    ),
    (moved_by_what_was_set_before, "configure: the same θ makes the same world", r"and after θ = \["),
]


@pytest.mark.slow
@pytest.mark.parametrize(("made", "name", "words"), FAULTS, ids=[made.__name__ for made, *_ in FAULTS])
def test_a_fault_is_found_by_the_check_that_is_about_it_and_by_no_other(made, name, words):
    steps = 1_500 if made in (OldTable, PaysMoreByChance) else 500  # what chance hides takes more of them
    report = check_bilevel_env(made(), steps=steps, raises=False)
    assert list(report.findings) == [name], report
    assert re.search(words, str(report.findings[name][0])), report


@pytest.mark.slow
def test_a_leader_that_draws_narrower_than_its_density_is_found():
    report = check_bilevel_env(wide(), steps=500, raises=False)
    assert list(report.findings) == ["steps: transitions are the model's"], report
    assert "actions of the leader against log f" in str(report)


def test_a_limit_of_its_own_is_no_end(clocks):
    report = check_bilevel_env(clocks, steps=600, raises=False)
    assert list(report.findings) == ["ends: limits truncate, ends terminate"], report
    assert "all of them set `terminated` at step 5" in str(report)


# What has no fault --------------------------------------------------------------------------------------------


HEALTHY = [
    Street,
    Arrays,
    PaysByChance,
    lambda: gym.wrappers.TimeLimit(TabularEnv(StreetProblem()), 5),
    StreetProblem,
    Budgeted,
    lambda: LinearEnv(Pendulums()),
    Favours,
    lambda: replace_sight(Favours()),
    lake,
    heavier,
]


def replace_sight(game):
    object.__setattr__(game, "sees_leader", False)
    return game


@pytest.mark.slow
@pytest.mark.parametrize("made", HEALTHY)
def test_what_has_no_fault_passes(made):
    report = check_bilevel_env(made(), steps=500)
    assert report.ok
    assert len(report.results) > 20


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_no_seed_accuses_what_has_no_fault(seed):
    for made in (Street, PaysByChance, Favours):
        check_bilevel_env(made(), steps=300, seed=seed)


QUICK = ("TollBridge", "FourRooms", "RandomMDP", "Warehouse")


@pytest.mark.parametrize("name", QUICK)
def test_small_environments_of_ours_pass(name):
    check_bilevel_env(f"BiLevel/{name}-v0", steps=500)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_environment_of_ours_passes(name):
    check_bilevel_env(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("FourRooms", {"observation": "vector", "dynamics": "mismatched"}),
        ("FourRooms", {"dynamics": "classic"}),
        ("Warehouse", {"observation": "vector", "rows": 9, "columns": 13, "tolls": True}),
        ("TaxDesign-small", {"actions": "flat", "observe_type": True}),
        ("FourRooms", {"pairs": True}),
        ("BilevelLQR", {"policy": "mlp"}),
        ("GuidedCartPole", {"flip": True, "discrete": 3}),
    ],
)
def test_other_forms_of_ours_pass_too(name, arguments):
    check_bilevel_env(gym.make(f"BiLevel/{name}-v0", **arguments))


# Followers ----------------------------------------------------------------------------------------------------


class Planner:
    """Solves the table; `changed` may spoil the answer."""

    beta = None

    def best_response(self, model, preferences, init=None):
        return self.changed(SoftValueIteration().best_response(model, preferences, init))

    def changed(self, best):
        return best


@dataclass(frozen=True)
class Told(BoltzmannPolicy):
    """A table that tells or draws something else."""

    shift: float = 0.0
    even: bool = False

    def log_prob(self, state, action):
        return super().log_prob(state, action) + self.shift

    def sample(self, state, uniform):
        if self.even:
            return (torch.as_tensor(uniform) * ACTIONS).long()
        return super().sample(state, uniform)


class Bare:
    """A policy without a table, in a table."""

    def __init__(self, policy):
        self.log_prob, self.sample = policy.log_prob, policy.sample


class Unnormalised(Planner):
    def changed(self, best):
        return replace(best, policy=Told(best.policy.log_probs, shift=0.3))


class SamplesEvenly(Planner):
    def changed(self, best):
        return replace(best, policy=Told(best.policy.log_probs, even=True))


class Truthful(Planner):
    def changed(self, best):
        return replace(best, policy=Told(best.policy.log_probs))


class ActsOtherwise(Planner):
    def changed(self, best):
        return replace(best, actual_policy=Told(best.policy.log_probs, even=True))


class AnswersBare(Planner):
    def changed(self, best):
        return replace(best, policy=Bare(best.policy))


class WrongSize(Planner):
    def changed(self, best):
        return replace(best, q=Table(best.q.values[..., :1]))


class NegativeResidual(Planner):
    def changed(self, best):
        return replace(best, residual=best.residual - 1)


class Stubborn(Planner):
    """Answers as it did at first, to whatever θ: kept on the class."""

    def best_response(self, model, preferences, init=None):
        even = torch.full_like(model.r_follower, 1 / ACTIONS).log()
        return BestResponse(BoltzmannPolicy(even), Table(even), Table(even[..., 0]), torch.zeros(1).double(), False)


class Erratic(Planner):
    def changed(self, best):
        spoilt = best.policy.log_probs + 0.1 * torch.from_numpy(np.random.default_rng().random(ACTIONS))
        return replace(best, policy=BoltzmannPolicy(torch.log_softmax(spoilt, -1)))


class Grows(Planner):
    """Learns with every response, and says what it has learnt; `forgets` leaves that out."""

    forgets = False

    def __init__(self):
        self.calls = 0

    def changed(self, best):
        self.calls += 1
        log_probs = torch.log_softmax(best.policy.log_probs / (1 + 1 / self.calls), -1)
        return replace(best, policy=BoltzmannPolicy(log_probs))

    def state_dict(self):
        return {"calls": 0 if self.forgets else self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Forgetful(Grows):
    forgets = True


class Meddles(Planner):
    """Learns in the environment itself."""

    capabilities = Capabilities(learns=True)

    def __init__(self, env):
        self.env = env

    def respond(self, task, theta, model, init=None, learn=True):
        self.env.unwrapped.configure(theta[0])
        return self.best_response(model, task.preferences)


class TooWide(Planner):
    """A Gaussian whose density is that of twice its covariance."""

    def best_response(self, model, preferences, init=None):
        best = Riccati().best_response(model, preferences)
        wide = TwoCovariances(best.policy.gain, best.policy.covariance)
        return replace(best, policy=wide)


class TwoCovariances(GaussianPolicy):
    def log_prob(self, state, action):
        return GaussianPolicy(self.gain, 2 * self.covariance).log_prob(state, action)


class HalfDensity(TooWide):
    def best_response(self, model, preferences, init=None):
        best = Riccati().best_response(model, preferences)
        return replace(best, policy=Halved(best.policy.gain, best.policy.covariance))


class Halved(GaussianPolicy):
    def log_prob(self, state, action):
        return super().log_prob(state, action) + np.log(0.5)


BAD_FOLLOWERS = [
    (WrongSize, StreetProblem, "answers with a response", r"its q must be a table of shape \[1, 4, 2\]"),
    (AnswersBare, StreetProblem, "answers with a response", "AttributeError: 'Bare' object has no attribute 'probs'"),
    (NegativeResidual, StreetProblem, "answers with a response", "residual"),
    (Unnormalised, StreetProblem, "log-probabilities are normalised", "it comes to 1.34986"),  # e^0.3
    (HalfDensity, Pendulums, "log-probabilities are normalised", "it comes to 0.(49|50)"),
    (SamplesEvenly, StreetProblem, "samples match log-probabilities", "with a share of 0.[45].*its probability is"),
    (ActsOtherwise, StreetProblem, "samples match log-probabilities", "its actual_policy samples"),
    (TooWide, Pendulums, "samples match log-probabilities", "the variance of entry 0 is"),
    (Stubborn, StreetProblem, "responds to θ", "they are the same"),
    (Erratic, StreetProblem, "answers alike with the same seed", "they differ by up to 0\\."),
    (Forgetful, StreetProblem, "resumes from its state", "they differ by up to 0."),
]


@pytest.mark.parametrize(
    ("follower", "problem", "name", "words"), BAD_FOLLOWERS, ids=[follower.__name__ for follower, *_ in BAD_FOLLOWERS]
)
def test_a_follower_with_one_fault_is_told_of_it(follower, problem, name, words):
    env = TabularEnv(problem()) if problem is StreetProblem else LinearEnv(problem())
    report = check_follower(follower(), env, raises=False)
    assert list(report.findings) == [f"follower: {name}"], report
    assert re.search(words, str(report.findings[f"follower: {name}"][0])), report


@pytest.mark.parametrize("deviation", [0.3, 1.0])
@pytest.mark.parametrize("told", [1.0, 0.8])
def test_densities_of_squashed_actions_are_integrated_over_their_box(deviation, told):
    def network(seen):
        return torch.tensor([0.4, -0.2, np.log(deviation), np.log(0.5)]).double().expand(len(seen), 4)

    class Policy(NetworkGaussian):
        def log_prob(self, state, action):
            return super().log_prob(state, action) + np.log(told)

    low, high = torch.tensor([-2.0, 0.0]).double(), torch.tensor([3.0, 0.1]).double()
    space = gym.spaces.Box(low.numpy(), high.numpy(), dtype=np.float64)
    total, slack = _integral(Policy((network,), low, high), torch.zeros(1, 1, 2).double(), space)
    assert slack < 0.05
    assert abs(total - told) <= slack


def test_a_follower_that_configures_the_environment_is_told_of_it():
    env = TabularEnv(StreetProblem())
    report = check_follower(Meddles(env), env, raises=False)
    assert list(report.findings) == ["follower: leaves θ alone"], report
    assert re.search(r"`theta` is \[.*\], before it was \[0.5, 0.5\]", str(report))


@pytest.mark.parametrize(
    ("follower", "env"),
    [
        (Planner(), TabularEnv(StreetProblem())),
        (Truthful(), TabularEnv(StreetProblem())),
        (Grows(), TabularEnv(StreetProblem())),
        ("soft_value_iteration", TabularEnv(StreetProblem())),
        (Quantal(0.5), TabularEnv(StreetProblem())),
        (Riccati(), LinearEnv(Pendulums())),
        (SoftValueIteration(), TabularEnv(Favours())),
        (Knowing(), led_lake().env),
        pytest.param(SB3Follower("SoftDQN", steps=150), TabularEnv(StreetProblem()), marks=pytest.mark.slow),
        pytest.param(SB3Follower("SAC", steps=150), gym.make("BiLevel/GuidedCartPole-v0"), marks=pytest.mark.slow),
    ],
)
def test_a_follower_without_fault_passes(follower, env):
    assert check_follower(follower, env).ok


# The report, and the command ----------------------------------------------------------------------------------


def test_all_findings_are_raised_in_one_error_that_says_what_to_change():
    class Both(PaysLeaderTwice, NeverEnds):
        pass

    with pytest.raises(AssertionError) as raised:
        check_bilevel_env(Both(), steps=500)
    assert isinstance(raised.value, ConformanceError)
    assert list(raised.value.report.findings) == [
        "steps: rewards are the model's",
        "ends: limits truncate, ends terminate",
    ]
    told = str(raised.value)
    assert told.startswith("Both: 2 findings in ")
    assert told.count("looked at: ") == told.count("found: ") == told.count("change: ") == 2


@pytest.mark.slow
def test_a_report_says_what_was_skipped_and_why_and_what_was_noted():
    def half_misspelt(env, theta):
        env.unwrapped.m, env.unwrapped.lenght = theta[0], theta[1]

    report = check_bilevel_env(pendulum(half_misspelt, entries=2), steps=300)
    told = str(report)
    skipped = [result.name for result in report.results if result.skipped]
    assert skipped == ["steps: transitions are the model's", "steps: first states are the model's"]
    assert told.startswith(
        f"ConfigurableDynamics(Pendulum-v1): no findings in {len(report.results) - 2} checks, 2 skip"
    )
    assert told.endswith(
        "skip  of the model only both rewards are known, not where steps lead\n"
        "      steps: transitions are the model's\n"
        "      steps: first states are the model's"
    )
    assert "ok    configure: θ moves the steps\n      note: θ[1] changed neither steps nor rewards" in told


def test_an_environment_that_repeats_no_episode_is_told_so_and_configure_is_not_accused():
    class Noisy(gym.ObservationWrapper):
        def observation(self, observation):
            return observation + np.random.default_rng().normal(0, 1e-3, 3).astype(np.float32)

    report = check_bilevel_env(pendulum(set_mass, Noisy(gym.make("Pendulum-v1"))), steps=300, raises=False)
    (configure,) = [result for result in report.results if result.name == "configure: the same θ makes the same world"]
    assert configure.skipped == "the environment does not repeat an episode of one seed, even without `configure`"
    assert "seeds: the same one repeats an episode" in report.findings


def test_a_follower_in_a_wrapper_is_checked_with_its_environment():
    report = check_bilevel_env(BilevelWrapper(TabularEnv(StreetProblem()), Unnormalised()), steps=300, raises=False)
    assert list(report.findings) == ["follower: log-probabilities are normalised"]
    assert "steps: transitions are the model's" in {result.name for result in report.results}


def test_the_environment_has_its_theta_again():
    env, theta = TabularEnv(StreetProblem(), theta=[0.2, 0.9]), np.array([0.2, 0.9])
    check_bilevel_env(env, steps=300)
    np.testing.assert_array_equal(env.theta, theta)
    check_follower(SoftValueIteration(), env)
    np.testing.assert_array_equal(env.theta, theta)


def test_what_is_no_environment_is_refused():
    with pytest.raises(TypeError, match="CartPoleEnv lacks theta_space, preferences, configure, model"):
        check_bilevel_env("CartPole-v1")
    with pytest.raises(TypeError, match="`env` must be an object, got the class Street: make one"):
        check_bilevel_env(Street)
    for other in (None, 5, [], {}, lambda: 1):
        with pytest.raises(TypeError, match="`env` must be the id of an environment, a configurable environment"):
            check_bilevel_env(other)
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        check_bilevel_env("BiLevel/TollBridge-v0", seed=-1)


def test_forms_of_a_game_lead_to_the_same_environment():
    game = Favours()
    for form in (game, GameEnv(game), ParallelGameEnv(game), LeaderEnv(game), TabularEnv(game)):
        env = env_of(form)
        assert type(env) is TabularEnv
        assert env.problem is game
    results = check_bilevel_env(GameEnv(game), steps=300).results
    assert "PettingZoo: api_test and seed_test" in {result.name for result in results}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A module of a user's, with a problem that has no fault, and one that has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_checked", raising=False)
    (tmp_path / "my_checked.py").write_text(MODULE)
    yield
    gym.registry.pop("My/Checked-v0", None)
    sys.modules.pop("my_checked", None)


MODULE = """
import gymnasium as gym
import numpy as np
import torch

from bilevel_envs import ConfigurableMDP, Preferences, TabularModel
from bilevel_envs.followers import SoftValueIteration


class Shop(ConfigurableMDP):
    theta_space = gym.spaces.Box(0.0, 2.0, (1,), np.float64)
    default_theta = np.ones(1)
    preferences = Preferences(0.9, 0.9, 0.5)

    def __init__(self, cut=False):
        self.cut = cut

    def model(self, theta):
        price = theta.detach() if self.cut else theta
        nothing = torch.zeros(len(theta), 1, dtype=torch.float64)
        r_leader, r_follower = torch.stack([nothing, price], -1), torch.stack([nothing, 1 - theta], -1)
        ones = torch.ones(1, 1, 2, 1, dtype=torch.float64)
        return TabularModel(ones, ones[0, 0, :1], r_leader, r_follower, 0 * ones[..., 0])


class Customer:
    beta = None

    def best_response(self, model, preferences, init=None):
        return SoftValueIteration().best_response(model, preferences, init)


gym.register("My/Checked-v0", "bilevel_envs.gym_env:make_env", kwargs={"problem": "my_checked:Shop"})
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["my_checked:My/Checked-v0"],
        ["my_checked:Shop"],
        ["my_checked:Shop", "--follower", "my_checked:Customer"],
    ],
)
def test_the_command_prints_ok_and_ends_well(folder, capsys, arguments):
    main(["check", *arguments, "--steps", "300"])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("fail")]
    assert len([line for line in lines if line.startswith("ok    ")]) >= 5
    assert re.search(r": no findings in \d+ checks", lines[-1])


@pytest.mark.parametrize("name", ["my_checked:My/Checked-v0", "my_checked:Shop"])
def test_the_command_prints_what_fails_and_ends_with_1(folder, capsys, name):
    with pytest.raises(SystemExit) as ended:
        main(["check", name, "--env-args", "cut=true", "--steps", "300"])
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("fail")] == ["fail  model: gradients are those of differences"]
    assert any("found:     autograd gives none, while r_leader at (0, 1) changes by" in line for line in lines)


def test_the_command_names_what_it_cannot_import(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", "my_other:Shop"])
    assert ended.value.code == 2
    assert "`env` must be an id, MODULE:ID or MODULE:CLASS that can be imported, got 'my_other:Shop'" in (
        capsys.readouterr().err
    )


# Statistics and differences -----------------------------------------------------------------------------------


def test_chi_square_is_scipys_where_every_cell_expects_enough():
    counts, p = np.array([30, 45, 25]), np.array([0.3, 0.4, 0.3])
    other, q = np.array([60, 40]), np.array([0.5, 0.5])
    one, two = stats.chisquare(counts, 100 * p), stats.chisquare(other, 100 * q)
    assert chi_square([counts], [p]) == pytest.approx(one.pvalue)
    assert chi_square([counts, other], [p, q]) == pytest.approx(stats.chi2.sf(one.statistic + two.statistic, 2 + 1))


def test_rare_cells_are_merged_before_chi_square_judges():
    counts, p = np.array([40, 57, 2, 1]), np.array([0.4, 0.57, 0.02, 0.01])
    # 2 and 1 are expected of 100: both go to the smallest cell that is left, which then expects 43
    expected = stats.chisquare([43, 57], [43, 57])
    assert chi_square([counts], [p]) == pytest.approx(expected.pvalue)
    assert chi_square([np.array([1])], [np.array([1.0])]) == 1.0


@pytest.mark.parametrize("count", [0, 3, 17, 20])
def test_binomial_is_twice_the_smaller_tail(count):
    law = stats.binom(20, 0.7)
    expected = min(1, 2 * min(law.cdf(count), law.sf(count - 1)))
    found = binomial(np.array([count]), np.array([20]), np.array([0.7]))
    assert found[0] == pytest.approx(expected, rel=1e-6)


def test_differences_are_derivatives_and_kinks_are_seen_wherever_they_lie():
    points = {k: 0.4 + k * STEP for k in (-2, -1, 0, 1, 2)}
    at = {k: torch.tensor([np.sin(3 * x), x**3], dtype=torch.float64) for k, x in points.items()}
    slope, bend = _differences(at)
    torch.testing.assert_close(slope, torch.tensor([3 * np.cos(1.2), 3 * 0.16], dtype=torch.float64), rtol=1e-9, atol=0)
    assert bend.max() < 1e-5
    for kink in np.linspace(-1.5, 1.5, 61):
        at = {k: torch.tensor([max(0.0, k - kink) * STEP], dtype=torch.float64) for k in points}
        slope, bend = _differences(at)
        error = min(abs(float(slope)), abs(float(slope) - 1))  # of both one-sided slopes, 0 and 1
        assert error <= 1.5 * float(bend) + 1e-9, kink


def test_p_values_are_uniform_under_the_law():
    rng = np.random.default_rng(0)
    rows = [np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.9, 0.1]), np.array([0.98, 0.01, 0.01])]
    drawn = [chi_square([rng.multinomial(200, row) for row in rows], rows) for _ in range(1_000)]
    for level in (0.5, 0.1, 0.02):
        share, error = np.mean(np.array(drawn) < level), (level * (1 - level) / 1_000) ** 0.5
        assert abs(share - level) < 4 * error, (level, share)


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_is_said():
    law, rng = law_of(street_model(torch.tensor([[0.3, 0.6]], dtype=torch.float64)).detach()), np.random.default_rng(0)
    p = law.model.moves.dense()[0].numpy()
    found = 0
    for _ in range(1_000):
        state, action = rng.integers(STATES, size=600), rng.integers(ACTIONS, size=600)
        arrived = (p[state, action].cumsum(-1) <= rng.random((600, 1))).sum(-1).clip(max=STATES - 1)
        none, zeros = [{}] * 600, np.zeros(600)
        steps = Steps([*state], [*action], [*arrived], zeros, zeros, zeros > 0, zeros > 0, zeros, [0], none)
        found += len(list(law.moves(Points(steps, np.array))))
    assert found == 0  # of 1,000 at a level of 1e-5: one or more in a hundred runs of this test
