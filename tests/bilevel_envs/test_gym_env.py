"""The Gymnasium face: contracts, θ, seeds."""

import json
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from bilevel_envs import LeaderEnv
from bilevel_envs.core.follower import BestResponse, Missing
from bilevel_envs.registration import GAMES, PROBLEMS
from bilevel_envs.worlds.tabular.env import TabularEnv

IDS = sorted(PROBLEMS)
TABLES = [name for name in IDS if isinstance(gym.make(name).unwrapped, TabularEnv)]
UNBOUNDED = "ignore:.*observation space (minimum|maximum) value is -?infinity"  # meant where nothing bounds them
NORMALISED = "ignore:.*[Ww]e recommend .*symmetric and normalized"  # actions are powers, in real units


def same(one, other):
    """Whether two observations, two numbers or two lists of them are equal to the last bit."""
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(np.array_equal(one, other))


@pytest.mark.filterwarnings(NORMALISED, UNBOUNDED)
@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("mode", [None, "rgb_array", pytest.param("human", marks=pytest.mark.slow)])
def test_gymnasium_and_sb3_accept_the_env(name, mode):
    env = gym.make(name, render_mode=mode)
    check_env(env.unwrapped)
    sb3_check_env(env.unwrapped)
    env.close()


SPACES = ("theta_space", "observation_space", "action_space")
OTHER_FORMS = [
    ("BiLevel/FourRooms-v0", {"observation": "vector"}),
    ("BiLevel/Warehouse-v0", {"observation": "vector", "rows": 9, "columns": 13, "tolls": True}),
    ("BiLevel/TaxDesign-v0", {"actions": "flat", "observe_type": True}),
    ("BiLevel/BilevelLQR-v0", {"policy": "mlp"}),
    ("BiLevel/GuidedCartPole-v0", {"flip": True, "discrete": 3}),
]


def spaces_of(name, kwargs):
    """The spaces of a scalar, a vector, an AEC and a Parallel environment, each made anew, by name."""
    scalar, vector = gym.make(name, **kwargs).unwrapped, gym.make_vec(name, num_envs=3, **kwargs).unwrapped
    single = [f"single_{part}" for part in SPACES[1:]]
    found = {f"scalar.{part}": getattr(scalar, part) for part in SPACES}
    found |= {f"vector.{part}": getattr(vector, part) for part in (*SPACES, *single)}
    for form in ("aec", "parallel") if name in GAMES and "flip" not in kwargs else ():
        game = pettingzoo.make(form, name, **kwargs)
        spaces = {part: getattr(game, part) for part in SPACES[1:]}
        found |= {f"{form}.{part}.{agent}": spaces[part](agent) for part in spaces for agent in game.possible_agents}
    return found


@pytest.mark.parametrize(("name", "kwargs"), [*((name, {}) for name in IDS), *OTHER_FORMS])
def test_every_space_can_be_sampled_and_is_the_environments_own(name, kwargs):
    one, other = spaces_of(name, kwargs), spaces_of(name, kwargs)
    all_of_them = [*one.values(), *other.values()]
    assert len({id(space) for space in all_of_them}) == len(all_of_them)
    for first, second in zip(one.values(), other.values(), strict=True):
        first.seed(3)
        second.seed(4)
        drawn = first.sample()
        assert drawn in first
        assert np.isfinite(drawn).all()
        second.sample()
        following = first.sample()
        first.seed(3)
        assert same(first.sample(), drawn)
        assert same(first.sample(), following)  # whatever the other's generator did


@pytest.mark.parametrize(
    ("name", "unbounded"),
    [
        ("BiLevel/RandomMDP-v0", {"theta_space": 5}),
        ("BiLevel/BilevelLQR-v0", {"observation_space": 3}),
        ("BiLevel/GuidedCartPole-v0", {"observation_space": 4}),
    ],
)
def test_unbounded_entries_of_spaces_are_infinite(name, unbounded):
    for part, entries in unbounded.items():
        space = getattr(gym.make(name).unwrapped, part)
        assert (np.isneginf(space.low) & np.isposinf(space.high)).sum() == entries


def test_vector_observation_passes_the_checkers_too():
    env = gym.make("BiLevel/FourRooms-v0", observation="vector")
    check_env(env.unwrapped)
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [4, 1, 1, 9]


@pytest.mark.slow
def test_sb3_learns_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPO("MlpPolicy", gym.make("BiLevel/FourRooms-v0"), n_steps=256, seed=0).learn(2_000)


