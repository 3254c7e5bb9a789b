"""Policies, batches and responses that do not fit their world are refused before tables are indexed with them."""

import time
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, ConfigurableMDP, LeaderEnv, Preferences, TabularEnv, TabularModel
from bilevel_envs.core.follower import FollowerError
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.markov_games import toy_markov_game_v0
from bilevel_envs.parameterizations import Free
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from bilevel_envs.worlds.tabular.rollout import table_rollout
from bilevel_envs.worlds.world import world_of
from leaders import BCHG, CMAES, RandomSearch, ZerothOrder, exact
from leaders.training.checkpoint import read, write
from tests.helpers import ForeignEnv


def uniform(states, actions, runs=1):
    return BoltzmannPolicy(torch.full((runs, states, actions), 1 / actions, dtype=torch.float64).log())


@pytest.mark.parametrize("sampler", ["fused", "steps"])
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (uniform(104, 5), r"`policy.probs` must have shape \[1, 104, 4\], .*; got \[1, 104, 5\]"),
        (uniform(103, 4), r"got \[1, 103, 4\]"),
        (uniform(4, 104), r"got \[1, 4, 104\]"),
        (uniform(104, 4, runs=3), r"got \[3, 104, 4\]"),
        (BoltzmannPolicy(uniform(104, 4).log_probs + 3.0), "in state 0 of run 0 its probabilities sum to 20.0855"),
        (BoltzmannPolicy(uniform(104, 4).log_probs * float("nan")), "in state 0 of run 0 its .* sum to nan"),
    ],
)
def test_a_policy_of_another_world_is_refused_before_anything_is_drawn(make, sampler, policy, message):
    env = make("FourRooms")
    best = replace(env.best_response(env.unwrapped.theta), policy=policy)
    with pytest.raises(ValueError, match=message):
        env.rollout(env.unwrapped.theta, best, Noise([0]), rows=2, horizon=5, sampler=sampler)


def test_responses_of_other_kinds_are_refused(make):
    rooms, building = make("FourRooms"), BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))
    responses = {env: env.best_response(env.unwrapped.theta) for env in (rooms, building)}
    for env, other, message in (
        (rooms, building, "`policy` must be one for a TabularModel, got a GaussianPolicy"),
        (building, rooms, "`policy` must be one for a LinearQuadraticModel, got a BoltzmannPolicy"),
    ):
        for sampler in ("fused", "steps"):
            with pytest.raises(TypeError, match=message):
                env.rollout(env.unwrapped.theta, responses[other], Noise([0]), rows=1, horizon=3, sampler=sampler)
    with pytest.raises(TypeError, match="`best` must be a BestResponse, .* got BoltzmannPolicy"):
        rooms.rollout(rooms.unwrapped.theta, responses[rooms].policy, Noise([0]), rows=1, horizon=3)
    world = rooms.model(rooms.unwrapped.theta)
    with pytest.raises(ValueError, match=r"got \[1, 104, 5\]"):
        table_rollout(world, uniform(104, 5), Noise([0]), rows=1, horizon=3)
    with pytest.raises(
        ValueError, match=r"`policy` must have shape \[..., 104, 4\] \[state, action\], got \[1, 104, 5\]"
    ):
        world.resolvent(uniform(104, 5).probs, 0.9, torch.zeros(1, 104).double())


class TooManyActions:
    """Plans well at first, and in trials answers with an action more than there are."""

    beta = None

    def __init__(self):
        self.answered = 0

    def best_response(self, model, preferences, start=None):
        best = SoftValueIteration().best_response(model, preferences)
        self.answered += 1
        return (
            best if self.answered == 1 else replace(best, policy=uniform(model.states, model.actions + 1, model.runs))
        )


@pytest.mark.parametrize("leader", [ZerothOrder, CMAES, RandomSearch])
def test_a_followers_response_in_a_trial_is_checked(leader):
    env = BilevelWrapper(gym.make("BiLevel/RandomMDP-v0"), TooManyActions())
    message = r"outer iteration 0: .*its policy must be a table of shape \[1, 10, 3\], got \[1, 10, 4\]"
    with pytest.raises(FollowerError, match=message):
        leader(env).learn(1)


def test_a_followers_response_is_checked_wherever_it_is_asked_for():
    env = BilevelWrapper(gym.make("BiLevel/RandomMDP-v0"), TooManyActions())
    leader = BCHG(env).learn(1)
    with pytest.raises(FollowerError, match=r"got \[1, 10, 4\]"):
        leader.gradient_samples(1)
    with pytest.raises(FollowerError, match=r"got \[1, 10, 4\]"):
        env.best_response(np.zeros(5))
    chair = LeaderEnv(toy_markov_game_v0.env(), TooManyActions())
    before = chair.best
    with pytest.raises(FollowerError, match="its policy must be a table"):
        chair.configure(chair.theta)
    assert chair.best is before


