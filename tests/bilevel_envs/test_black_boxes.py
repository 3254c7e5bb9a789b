"""Environments that somebody else wrote: copies are alike, random streams apart, and what θ moves is known."""

import random
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from bilevel_envs import BilevelWrapper, ConfigurableDynamics, ConfigurableRewards, Preferences
from bilevel_envs.core.follower import Missing
from bilevel_envs.followers import ObservedFollower, SB3Follower
from bilevel_envs.networks.dynamics import DynamicsFit
from bilevel_envs.testing import check_bilevel_env
from leaders import BCHG
from leaders.estimators import dynamics

PREFERENCES = Preferences(0.9, 0.9, 0.1)
SPACE = gym.spaces.Box(0.5, 2.0, (1,), np.float64)


def rewarded(env):
    return ConfigurableRewards(
        env, SPACE, lambda theta, c: theta[..., 0] * c[..., 0], lambda theta, c: c[..., 0], PREFERENCES
    )


def first_steps(envs, theta, steps=5):
    """What two copies, seeded 7 and 8, show."""
    envs.configure(theta)
    seen = [envs.reset(seed=7)[0]]
    action = np.zeros((2, *envs.single_action_space.shape), envs.single_action_space.dtype)
    return np.stack(seen + [envs.step(action)[0] for _ in range(steps)])


def test_copies_keep_what_was_set_in_an_environment():
    heavy = gym.make("Pendulum-v1")
    heavy.unwrapped.g = 1.0
    env = rewarded(heavy)
    assert [copy.env.unwrapped.g for copy in env.lent(3)] == [1.0] * 3
    light = rewarded(gym.make("Pendulum-v1"))
    copy = light.lent(1)[0].env
    assert copy.unwrapped.g == 10.0


def test_an_environment_whose_copies_differ_is_refused():
    class Unlike(gym.Env):
        observation_space, action_space = gym.spaces.Box(-9.0, 9.0, (1,), np.float64), gym.spaces.Discrete(2)
        shift = 0.0

        def __deepcopy__(self, memo):
            return Unlike()

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.full(1, self.shift), {}

        def step(self, action):
            return np.full(1, self.shift), 1.0, False, False, {}

    env = Unlike()
    env.shift = 1.0
    with pytest.raises(ValueError, match=r"`env` must be one whose copies do the same .* as keywords of its"):
        rewarded(env)


def test_an_environment_that_was_drawn_since_can_be_copied():
    env = rewarded(CartPoleEnv(render_mode="rgb_array"))
    env.reset(seed=0)
    assert env.render().shape[-1] == 3
    assert len(env.lent(3)) == 3


def test_an_environment_that_cannot_be_copied_is_refused():
    drawn = CartPoleEnv(render_mode="rgb_array")
    drawn.reset(seed=0)
    drawn.render()
    with pytest.raises(ValueError, match="`env` must be one that can be copied, but `deepcopy` of CartPoleEnv raised"):
        rewarded(drawn)


class Global(gym.Env):
    """Draws from the global streams."""

    observation_space, action_space = gym.spaces.Box(-9.0, 9.0, (3,), np.float64), gym.spaces.Discrete(2)

    def seen(self):
        return np.array([random.random(), np.random.random(), float(torch.rand(()))])  # noqa: NPY002

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            np.random.seed(seed)  # noqa: NPY002
        return self.seen(), {}

    def step(self, action):
        return self.seen(), 1.0, False, False, {}


def test_copies_that_draw_from_global_streams_do_not_mix():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    env = rewarded(Global())
    together = first_steps(env.copies(2), np.ones(1))
    again = first_steps(env.copies(2), np.ones(1))
    np.testing.assert_array_equal(together, again)
    alone = []
    for seed in (7, 8):
        scalar = rewarded(Global())
        alone.append([scalar.reset(seed=seed)[0], *(scalar.step(0)[0] for _ in range(5))])
    np.testing.assert_array_equal(together, np.swapaxes(alone, 0, 1))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


class Begun(gym.Env):
    """A walk whose first state is θ's, or whose moves are."""

    observation_space, action_space = gym.spaces.Box(-50.0, 50.0, (1,), np.float64), gym.spaces.Discrete(2)
    where, begins = 0.0, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = (self.where if self.begins else 0) + 0.1 * self.np_random.standard_normal(1)
        return self.s.copy(), {}

    def step(self, action):
        mean = 0.9 * self.s + 0.1 * action if self.begins else np.full(1, self.where)
        self.s = mean + 0.05 * self.np_random.standard_normal(1)
        return self.s.copy(), -(float(self.s[0]) ** 2), False, False, {}


class BegunAtTheta(Begun):
    begins = True


