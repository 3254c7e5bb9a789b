"""Environments that somebody else wrote, led through their physics."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from bilevel_envs import BilevelWrapper, ConfigurableDynamics, Preferences
from bilevel_envs.followers import SB3Follower
from leaders import BCHG, CMAES, NaivePGD, RandomSearch, ZerothOrder

SPACE = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
PREFERENCES = Preferences(0.95, 0.95, 0.1)


class Slide(gym.Env):
    """A mass that a push moves: x' = x + speed · push, with a log of all that was done to it."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (1,), np.float64)
    action_space = gym.spaces.Discrete(3)
    speed = 0.0

    def __init__(self, log=None):
        self.log = [] if log is None else log

    def __deepcopy__(self, memo):
        return Slide(self.log)  # one log for all copies

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.log.append(("reset", id(self), self.speed))
        self.x, self.k = 1.0, 0
        return np.array([self.x]), {}

    def step(self, action):
        paid = -(self.x**2)
        self.x, self.k = self.x + self.speed * (action - 1), self.k + 1
        return np.array([self.x]), paid, self.k == 4, False, {}


def set_speed(env, theta):
    env.unwrapped.log.append(("set", id(env.unwrapped), float(theta[0])))
    env.unwrapped.speed = theta[0]


def made(env=None, **changed):
    arguments = {
        "theta_space": SPACE,
        "configure": set_speed,
        "r_leader": lambda theta, c: c[..., 0] - theta[..., 0],
        "preferences": PREFERENCES,
    }
    return ConfigurableDynamics(Slide() if env is None else env, **(arguments | changed))


def resets(log):
    """θ in each reset, once it is known that the same copy was set right before."""
    told = []
    for before, now in itertools.pairwise(log):
        if now[0] == "reset":
            assert before == ("set", now[1], now[2])
            told.append(now[2])
    return told


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasiums_own_checker_passes():
    check_env(made(), skip_render_check=True)


def test_theta_is_set_before_every_reset_and_moves_the_next_state():
    inner = Slide()
    env = made(inner)
    inner.log.clear()
    for theta in (0.25, 1.0):
        env.configure([theta])
        for _ in range(2):
            seen, _ = env.reset()
            seen, paid, _, _, info = env.step(2)
            assert seen == 1 + theta
            assert paid == -1
            assert info["leader_reward"] == -1 - theta
    assert resets(inner.log) == [0.25, 0.25, 1.0, 1.0]


def test_a_new_theta_waits_for_the_next_reset():
    env = made()
    env.configure([0.25])
    env.reset()
    env.configure([1.0])
    assert env.step(2)[0] == 1.25
    assert env.reset(options={"theta": [0.5]})[0] == 1
    assert env.step(2)[0] == 1.5


def test_each_copy_has_the_theta_of_its_run_at_every_reset():
    inner = Slide()
    env = made(inner)
    envs = env.copies(4)
    envs.configure(np.array([[0.25], [1.0]]))
    inner.log.clear()
    envs.reset(seed=0)
    for _ in range(3):
        seen = envs.step(np.full(4, 2))[0]
    np.testing.assert_allclose(seen[:, 0], [1.75, 1.75, 4.0, 4.0])
    infos = envs.step(np.full(4, 2))[-1]  # they end, and start anew
    np.testing.assert_allclose(np.stack(infos["final_obs"])[:, 0], [2.0, 2.0, 5.0, 5.0])
    assert resets(inner.log) == [0.25, 0.25, 1.0, 1.0] * 2
    np.testing.assert_allclose(envs.step(np.full(4, 2))[0][:, 0], [1.25, 1.25, 2.0, 2.0])
    envs.configure([0.5])
    envs.reset()
    np.testing.assert_allclose(envs.step(np.full(4, 2))[0][:, 0], 1.5)


def test_a_configure_that_raises_is_named_and_the_old_theta_stays():
    def picky(env, theta):
        if theta[0] > 0.75:
            raise RuntimeError("too fast")
        env.unwrapped.speed = theta[0]

    env = made(configure=picky)
    envs = env.copies(2)
    for one in (env, envs):
        one.configure([0.5])
        with pytest.raises(ValueError, match=r"`configure` must set .*RuntimeError \(too fast\) at θ = \[0.8\]"):
            one.configure([0.8])
        assert one.theta == 0.5
        one.reset()
        assert one.step(np.full(2, 2) if one is envs else 2)[0].ravel()[0] == 1.5