@dataclass(frozen=True)
class Corridor(ConfigurableMDP):
    """Three cells in a row; going on from the last one ends the episode and pays θ."""

    theta_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)
    default_theta = np.full(1, 0.5)
    preferences = Preferences(0.9, 0.9, 1.0)

    def model(self, theta):
        transition = torch.zeros(1, 3, 2, 3, dtype=torch.float64)
        for s in range(3):
            transition[0, s, 0, s] = transition[0, s, 1, min(s + 1, 2)] = 1.0
        continues = torch.ones(1, 3, 2, dtype=torch.float64)
        continues[0, 2, 1] = 0.0
        pay = torch.zeros(1, 3, 2, dtype=torch.float64)
        pay[0, 2, 1] = 1.0
        reward = pay * theta[:, :, None]
        return TabularModel(transition, torch.eye(3, dtype=torch.float64)[:1], reward, reward, continues)


class Foreign(ForeignEnv):
    """The corridor as somebody else would write it; `goal` is the observation with which it ends."""

    def __init__(self, goal=2, paid=1.0, kind=np.int64, shift=0):
        super().__init__(TabularEnv(Corridor()))
        whole = np.issubdtype(kind, np.integer)
        self.observation_space = (
            gym.spaces.Discrete(10, dtype=kind) if whole else gym.spaces.Box(0.0, 9.0, (), np.float64)
        )
        self.goal, self.paid, self.kind, self.shift = goal, paid, kind, shift

    def reset(self, *, seed=None, options=None):
        return self.kind(super().reset(seed=seed, options=options)[0] + self.shift), {}

    def step(self, action):
        state, reward, over, cut, info = super().step(action)
        return self.kind(self.goal if over else state + self.shift), reward * self.paid, over, cut, info


@pytest.fixture
def foreign():
    gym.register("Corridor-v0", entry_point=Foreign, max_episode_steps=50)
    yield lambda **kwargs: BilevelWrapper(gym.make("Corridor-v0", disable_env_checker=True, **kwargs))
    del gym.registry["Corridor-v0"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"goal": 3}, r"`observations that steps led to` must lie in 0 … 2, the states of .*; got 0 … 3"),
        ({"goal": 5_000_000}, "got 0 … 5000000"),
        ({"goal": -7}, "got -7 … 2"),
        ({"shift": 1}, r"`observations` must lie in 0 … 2, the states of .*; got [0-3] … 3"),
        ({"shift": 9}, r"`observations` must lie in 0 … 2, .*; got 9 … 9"),
        ({"shift": -1}, r"`observations` must lie in 0 … 2, .*; got -1 … 1"),
        ({"paid": float("nan")}, "`reward` must be finite"),
        ({"kind": float}, "`observations` must be whole numbers, one a step, .* got torch.float64"),
    ],
)
def test_steps_of_a_foreign_environment_are_checked_against_its_table(foreign, kwargs, message):
    leader = BCHG(foreign(**kwargs), policy=Free(np.full((1, 1), 0.5)), sampler="steps")
    with pytest.raises(ValueError, match=message):
        leader.learn(3)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.uint64])
def test_a_foreign_environment_that_keeps_to_its_table_is_led(foreign, kind):
    leader = BCHG(foreign(kind=kind), policy=Free(np.full((1, 1), 0.5)), sampler="steps", seed=0).learn(8)
    assert leader.theta[0] > 0.8  # the leader is paid θ at the end, as the follower is


def test_actions_beyond_the_table_are_named(foreign):
    env = foreign()
    best = env.best_response([0.5])
    batch = env.rollout([0.5], best, Noise([0]), rows=2, horizon=20, sampler="steps")
    model = env.model([0.5])
    world_of(model).check_batch(batch, model)
    with pytest.raises(ValueError, match="`actions` must lie in 0 … 1, the actions of .* got 0 … 2"):
        world_of(model).check_batch(replace(batch, action=batch.action + (batch.step == 3)), model)