def put(env, theta):
    env.unwrapped.where = float(theta[0])


def moved(kind, preferences=PREFERENCES):
    limited = gym.wrappers.TimeLimit(kind(), 10)
    return ConfigurableDynamics(limited, SPACE, put, lambda theta, c: c[..., 0], preferences)


def agent():
    return SB3Follower("SoftDQN", 60, learning_starts=20, policy_kwargs={"net_arch": [8]})


@pytest.mark.parametrize("kind", [Begun, BegunAtTheta])
def test_theta_in_the_first_states_is_known_and_said(kind, caplog):
    env = moved(kind)
    begins = kind is BegunAtTheta
    assert env.problem.moves_start == begins
    BCHG(BilevelWrapper(env, agent()), dynamics="learnt")
    assert ("θ moves the first states" in caplog.text) == begins
    report = check_bilevel_env(env, steps=100, raises=False)
    assert ("θ moves the first observation, too" in str(report)) == begins


@pytest.mark.slow
def test_learnt_dynamics_heed_components_of_the_next_state(monkeypatch):
    monkeypatch.setattr(dynamics, "FIRST", 2_000)
    monkeypatch.setattr(dynamics, "HOW", DynamicsFit(hidden=(32,), first_steps=500, steps=50))
    env = BilevelWrapper(moved(Begun, Preferences(0.0, 0.9, 0.1)), agent())
    leader = BCHG(env, seed=0, batch_size=200, dynamics="learnt", learning_rate=1e-9).learn(1)
    truth = -2 * leader.theta[0]  # of E[−(θ + w)²], a leader's only reward at γ_L = 0
    estimates = leader.gradient_samples(5)
    assert abs(estimates.mean() - truth) < 0.2 * abs(truth), (estimates, truth)


class Silent(SB3Follower):
    """Keeps its values to itself."""

    gives_values = False

    def respond(self, *given, **further):
        return replace(super().respond(*given, **further), q=Missing("Q_F is secret"), v=Missing("V_F is secret"))


def test_values_that_have_no_weight_change_nothing():
    theta = []
    for kind in (SB3Follower, Silent):
        follower = kind("SoftDQN", 60, learning_starts=20, policy_kwargs={"net_arch": [8]})
        theta.append(BCHG(BilevelWrapper(rewarded("CartPole-v1"), follower), seed=0, batch_size=100).learn(2).theta)
    np.testing.assert_array_equal(*theta)


def test_masks_are_looked_for_once_theta_is_set():
    class Unset(Begun):
        where = property(lambda self: self.given, lambda self, value: setattr(self, "given", value))

        def reset(self, *, seed=None, options=None):
            assert self.where > 0  # which nothing has set before `configure`
            return super().reset(seed=seed)

    assert not moved(Unset).problem.masks_actions


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_an_agent_without_soft_values_is_led_where_theta_is_in_the_rewards(algorithm):
    batches = {"batch_size": 32} if algorithm == "PPO" else {}
    follower = SB3Follower(algorithm, 64, n_steps=32, policy_kwargs={"net_arch": [8]}, **batches)
    env = ConfigurableRewards(
        "CartPole-v1",
        SPACE,
        lambda theta, c: c[..., 0] - theta[..., 0] * c[..., 1],
        lambda theta, c: -c[..., 1],
        PREFERENCES,
        lambda observation, action, reward, after, info: [reward, after[0] ** 2],
    )
    leader = BCHG(BilevelWrapper(env, follower), seed=0, batch_size=100).learn(1)
    assert leader.history["grad_norm"][0, 0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_an_observed_agent_without_soft_values_is_led_through_learnt_dynamics(algorithm, monkeypatch):
    monkeypatch.setattr(dynamics, "FIRST", 300)
    monkeypatch.setattr(dynamics, "HOW", DynamicsFit(hidden=(8,), first_steps=20, steps=5))
    batches = {"batch_size": 32} if algorithm == "PPO" else {}
    follower = SB3Follower(algorithm, 64, n_steps=32, policy_kwargs={"net_arch": [8]}, **batches)
    env = BilevelWrapper(moved(Begun), ObservedFollower(follower, 100, steps=5))
    leader = BCHG(env, seed=0, batch_size=100, dynamics="learnt").learn(1)
    assert leader.history["grad_norm"][0, 0] > 0


@pytest.mark.parametrize("how", [{}, {"dynamics": "learnt"}])
def test_a_published_form_is_refused_by_its_own_name(how):
    with pytest.raises(ValueError, match=r"`preset` must be None for ConfigurableDynamics\(Begun\), got 'paper'"):
        BCHG(BilevelWrapper(moved(Begun), agent()), preset="paper", **how)