def test_importing_is_light():
    code = "import bilevel_envs, json, sys; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "stable_baselines3", "matplotlib"} & set(json.loads(out.stdout))


@pytest.mark.parametrize("name", IDS)
def test_spec_survives_json(name):
    theta = gym.make(name).unwrapped.theta.tolist()
    spec = gym.make(name, theta=theta).spec
    again = gym.make(gym.envs.registration.EnvSpec.from_json(spec.to_json()))
    np.testing.assert_array_equal(again.unwrapped.theta, theta)


@pytest.mark.parametrize("name", TABLES)
def test_every_step_is_a_transition_in_p(name):
    env = gym.make(name, observation="index")
    table, rng = env.unwrapped.P, np.random.default_rng(0)
    state, _ = env.reset(seed=0)
    for _ in range(500):
        action = int(rng.integers(env.action_space.n))
        following, reward, terminated, truncated, _ = env.step(action)
        assert (following, reward, terminated) in [row[1:] for row in table[state][action]]
        state = env.reset()[0] if terminated or truncated else following


@pytest.mark.parametrize("name", TABLES)
def test_p_is_the_models_table(name):
    env = gym.make(name).unwrapped
    model = env.simulator(env.theta)
    table, start, transition = env.P, env.initial_state_distrib, model.moves.dense()
    assert start.sum() == pytest.approx(1.0)
    for s in range(env.states):
        for b in range(env.actions):
            assert sum(p for p, *_ in table[s][b]) == pytest.approx(1.0)
            for p, t, r, ends in table[s][b]:
                assert p == float(transition[0, s, b, t])
                assert r == float(model.r_follower[0, s, b])
                assert ends == (float(model.continues[0, s, b]) == 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
def test_an_environment_with_the_same_seeds_takes_the_same_steps(name):
    def life():
        env = gym.make(name)
        env.action_space.seed(1)
        state, _ = env.reset(seed=5)
        seen = [state]
        for _ in range(1500):
            state, reward, terminated, truncated, info = env.step(env.action_space.sample())
            seen.append((state, reward, terminated, truncated, info["leader_reward"]))
            if terminated or truncated:
                state, _ = env.reset()
                seen.append(state)
        return seen

    assert same(life(), life())


@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
def test_a_vector_environment_seeded_s_takes_the_steps_of_scalar_ones_seeded_s_plus_i(name):
    # more steps than one block of random numbers holds
    envs = gym.make_vec(name, num_envs=3)
    scalars = [gym.make(name) for _ in range(3)]
    observation, _ = envs.reset(seed=11)
    assert same(list(observation), [env.reset(seed=11 + i)[0] for i, env in enumerate(scalars)])
    envs.action_space.seed(0)
    for _ in range(1300):
        action = envs.action_space.sample()
        observation, reward, terminated, truncated, infos = envs.step(action)
        for i, env in enumerate(scalars):
            o, r, te, tr, info = env.step(action[i])
            assert (r, te, tr) == (reward[i], terminated[i], truncated[i])
            if te or tr:
                assert same(infos["final_obs"][i], o)
                assert infos["final_info"]["leader_reward"][i] == info["leader_reward"]
                assert not infos["_leader_reward"][i]
                o, _ = env.reset()
            else:
                assert infos["leader_reward"][i] == info["leader_reward"]
            assert same(observation[i], o)


def test_resetting_some_environments_leaves_the_others():
    envs = gym.make_vec("BiLevel/FourRooms-v0", num_envs=4)
    envs.reset(seed=0)
    for _ in range(10):
        before, *_ = envs.step(np.array([1, 1, 2, 2]))
    mask = np.array([True, False, False, True])
    after, _ = envs.reset(options={"reset_mask": mask})
    assert after[mask].tolist() == [31, 31]
    assert after[~mask].tolist() == before[~mask].tolist()


@pytest.mark.parametrize("name", IDS)
def test_pictures_can_be_collected(name):
    env = gym.make(name, render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    plain = gym.make(name, render_mode="rgb_array")
    plain.reset(seed=0)
    pictures = env.render()
    assert len(pictures) == 2
    np.testing.assert_array_equal(pictures[0], plain.render())
    if name in GAMES:
        assert LeaderEnv(env, Idle(name)).render_mode == "rgb_array"


@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
def test_minus_one_is_no_time_limit(name):
    limited, free = gym.make_vec(name, num_envs=1), gym.make_vec(name, num_envs=1, max_episode_steps=-1)
    limit = gym.spec(name).max_episode_steps
    cut = []
    for envs in (limited, free):
        envs.reset(seed=0)
        envs.action_space.seed(0)
        cut.append(sum(int(envs.step(envs.action_space.sample())[3][0]) for _ in range(3 * limit)))
    endings = {"BiLevel/FourRooms-v0", "BiLevel/TollBridge-v0", "BiLevel/GuidedCartPole-v0"}  # many end before
    assert cut[0] == 3 or name in endings
    assert cut[1] == 0
    with pytest.raises(ValueError, match="`max_episode_steps` must be at least 1, got -2"):
        gym.make_vec(name, num_envs=1, max_episode_steps=-2)


INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


def kinds_of(action):
    """The same action in every kind of whole numbers."""
    plain = np.asarray(action).astype(np.int64)
    yield from (plain.astype(kind) for kind in INTEGERS)
    yield from (torch.from_numpy(plain).to(getattr(torch, np.dtype(kind).name)) for kind in INTEGERS)
    yield plain.tolist()
    if plain.ndim == 0:
        yield from (kind(plain) for kind in INTEGERS)
        yield from (plain.astype(kind).reshape(1) for kind in INTEGERS)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *((name, {}) for name in IDS),
        ("BiLevel/TaxDesign-v0", {"actions": "flat"}),
        ("BiLevel/TaxDesign-v0", {"actions": "totals"}),
        ("BiLevel/GuidedPendulum-v0", {"discrete": 3}),
    ],
)
def test_actions_of_every_integer_dtype_mean_the_same(name, kwargs):
    env, envs = gym.make(name, **kwargs), gym.make_vec(name, num_envs=3, **kwargs)
    for one in (env, envs):
        one.action_space.seed(1)
        action = one.action_space.sample()
        action = (
            np.sign(np.abs(action)).astype(int) if np.asarray(action).dtype.kind == "f" else np.minimum(action, 100)
        )
        outcomes = []
        for same_action in kinds_of(action):
            one.reset(seed=3)
            outcomes.append(one.step(same_action)[:2])
        assert all(same(outcome, outcomes[0]) for outcome in outcomes)