def test_a_simulator_of_another_size_than_the_model_is_refused():
    class Larger(Corridor):
        def simulator(self, theta):
            model = self.model(theta)
            transition = torch.zeros(1, 4, 2, 4, dtype=torch.float64)
            transition[..., 3] = 1.0
            reward = torch.zeros(1, 4, 2, dtype=torch.float64)
            return TabularModel(transition, torch.eye(4, dtype=model.initial.dtype)[:1], reward, reward)

    with pytest.raises(ValueError, match=r"must have shape \[1, 4, 2\], .* got \[1, 3, 2\]"):
        BCHG(BilevelWrapper(TabularEnv(Larger())), policy=Free(np.full((1, 1), 0.5))).learn(1)


def test_the_objective_of_a_policy_is_its_own(make):
    # by hand: V = (I − γ P_g)⁻¹ r_g
    env = make("RandomMDP")
    model = env.model(np.zeros(5))
    transition, reward = model.moves.dense()[0].numpy().mean(1), model.r_leader[0].numpy().mean(1)
    gamma = env.preferences.gamma_leader
    expected = model.initial[0].numpy() @ np.linalg.solve(np.eye(10) - gamma * transition, reward)
    assert exact.objective(env, np.zeros(5), policy=uniform(10, 3)) == pytest.approx(expected, rel=1e-12)
    both = exact.objective(env, np.zeros((2, 5)), policy=uniform(10, 3))
    np.testing.assert_allclose(both, [expected, expected], rtol=1e-12)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (uniform(10, 4), r"`policy.probs` must have shape \[1, 10, 3\]"),
        (uniform(10, 1), r"got \[1, 10, 1\]"),
        (uniform(11, 3), r"got \[1, 11, 3\]"),
        (uniform(10, 3, runs=2), r"got \[2, 10, 3\]"),
        (BoltzmannPolicy(torch.zeros(1, 10, 3).double()), "a distribution in every state; .* sum to 3"),
        (BoltzmannPolicy(torch.full((1, 10, 3), float("nan")).double()), "sum to nan"),
    ],
)
@pytest.mark.parametrize("horizon", [None, 7])
def test_the_objective_refuses_a_policy_of_another_world(make, policy, message, horizon):
    with pytest.raises(ValueError, match=message):
        exact.objective(make("RandomMDP"), np.zeros(5), horizon, policy=policy)


def test_the_objective_refuses_an_invalid_gaussian():
    env = gym.make("BiLevel/BuildingThermalControl-v0")
    theta = env.unwrapped.theta
    policy = BilevelWrapper(env).best_response(theta).policy
    wrong = {
        r"`policy.gain` must have shape \[1, 2, 4\], \[run, action, state\].* got \[1, 4, 2\]": (
            policy.gain.mT,
            policy.covariance,
        ),
        "`policy.gain` must be finite": (policy.gain / 0, policy.covariance),
        "no eigenvalue below 0": (policy.gain, -policy.covariance),
        "differs from its transpose by 1": (policy.gain, policy.covariance + torch.tensor([[0, 1.0], [0, 0]])),
    }
    for message, parts in wrong.items():
        with pytest.raises(ValueError, match=message):
            exact.objective(env, theta, policy=GaussianPolicy(*parts))
    with pytest.raises(TypeError, match="`policy` must be one for a LinearQuadraticModel, got BoltzmannPolicy"):
        exact.objective(env, theta, policy=uniform(10, 3))


def test_a_saved_response_of_another_world_is_refused(make, tmp_path):
    path = tmp_path / "leader.zip"
    BCHG(make("FourRooms")).learn(1).save(path)
    told, state, history = read(path)
    state["best"]["policy"]["log_probs"] = state["best"]["policy"]["log_probs"][:, :50]
    write(path, told, state, history)
    with pytest.raises(ValueError, match=r"`path` must hold a response .*shape \[1, 104, 4\], got \[1, 50, 4\]"):
        BCHG.load(path, env=make("FourRooms"))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["fused", "steps"])
def test_the_checks_cost_next_to_nothing(make, sampler):
    # medians of interleaved measurements: both see the same load
    env = make("FourRooms")
    leader = BCHG(env, sampler=sampler).learn(3)
    theta, best = leader._theta().detach(), leader.progress.best
    model = env.model(theta)
    batch = env.rollout(theta, best, leader.noise, rows=leader.rows, horizon=leader.horizon)
    iterations, checks = [], []
    for _ in range(60):
        began = time.perf_counter()
        leader.learn(1)
        between = time.perf_counter()
        world_of(model).check_policy(best.behavior_policy, 1, model)
        if sampler == "steps":  # tables lead nowhere else
            world_of(model).check_batch(batch, model)
        iterations.append(between - began)
        checks.append(time.perf_counter() - between)
    assert np.median(checks) < 0.02 * np.median(iterations)
