"""Environments that somebody else wrote, led through their rewards."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Noise, Preferences, TabularEnv
from bilevel_envs.core.follower import UnsupportedModelError
from bilevel_envs.followers import SB3Follower, SoftValueIteration
from bilevel_envs.parameterizations import Box, Free
from leaders import BCHG, CMAES, HPGD, MBHG, ExactGradient, NaivePGD, exact
from tests.lake import PREFERENCES, SPACE, Lake, led_lake, logged, r_follower, r_leader

THETA = np.array([0.5, 0.5, 0.5])


def made(env="FrozenLake-v1", **changed):
    arguments = {
        "theta_space": SPACE,
        "r_follower": r_follower,
        "r_leader": r_leader,
        "preferences": PREFERENCES,
        "components": logged,
    }
    return ConfigurableRewards(env, **(arguments | changed))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasiums_own_checker_passes():
    check_env(made(), skip_render_check=True)


def test_steps_are_those_of_the_environment_and_rewards_those_of_theta():
    env, own = made(default_theta=THETA), gym.make("FrozenLake-v1")
    seen, _ = env.reset(seed=7)
    state, _ = own.reset(seed=7)
    for action in [2, 2, 1, 0, 1, 2, 1] * 3:
        assert seen.argmax() == state
        seen, paid, terminated, truncated, info = env.step(action)
        state, reward, ends, cut, _ = own.step(action)
        c = torch.tensor(logged(None, action, reward, state, None), dtype=torch.float64)
        np.testing.assert_array_equal(info["components"], c)
        expected = reward - 0.5 * (state % 4 == 0) - 0.5 * (state % 4 == 2) - 0.025
        assert paid == pytest.approx(expected)
        assert info["leader_reward"] == pytest.approx(0.5 * reward + 0.5 * (state % 4 == 2) + 0.15 * (state % 4 == 0))
        assert (terminated, truncated) == (ends, cut)
        if ends or cut:
            (seen, _), (state, _) = env.reset(), own.reset()


def test_copies_step_as_single_environments_do():
    env = made()
    envs = env.copies(4)
    envs.configure(np.stack([THETA, 0.1 * THETA]))
    singles = [made(default_theta=theta) for theta in (THETA, THETA, 0.1 * THETA, 0.1 * THETA)]
    seen, _ = envs.reset(seed=3)
    np.testing.assert_array_equal(seen, [one.reset(seed=3 + i)[0] for i, one in enumerate(singles)])
    for action in [2, 1, 3, 1, 2, 0] * 6:
        seen, paid, terminated, truncated, infos = envs.step(np.full(4, action))
        steps = [one.step(action) for one in singles]
        np.testing.assert_allclose(paid, [step[1] for step in steps])
        np.testing.assert_array_equal(terminated, [step[2] for step in steps])
        ended = terminated | truncated
        for i, (one, step) in enumerate(zip(singles, steps, strict=True)):
            told = infos["final_info"] if ended[i] else infos
            assert told["leader_reward"][i] == pytest.approx(step[4]["leader_reward"])
            np.testing.assert_array_equal(told["components"][i], step[4]["components"])
            if ended[i]:
                np.testing.assert_array_equal(infos["final_obs"][i], step[0])
            np.testing.assert_array_equal(seen[i], one.reset()[0] if ended[i] else step[0])


def test_the_time_limit_of_the_environment_cuts_and_is_known():
    env = made(gym.make("FrozenLake-v1", max_episode_steps=5, is_slippery=False))
    wrapped = BilevelWrapper(env, SB3Follower("SoftDQN", 10))
    assert wrapped.time_limit == 5
    envs = env.copies(2)
    envs.reset(seed=0)
    for _ in range(4):
        assert not envs.step(np.zeros(2, int))[3].any()
    *_, terminated, truncated, _ = envs.step(np.zeros(2, int))
    assert truncated.all()
    assert not terminated.any()


@pytest.mark.slow
def test_trajectories_bring_what_the_table_is_worth():
    env, table = led_lake(), BilevelWrapper(TabularEnv(Lake()))
    theta = np.array([[0.5, 0.5, 0.5], [1.0, 0.0, 0.2]])
    batch = env.rollout(theta, env.best_response(theta), Noise([0, 1]), rows=500, horizon=100, whole_episodes=True)
    returns = (batch.r_leader * batch.valid * 0.9**batch.step).sum(-1).numpy()
    scores = (returns.mean(1) - exact.objective(table, theta)) / (returns.std(1) / 500**0.5)
    assert (np.abs(scores) < 4).all(), scores
    assert batch.components.shape == (*batch.step.shape, 4)


@pytest.mark.parametrize("leader", [HPGD, MBHG])
def test_leaders_that_ask_for_a_model_are_refused(leader):
    with pytest.raises(ValueError, match=r"ConfigurableRewards\(FrozenLake-v1\)"):
        leader(led_lake())


@pytest.mark.slow
def test_the_lake_is_led_near_its_optimum():
    table = BilevelWrapper(TabularEnv(Lake()))
    best = exact.multi_start(table, seed=0).value
    leader = BCHG(led_lake(), seed=0, batch_size=500, learning_rate=0.3).learn(16)
    reached, first = exact.objective(table, leader.theta), exact.objective(table, THETA)
    assert reached > first + 0.9 * (best - first), (first, reached, best)


def test_vectors_names_of_info_and_boxes_are_components():
    class Vector(gym.Wrapper):
        def step(self, action):
            seen, reward, *ends, info = self.env.step(action)
            return seen, np.array([reward, 2.0]), *ends, info | {"energy": np.array([1.0, 3.0]), "price": 5}

    base = Vector(gym.make("Pendulum-v1"))
    common = {"theta_space": gym.spaces.Box(0, 1, (1,), np.float64), "preferences": Preferences(0.9, 0.9, 0.1)}
    rewards = {"r_follower": lambda theta, c: theta[..., 0] * c[..., 0], "r_leader": lambda theta, c: c[..., -1]}
    for components, expected in ((None, 2.0), (("energy", "price"), 5.0), ("energy", 3.0)):
        env = ConfigurableRewards(base, components=components, **common, **rewards)
        env.reset(seed=0)
        assert env.step(np.zeros(1))[4]["leader_reward"] == expected
        assert env.copies(2).single_action_space == base.action_space


def test_an_environment_that_writes_into_actions_gets_copies():
    class Writes(gym.Wrapper):
        def step(self, action):
            action[:] = 0
            return self.env.step(action)

    env = made(Writes(gym.make("Pendulum-v1")), components=lambda o, a, r, n, i: [r, 0, 0, 1])
    env.reset(seed=0)
    action = np.ones(1)
    env.step(action)
    assert action[0] == 1.0


def test_copies_are_made_once():
    env = made()
    first = env.copies(3)
    inside = set(map(id, first._inside))
    first.close()
    second = env.copies(2)
    assert set(map(id, second._inside)) < inside


def test_dictionaries_are_seen_as_vectors():
    class Both(gym.ObservationWrapper):
        observation_space = gym.spaces.Dict(
            {"at": gym.spaces.Discrete(16), "half": gym.spaces.Box(0.0, 2.0, (1,), np.float32)}
        )

        def observation(self, observation):
            return {"at": observation, "half": np.array([observation / 8], np.float32)}

    env = made(Both(gym.make("FrozenLake-v1")), components=lambda o, a, r, n, i: [r, n["at"] % 4 == 0, 0, 1])
    seen, _ = env.reset(seed=0)
    assert seen.shape == (17,)
    assert env.observation_space.contains(seen)


@pytest.mark.slow
def test_an_agent_learns_and_leads_in_twenty_lines():
    env = ConfigurableRewards(
        "MountainCarContinuous-v0",
        theta_space=gym.spaces.Box(0.0, 1.0, (1,), np.float64),
        r_follower=lambda theta, c: c[..., 1] - theta[..., 0] * c[..., 0] ** 2,
        r_leader=lambda theta, c: -(c[..., 0] ** 2) - 0.1 * theta[..., 0],
        preferences=Preferences(0.97, 0.97, 0.1),
        components=lambda observation, action, reward, after, info: [action[0], 100 * after[1]],
    )
    follower = SB3Follower("SAC", 50, first_steps=150, learning_starts=100, policy_kwargs={"net_arch": [16]})
    leader = BCHG(BilevelWrapper(env, follower), seed=0, batch_size=100).learn(2)
    assert leader.history["env_steps"][-1] == 200
    assert leader.history["follower_steps"][-1] == 200
    assert np.isfinite(leader.history["leader_return"]).all()
    assert leader.theta != 0.5


@pytest.mark.slow
def test_a_saved_leader_goes_on_bit_for_bit(tmp_path):
    straight, first = (BCHG(led_lake(), seed=0, batch_size=100) for _ in range(2))
    straight.learn(2)
    first.learn(1).save(tmp_path / "leader.zip")
    second = BCHG.load(tmp_path / "leader.zip", led_lake()).learn(1)
    np.testing.assert_array_equal(second.theta, straight.theta)
    np.testing.assert_array_equal(second.history.state(), straight.history.state())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ExactGradient(BilevelWrapper(made(), SB3Follower("SoftDQN"))),
            ValueError,
            "matrices for ExactGradient",
        ),
        (
            lambda: BCHG(BilevelWrapper(made(), SoftValueIteration())),
            UnsupportedModelError,
            r'SoftValueIteration to plan in, got RewardModel; .* SB3Follower\("SoftDQN"\) for discrete actions',
        ),
    ],
)
def test_what_needs_a_model_is_refused_when_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_parameterisation_is_a_box_or_free_or_ones_own():
    assert isinstance(made().parameterization(2), Box)
    with pytest.warns(UserWarning, match="lies at a bound of `theta_space` in 1 of 3 entries"):
        begun = made(default_theta=[0.2, 0.4, 1.0]).parameterization(2)().detach()
    np.testing.assert_allclose(begun[1], [0.2, 0.4, 0.999], atol=1e-12)
    open_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    assert isinstance(made(theta_space=open_space).parameterization(1), Free)
    own = made(parameterization=lambda runs, noise: Box(np.ones((runs, 3)), 0.0, 0.5))
    assert (own.parameterization(1)() < 0.5).all()


def test_a_space_with_some_bounds_asks_for_a_parameterisation():
    half = gym.spaces.Box(0.0, np.inf, (3,), np.float64)
    with pytest.raises(ValueError, match="`parameterization` must be given where some bounds"):
        made(theta_space=half).parameterization(1)
    own = made(theta_space=half, parameterization=lambda runs, noise: Box(np.ones((runs, 3)), 0.0, 0.5))
    assert (own.parameterization(1)() < 0.5).all()


@pytest.mark.parametrize(("ends", "kind"), [(3e38, np.float32), (1e300, np.float64)])
def test_a_space_with_distant_bounds_begins_in_its_middle(ends, kind):
    env = made(theta_space=gym.spaces.Box(-ends, ends, (3,), kind))
    np.testing.assert_allclose(env.parameterization(1)().detach() / ends, np.zeros((1, 3)), atol=1e-7)


def test_a_space_with_bounds_too_far_apart_is_refused():
    with pytest.raises(ValueError, match="`theta_space` must have bounds whose difference is a finite number"):
        made(theta_space=gym.spaces.Box(-1e308, 1e308, (3,), np.float64)).parameterization(1)


def test_actions_without_bounds_need_a_range_for_sac():
    wide = gym.wrappers.TransformAction(gym.make("Pendulum-v1"), np.tanh, gym.spaces.Box(-np.inf, np.inf, (1,)))
    with pytest.raises(
        ValueError, match="`action_range` must be given for SAC where the environment's actions have no"
    ):
        NaivePGD(BilevelWrapper(ConfigurableRewards(wide, *POOR), SB3Follower("SAC", 100)))


def test_a_search_leads_the_lake():
    leader = CMAES(led_lake(), seed=0, episodes=2, population=4).learn(1)
    assert leader.history["env_steps"][-1] > 0


class OldStep(gym.Wrapper):
    """Says `done`, as environments of old did."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class OldReset(gym.Wrapper):
    def reset(self, **how):
        return super().reset(**how)[0]