def test_theta_outside_its_space_is_refused():
    env = made()
    with pytest.raises(ValueError, match="theta_space"):
        env.configure([1.5])
    with pytest.raises(ValueError, match="shape"):
        env.configure([0.5, 0.5])


def test_the_followers_reward_is_the_environments_unless_given():
    env = made(r_follower=lambda theta, c: theta[..., 0] * c[..., 0])
    env.reset(options={"theta": [0.5]})
    assert env.step(1)[1] == -0.5


def test_what_configure_writes_into_theta_stays_its_own():
    def greedy(env, theta):
        env.unwrapped.speed = theta[0]
        theta[:] = 9.0

    env = made(configure=greedy)
    env.configure([0.5])
    env.reset()
    assert env.theta == 0.5
    assert env.step(2)[0] == 1.5


def test_registered_environments_are_copied_from_their_spec():
    def lighter(env, theta):
        env.unwrapped.m = 0.5 + theta[0]

    env = made("Pendulum-v1", configure=lighter)
    envs = env.copies(2)
    envs.configure([[0.0], [1.0]])
    envs.reset(seed=0)
    assert [inside.env.unwrapped.m for inside in envs._inside] == [0.5, 1.5]


@pytest.mark.parametrize("limits", [(3,), (3, 5), (5, 3)])
def test_a_time_limit_around_an_environment_without_a_spec_is_known(limits):
    env = Slide()
    for limit in limits:
        env = gym.wrappers.TimeLimit(env, limit)
    wrapped = BilevelWrapper(made(env), SB3Follower("SoftDQN", 10))
    assert wrapped.time_limit == 3


def test_components_see_the_observation_before_a_step_that_is_written_over():
    class Reuses(Slide):
        def reset(self, **how):
            self.seen, info = super().reset(**how)
            return self.seen, info

        def step(self, action):
            self.seen[:], *rest = super().step(action)
            return self.seen, *rest

    env = made(Reuses(), components=lambda before, action, reward, after, info: [before[0], after[0]])
    env.reset(options={"theta": [0.5]})
    for before, after in itertools.pairwise((1.0, 1.5, 2.0)):
        np.testing.assert_array_equal(env.step(2)[4]["components"], [before, after])


@pytest.mark.parametrize("leader", [BCHG, NaivePGD])
def test_leaders_that_need_log_p_name_those_that_do_not(leader):
    with pytest.raises(ValueError, match="CMAES, RandomSearch or ZerothOrder"):
        leader(BilevelWrapper(made(), SB3Follower("SoftDQN", 10)))


@pytest.mark.parametrize(
    ("leader", "how"),
    [
        (CMAES, {"population": 3, "episodes": 2}),
        (RandomSearch, {"episodes": 2}),
        (ZerothOrder, {"directions": 1, "episodes": 2}),
    ],
)
def test_searches_lead_a_single_theta_with_an_agent(leader, how):
    follower = SB3Follower("SoftDQN", 20, learning_starts=10, policy_kwargs={"net_arch": [8]})
    led = leader(BilevelWrapper(made(), follower), seed=0, **how).learn(2)
    assert led.theta != 0.5
    assert np.isfinite(led.history["leader_return"]).all()
    assert led.history["follower_steps"][-1] > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"configure": None}, "`configure` must be a function"),
        ({"configure": lambda env, theta: env.unwrapped.missing.speed}, "`configure` must set"),
        ({"r_leader": lambda theta, c: theta}, "`r_leader.*must keep the leading axes"),
        ({"theta_space": gym.spaces.Discrete(3)}, "theta_space` of ConfigurableDynamics"),
        ({"default_theta": [2.0]}, "default_theta"),
        ({"default_thetas": [0.5]}, "ConfigurableDynamics got an unexpected keyword argument 'default_thetas'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed, message):
    with pytest.raises((TypeError, ValueError), match=message):
        made(**changed)


def test_rewards_may_be_free_of_theta():
    env = made(r_leader=lambda theta, c: c[..., 0])
    rewards = env.model(np.array([0.5])).rewards(torch.ones(1, 2, 1))
    assert [reward.shape for reward in rewards] == [(1, 2), (1, 2)]