@pytest.mark.parametrize("name", sorted(GAMES))
def test_players_of_games_take_every_integer_dtype(name):
    turns, together, chair = (
        pettingzoo.make("aec", name),
        pettingzoo.make("parallel", name),
        LeaderEnv(gym.make(name), Idle(name)),
    )
    one = np.ones(together.action_space("leader_0").shape, int)
    outcomes = {"turns": [], "together": [], "chair": []}
    for move in kinds_of(one):
        if np.shape(move) != one.shape:
            continue
        turns.reset(seed=0)
        turns.step(move)
        turns.step(move)
        outcomes["turns"].append([float(turns.rewards[agent]) for agent in turns.possible_agents])
        together.reset(seed=0)
        outcomes["together"].append(list(together.step({"leader_0": move, "follower_0": move})[1].values()))
        chair.reset(seed=0)
        outcomes["chair"].append(chair.step(move)[1])
    assert outcomes["turns"] == outcomes["together"]
    assert all(same(outcome, found[0]) for found in outcomes.values() for outcome in found)


class Idle:
    """A follower that answers with its first action, or with 0."""

    beta = None
    action_shape: tuple[int, ...] = ()

    def __init__(self, name):
        space = gym.make(name).action_space
        self.action_shape, self.kind = space.shape, space.dtype

    def best_response(self, model, preferences, start=None):
        return BestResponse(self, Missing("no Q_F"), Missing("no V_F"), torch.zeros(1), optimal=False)

    def sample(self, state, uniform):
        return torch.zeros(len(state), *self.action_shape).to(torch.int64 if self.kind == np.int64 else torch.float64)


def first_reward(env):
    env.reset(seed=0)
    return env.step(0)[1]


def test_theta_is_sticky_and_in_force_from_the_next_reset():
    env = gym.make("BiLevel/FourRooms-v0")
    half = np.full(104, -0.1 / 104)
    env.reset(seed=0)
    first = env.step(0)[1]
    assert first == pytest.approx(-0.2 / 105)
    env.unwrapped.configure(half)
    assert env.step(0)[1] == first  # the running episode keeps its world
    assert first_reward(env) == pytest.approx(-0.1 / 104)
    assert first_reward(env) == pytest.approx(-0.1 / 104)  # a reset without options keeps it
    env.reset(seed=0, options={"theta": np.zeros(104)})
    assert first_reward(env) == 0.0
    np.testing.assert_array_equal(env.unwrapped.theta, np.zeros(104))