class Breaks(gym.Wrapper):
    """Shows a NaN after three steps, or at a reset without a seed."""

    def __init__(self, env, call):
        super().__init__(env)
        self.call = call

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        self.steps = 0
        return observation * (np.nan if self.call == "reset" and seed is None else 1.0), info

    def step(self, action):
        observation, *rest = super().step(action)
        self.steps += 1
        return observation * (np.nan if self.call == "step" and self.steps == 3 else 1.0), *rest


@pytest.mark.parametrize("call", ["reset", "step"])
def test_an_observation_that_is_not_finite_is_refused_where_it_is_shown(call):
    env = ConfigurableRewards(
        Breaks(gym.make("CartPole-v1"), call),
        gym.spaces.Box(0.0, 1.0, (1,), np.float64),
        r_follower=lambda theta, c: theta[..., 0] * c[..., 0],
        r_leader=lambda theta, c: c[..., 0],
        preferences=PREFERENCES,
    )
    env.reset(seed=0)
    for _ in range(2):
        assert np.isfinite(env.step(0)[0]).all()
    shown = rf"`{call}` of CartPole-v1 returned \[nan nan nan nan\]: end the episode before"
    with pytest.raises(ValueError, match=shown):
        env.reset() if call == "reset" else env.step(0)


def one_more_at_four(observation, action, reward, after, info):
    return [*logged(observation, action, reward, after, info)] + [1.0] * (after == 4)


def test_components_of_another_number_are_refused_at_their_step():
    dry = gym.make("FrozenLake-v1", is_slippery=False)
    env = made(dry, components=one_more_at_four)
    envs = env.copies(2)
    message = r"`components` must .*, 4 as at the first, got 5, .*: give 0 where one does not apply"
    for one, action in ((env, 1), (envs, np.ones(2, int))):  # down, to state 4
        one.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            one.step(action)


def test_components_that_are_no_numbers_are_named():
    class Says(gym.Wrapper):
        def step(self, action):
            *told, info = self.env.step(action)
            return *told, {**info, "speed": "fast", "prob": 1.0}

    with pytest.raises(ValueError, match=r"flat list of numbers at every step, got \{'prob': 1.0, 'speed': 'fast'\}"):
        made(env=Says(gym.make("FrozenLake-v1")), components=("prob", "speed"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"env": 5}, "`env` must be a gymnasium.Env"),
        ({"r_follower": lambda theta, c: 1.0}, "`r_follower.*must return a tensor"),
        ({"r_leader": lambda theta, c: theta}, "`r_leader.*must keep the leading axes"),
        (
            {"r_leader": lambda theta, c: c[..., 0] / 0},
            r"`r_leader.*must be finite; it is nan at θ = \[0.5, 0.5, 0.5\] and components \[0.0",
        ),
        ({"r_leader": lambda theta, c: c[..., 0].long()}, "floating-point numbers, got torch.int64"),
        (
            {"r_leader": lambda theta, c: c[..., 0] + theta.detach().numpy().sum()},
            "must be a reward of each θ by itself",
        ),
        (
            {"r_follower": lambda theta, c: c[..., 0] + theta[0].sum()},
            r"must be a reward of each θ by itself, .* \[2, 1, 3\]",
        ),
        ({"r_follower": lambda theta, c: np.square(theta)}, "Take torch's functions, not NumPy's"),
        ({"r_follower": None}, "`r_follower` must be a function of θ and components, got None"),
        ({"parameterization": 5}, "`parameterization` must be None or a function .* got 5"),
        ({"default_theta": "a"}, "`default_theta` must be finite numbers of shape"),
        ({"default_theta": torch.ones(3, requires_grad=True)}, "`default_theta` must be an array, got Tensor"),
        (
            {"r_leader": lambda theta, c: c[..., 0], "r_follower": lambda theta, c: c[..., 0]},
            "must depend on θ through torch",
        ),
        ({"components": ("speed",)}, "entries of `info`"),
        ({"components": lambda *step: ["fast"]}, "a flat list of numbers"),
        ({"components": lambda *step: torch.ones(2, requires_grad=True)}, "a flat list of numbers"),
        ({"components": lambda *step: [1.0, np.ones(2)]}, "a flat list of numbers"),
        ({"components": lambda *step: [np.nan]}, "finite numbers"),
        ({"components": lambda *step: []}, "finite numbers"),
        ({"components": ()}, r"names of entries of `info`, at least one, .* got \(\)"),
        ({"components": 3}, "`components` must be None .* got 3"),
        ({"components": lambda observation: [1.0]}, "`components` must be a function .* raised TypeError"),
        (
            {"env": OldStep(gym.make("FrozenLake-v1"))},
            r"truncated, info\) from `step`.* FrozenLake-v1 returned 4 values",
        ),
        ({"env": OldReset(gym.make("FrozenLake-v1"))}, r"info\) from `reset`.* FrozenLake-v1 returned 1 value:"),
        ({"theta_space": gym.spaces.Discrete(3)}, "theta_space"),
        ({"theta_space": gym.spaces.Box(0.0, 1.0, (), np.float64)}, "must have an axis"),
        ({"default_theta": [2.0, 0.0, 0.0]}, "default_theta"),
        ({"preferences": (0.9, 0.9, 0.1)}, "preferences"),
        (
            {"env": gym.wrappers.TransformAction(gym.make("FrozenLake-v1"), abs, gym.spaces.Box(0, 5_000, (1,), int))},
            "actions",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changed, message):
    with pytest.raises((TypeError, ValueError), match=message):
        made(**changed)