def test_vector_theta_can_differ_by_run():
    envs = gym.make_vec("BiLevel/FourRooms-v0", num_envs=4)
    theta = np.stack([np.zeros(104), np.full(104, -0.1 / 104)])
    envs.reset(seed=0, options={"theta": theta})
    _, reward, *_ = envs.step(np.zeros(4, int))
    np.testing.assert_allclose(reward, [0, 0, -0.1 / 104, -0.1 / 104])


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (np.zeros(103), r"`theta` must have shape \[104\], got \[103\]"),
        (np.full(104, 0.1), r"`theta` must lie in theta_space; at \(0,\) it is 0.1, outside \[-0.2, 0\]"),
        (np.full(104, -0.01), r"`theta` must spend at most 0.2 in all; Σ\|theta\| is 1.04"),
        (np.full(104, np.nan), r"`theta` must be finite; at \(0,\) it is nan"),
        ("penalties", "`theta` must be an array of real numbers, got str"),
        (np.zeros((2, 104)), r"`theta` must have shape \[104\], got \[2, 104\]"),
        (np.zeros((1, 1, 104)), r"`theta` must have shape \[104\], got"),
        (np.zeros((0, 104)), r"`theta` must have shape \[104\], got"),
        (np.zeros(104, dtype=complex), "`theta` must be an array of real numbers"),
        ([[0.0], [0.0, 0.0]], "`theta` must be an array of real numbers"),
    ],
)
def test_bad_theta_is_refused_and_the_old_one_stays(theta, message):
    env = gym.make("BiLevel/FourRooms-v0")
    old = env.unwrapped.theta.copy()
    with pytest.raises(ValueError, match=message):
        env.unwrapped.configure(theta)
    with pytest.raises(ValueError, match=message):
        env.reset(options={"theta": theta})
    with pytest.raises(ValueError, match=message):
        gym.make("BiLevel/FourRooms-v0", theta=theta)
    np.testing.assert_array_equal(env.unwrapped.theta, old)


def test_unknown_arguments_are_named():
    with pytest.raises(
        TypeError, match=r"no argument 'dynamic' \(did you mean 'dynamics'\?\); it takes dynamics, closing"
    ):
        gym.make("BiLevel/FourRooms-v0", dynamic="classic")
    with pytest.raises(gym.error.NameNotFound):
        gym.make("BiLevel/FiveRooms-v0")
    env = gym.make("BiLevel/FourRooms-v0")
    with pytest.raises(ValueError, match=r"`options` may hold \['theta'\], got \['thet'\]"):
        env.reset(options={"thet": 1})
    env.reset()
    for action in (4, -1, 1.7, "2", None, [1, 2]):
        with pytest.raises(ValueError, match="`action` must lie in Discrete"):
            env.unwrapped.step(action)


def test_stepping_before_reset_is_refused():
    with pytest.raises(gym.error.ResetNeeded):
        gym.make("BiLevel/TollBridge-v0").unwrapped.step(0)
    envs = gym.make_vec("BiLevel/TollBridge-v0", num_envs=2)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(2, int))
    with pytest.raises(gym.error.ResetNeeded):
        envs.reset(options={"reset_mask": np.array([True, False])})


def test_the_last_state_of_an_episode_can_be_seen_but_not_left():
    env = gym.make("BiLevel/TollBridge-v0", render_mode="rgb_array")
    env.reset(seed=0)
    env.step(0)
    before = env.render()
    _, _, terminated, _, _ = env.step(0)
    assert terminated
    assert (env.render() != before).any()
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.step(0)


@pytest.mark.parametrize("name", IDS)
def test_pictures_change_with_the_state(name):
    env = gym.make(name, render_mode="rgb_array")
    env.reset(seed=0)
    env.action_space.seed(0)
    first = env.render()
    assert first.dtype == np.uint8
    assert first.ndim == 3
    pictures = [first]
    for _ in range(1 if name.endswith("TollBridge-v0") else 5):
        env.step(env.action_space.sample())
        pictures.append(env.render())
    assert any((picture != first).any() for picture in pictures)