@pytest.mark.parametrize("action", [0.5, 4, -1, np.nan, np.array([0]), None])
def test_an_action_that_is_none_of_its_space_is_refused(action):
    env = made()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="`action` must be (whole numbers from 0 to 3|an array)"):
        env.step(action)
    vector = ConfigurableRewards("Pendulum-v1", *POOR)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"`action` must be finite numbers of shape \[1\]"):
        vector.step([np.nan])


POOR = (
    gym.spaces.Box(0.0, 1.0, (1,), np.float64),
    lambda theta, c: theta[..., 0] * c[..., 0],
    lambda theta, c: c[..., 0],
    PREFERENCES,
)


def test_a_reward_that_writes_into_components_changes_nothing_else():
    def doubling(theta, c):
        return theta[..., 0] * c.mul_(2)[..., 0]

    env = ConfigurableRewards("CartPole-v1", POOR[0], doubling, *POOR[2:])
    env.reset(seed=0)
    info = env.step(0)[-1]
    assert info["components"].tolist() == [1.0]
    assert info["leader_reward"] == 1.0


class Odd(gym.Wrapper):
    """Ends an episode by no bool, or shows one number too many."""

    def __init__(self, env, what):
        super().__init__(env)
        self.what = what

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.what == "long":
            observation = np.append(observation, 0.0)
        return observation, reward, None if self.what == "end" else terminated, truncated, info


@pytest.mark.parametrize(
    ("what", "message"),
    [("end", "must return a bool as `terminated` .* returned None"), ("long", "of 5 numbers instead of 4")],
)
def test_steps_that_gymnasium_does_not_know_are_refused(what, message):
    with pytest.raises(ValueError, match=message):
        ConfigurableRewards(Odd(gym.make("CartPole-v1"), what), *POOR)


def test_theta_outside_its_space_and_steps_before_reset_are_refused():
    env = made()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    with pytest.raises(ValueError, match="theta_space"):
        env.configure(np.full(3, 2.0))
    with pytest.raises(ValueError, match="follower"):
        BilevelWrapper(env)
