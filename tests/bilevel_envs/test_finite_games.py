"""Games from one description: a finite game by its tables, and what follows from spaces alone."""

import warnings
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.special import logsumexp

from bilevel_envs import (
    BilevelWrapper,
    FiniteGame,
    Game,
    GameEnv,
    GameTables,
    LeaderEnv,
    ParallelGameEnv,
    Preferences,
    TabularEnv,
    TabularGame,
)
from bilevel_envs.gym_env import make_env, make_vector_env
from bilevel_envs.leader_env import game_of
from bilevel_envs.markov_games import bilevel_lqr_v0, guided_pendulum_v0, toy_markov_game_v0
from bilevel_envs.testing import check_bilevel_env
from leaders import exact

with warnings.catch_warnings():  # PettingZoo's tests load one of its own games in a way that it deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, render_test, seed_test

S, A, B = 4, 2, 3
FORMS = [GameEnv, ParallelGameEnv]


def tables(seed=0):
    """Random moves, of which some end the game; one state is never left for another."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(S), (S, A, B))
    transition[2] = np.eye(S)[2]
    continues = (rng.random((S, A, B)) < 0.9).astype(float)
    continues[0, 1, 2] = 0.0
    r_leader, r_follower = rng.normal(size=(2, S, A, B))
    return {
        "transition": transition,
        "initial": [0.5, 0.3, 0.0, 0.2],
        "r_leader": r_leader,
        "r_follower": r_follower,
        "continues": continues,
    }


def game(seed=0, **arguments):
    return FiniteGame(**tables(seed), preferences=Preferences(0.8, 0.7, 0.5), horizon=30, **arguments)


def leaders_policy(seed=1):
    return np.random.default_rng(seed).dirichlet(np.ones(A), S)


def follower_at(policy, seed=0):
    """V_F(s, a) and g(b | s, a) by 400 sweeps of the definition, without anything of the package."""
    t = {name: np.asarray(table) for name, table in tables(seed).items()}
    v = np.zeros((S, A))
    for _ in range(400):
        arrived = (policy * v).sum(-1)  # of s', over a'
        q = t["r_follower"] + 0.7 * t["continues"] * (t["transition"] @ arrived)
        v = 0.5 * logsumexp(q / 0.5, -1)
    return v, np.exp((q - v[..., None]) / 0.5)


def value_of_leading(policy, steps=400, discount=0.8, seed=0):
    """The leader's value of its policy, by sweeps likewise."""
    t = {name: np.asarray(table) for name, table in tables(seed).items()}
    _, g = follower_at(policy, seed)
    value = np.zeros(S)
    for _ in range(steps):
        q = t["r_leader"] + discount * t["continues"] * (t["transition"] @ value)
        value = np.einsum("sa,sab,sab->s", policy, g, q)
    return t["initial"] @ value


# PettingZoo ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*(all zeros|probably should be|different):UserWarning")
def test_pettingzoos_own_checks_pass_on_a_users_game():
    api_test(GameEnv(game()), num_cycles=300)
    parallel_api_test(ParallelGameEnv(game()), num_cycles=300)
    seed_test(lambda: GameEnv(game()))
    parallel_seed_test(lambda: ParallelGameEnv(game()))
    render_test(lambda render_mode: GameEnv(game(), render_mode=render_mode))


def test_both_forms_play_the_same_game_with_the_same_moves():
    turns, together, ends = GameEnv(game()), ParallelGameEnv(game()), set()
    rng = np.random.default_rng(0)
    for seed in range(30):
        turns.reset(seed=seed)
        seen, _ = together.reset(seed=seed)
        while together.agents:
            a, b = int(rng.integers(A)), int(rng.integers(B))
            state = int(seen["leader_0"])
            assert int(turns.observe("leader_0")) == state
            assert seen["follower_0"].tolist() == [state, A]  # the mark: not drawn yet
            turns.step(a)
            assert turns.observe("follower_0").tolist() == [state, a]
            turns.step(b)
            seen, rewards, terminated, truncated, infos = together.step({"leader_0": a, "follower_0": b})
            t = tables()
            assert rewards == {"leader_0": t["r_leader"][state, a, b], "follower_0": t["r_follower"][state, a, b]}
            assert terminated["leader_0"] == (t["continues"][state, a, b] == 0)
            assert (turns.rewards, turns.terminations, turns.truncations) == (rewards, terminated, truncated)
            assert turns.infos == infos
        ends |= {terminated["leader_0"]}
    assert ends == {True}  # 30 steps are enough to meet one of the moves that end the game


def test_moves_and_first_states_are_drawn_as_the_tables_say():
    played, rng, draws = game(), np.random.default_rng(0), 4_000
    expected = tables()["transition"][1, 0, 2]
    counts = np.bincount([played.advance(1, 0, 2, rng)[0] for _ in range(draws)], minlength=S)
    error = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) < 4 * error).all()
    starts = np.bincount([played.first_state(rng) for _ in range(draws)], minlength=S)
    expected = np.array(tables()["initial"])
    assert (np.abs(starts - draws * expected) <= 4 * np.sqrt(draws * expected * (1 - expected))).all()
    before = rng.bit_generator.state
    assert played.advance(2, 1, 1, rng)[0] == 2  # the only place to go
    assert rng.bit_generator.state == before
    with pytest.raises(ValueError, match="`rng` must be a generator: chance has a part in this move"):
        played.advance(1, 0, 2)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_names_itself_and_takes_the_games_horizon(form):
    env = form(game())
    assert (env.metadata["name"], env.horizon) == ("FiniteGame", 30)
    env = form(game(), "mine", 7)
    assert (env.metadata["name"], env.horizon) == ("mine", 7)


# The follower's side ------------------------------------------------------------------------------------------------


def test_the_followers_mdp_is_the_game_at_the_leaders_policy():
    t, policy = tables(), leaders_policy()
    model = game().model(torch.tensor(policy)[None])
    assert (model.states, model.actions) == (S * A, B)
    for s in range(S):
        for a in range(A):
            pair = s * A + a
            assert float(model.initial[0, pair]) == pytest.approx(t["initial"][s] * policy[s, a])
            for b in range(B):
                assert float(model.r_leader[0, pair, b]) == t["r_leader"][s, a, b]
                assert float(model.r_follower[0, pair, b]) == t["r_follower"][s, a, b]
                assert float(model.continues[0, pair, b]) == t["continues"][s, a, b]
                expected = [t["transition"][s, a, b, n] * policy[n, c] for n in range(S) for c in range(A)]
                np.testing.assert_allclose(model.moves.dense()[0, pair, b], expected, atol=1e-15)


def test_the_exact_objective_and_its_gradient_are_those_of_plain_sweeps():
    env, policy, h = BilevelWrapper(TabularEnv(game())), leaders_policy(), 1e-5
    assert exact.objective(env, policy) == pytest.approx(value_of_leading(policy), rel=1e-9)
    _, g = follower_at(policy)
    np.testing.assert_allclose(env.best_response(policy).policy.probs[0].reshape(S, A, B), g, atol=1e-9)
    gradient = exact.hypergradient(env, policy)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-12)  # each row's mean is removed
    for s in range(S):
        along = np.zeros((S, A))
        along[s] = [1.0, -1.0]
        difference = (value_of_leading(policy + h * along) - value_of_leading(policy - h * along)) / (2 * h)
        assert (gradient * along).sum() == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_the_followers_environment_passes_gymnasiums_checks():
    env = TabularEnv(game(), observation="vector", render_mode="rgb_array")
    assert env.observation_space == gym.spaces.MultiDiscrete([S, A])
    check_env(env, skip_render_check=True)  # which wants a registered id
    assert env.theta_space == gym.spaces.Box(0.0, 1.0, (S, A), np.float64)
    with pytest.raises(ValueError, match="`theta` must be probabilities whose rows sum to 1"):
        env.configure(np.full((S, A), 0.4))


def test_a_follower_that_does_not_see_the_draw_expects_over_it():
    t, policy = tables(), leaders_policy()
    parts = {name: table for name, table in t.items() if name != "continues"}
    blind = FiniteGame(**parts, continues=np.repeat(t["continues"][:, :1], A, 1), sees_leader=False)
    model = blind.model(torch.tensor(policy)[None])
    for s in range(S):
        for b in range(B):
            mean = sum(policy[s, a] * t["r_follower"][s, a, b] for a in range(A))
            assert float(model.r_follower[0, s, b]) == pytest.approx(mean)
            arrival = sum(policy[s, a] * t["transition"][s, a, b] for a in range(A))
            np.testing.assert_allclose(model.moves.dense()[0, s, b], arrival, atol=1e-15)
    np.testing.assert_array_equal(model.continues[0], t["continues"][:, 0])
    with pytest.raises(ValueError, match="`continues` must not depend on the leader's action"):
        FiniteGame(**t, sees_leader=False).model(torch.tensor(policy)[None])


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_game_is_refused(form):
    with pytest.raises(TypeError, match=r"`game` must be a Game, got TabularEnv, .* take `env.unwrapped.problem`"):
        form(TabularEnv(game()))


def test_a_follower_that_does_not_see_the_draw_observes_states_alone():
    parts = {name: table for name, table in tables().items() if name != "continues"}
    blind = FiniteGame(**parts, continues=np.repeat(tables()["continues"][:, :1], A, 1), sees_leader=False)
    assert (blind.seen_space, blind.unseen_space, blind.policy_state(2, 1)) == (blind.game_states,) * 2 + (2,)
    turns, together = GameEnv(blind), ParallelGameEnv(blind)
    turns.reset(seed=0)
    state = int(turns.observe("leader_0"))
    for action in range(A):
        turns.reset(seed=0)
        turns.step(action)
        assert turns.observe("follower_0") == together.observe_follower(state, action) == state
        assert turns.observe("follower_0") in turns.observation_space("follower_0")
    seen, _ = together.reset(seed=0)
    assert seen["follower_0"] in together.observation_space("follower_0")
    assert seen["follower_0"] == seen["leader_0"]
    assert check_bilevel_env(blind, steps=500).ok


@pytest.mark.slow
def test_a_follower_that_does_not_see_the_draw_pays_the_leader_what_the_policy_is_worth():
    parts = {name: table for name, table in tables().items() if name != "continues"}
    blind = FiniteGame(**parts, continues=np.repeat(tables()["continues"][:, :1], A, 1), sees_leader=False)
    policy, rng, returns = leaders_policy(), np.random.default_rng(0), []
    env = LeaderEnv(blind, theta=policy)
    for episode in range(1_500):
        state, _ = env.reset(seed=episode)
        total, over, step = 0.0, False, 0
        while not over and step < 100:
            state, reward, terminated, truncated, _ = env.step(int(rng.choice(A, p=policy[state])))
            total += blind.preferences.gamma_leader**step * reward
            over, step = terminated or truncated, step + 1
        returns.append(total)
    worth = float(exact.objective(BilevelWrapper(TabularEnv(blind)), policy))
    assert abs(np.mean(returns) - worth) < 4 * np.std(returns) / len(returns) ** 0.5


# The leader's side --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_leaders_side_pays_what_the_policy_is_worth():
    policy = leaders_policy()
    env, rng, returns, steps = LeaderEnv(game(), theta=policy), np.random.default_rng(0), [], []
    assert (env.observation_space, env.action_space) == (gym.spaces.Discrete(S), gym.spaces.Discrete(A))
    for episode in range(1_500):
        state, _ = env.reset(seed=episode)
        total, over, info = 0.0, False, {"step": -1}
        while not over:
            state, reward, terminated, truncated, info = env.step(int(rng.random() >= policy[state, 0]))
            total += reward
            over = terminated or truncated
        assert terminated or info["step"] == 29
        returns.append(total)
        steps.append(info["step"])
    assert min(steps) == 0  # a first move may be the last one
    expected = value_of_leading(policy, steps=30, discount=1.0)
    error = np.std(returns) / len(returns) ** 0.5
    assert abs(np.mean(returns) - expected) < 4 * error
    # if the game did not end, the sum over 30 steps would be another
    assert exact.objective(TabularEnv(game()), policy, horizon=30, discount=1.0) == pytest.approx(expected, rel=1e-9)


def test_the_leaders_side_passes_gymnasiums_checks():
    check_env(LeaderEnv(game()), skip_render_check=True)


@pytest.mark.parametrize(
    "of",
    [
        lambda one: one,
        GameEnv,
        ParallelGameEnv,
        TabularEnv,
        LeaderEnv,
        lambda one: BilevelWrapper(TabularEnv(one)),
        lambda one: gym.wrappers.TimeLimit(TabularEnv(one), 5),
    ],
)
def test_the_game_behind_every_environment_is_found(of):
    one = game()
    assert game_of(of(one)) is one
    assert LeaderEnv(of(one)).game is one


def test_an_object_that_is_no_game_is_refused():
    for wrong in (gym.make("BiLevel/TollBridge-v0"), gym.make("CartPole-v1"), object(), None, tables()):
        with pytest.raises(TypeError, match="`game` must be a game with two players"):
            game_of(wrong)


# Bad tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"r_leader": np.zeros((S, A))}, r"`r_leader` must have shape \[4, 2, 3\]"),
        ({"initial": np.ones(3) / 3}, r"`initial` must have shape \[4\]"),
        ({"initial": np.ones(4)}, "`initial` .* must be non-negative and sum to 1"),
        ({"transition": np.ones((S, A, B, S))}, "`transition` .* must be non-negative and sum to 1"),
        ({"transition": np.ones((S, A, B, 5)) / 5}, r"`transition` must have shape \[..., 4\] \[state, leader action"),
        ({"transition": np.eye(S)}, r"`transition` must be \[state, leader action, action, next state\], got shape"),
        ({"r_follower": np.full((S, A, B), np.nan)}, "`r_follower` must be finite"),
        ({"continues": np.full((S, A, B), 0.5)}, "`continues` must be 0 or 1"),
        ({"continues": np.ones((S, A))}, r"`continues` must have shape \[4, 2, 3\]"),
        ({"horizon": 0}, "`horizon` must be at least 1"),
        ({"sees_leader": 1}, "`sees_leader` must be one of True, False"),
    ],
)
def test_bad_tables_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        FiniteGame(**tables() | changed)


# What follows from spaces -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tug(Game):
    """On a line the leader pulls by 0, 1 or 2, the follower by any number; over where it is torn beyond 3."""

    game_states = gym.spaces.Box(-9.0, 9.0, (1,), np.float64)
    leader_actions = gym.spaces.Discrete(3)
    follower_actions = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)

    def first_state(self, rng):
        return rng.uniform(-1, 1, 1)

    def advance(self, state, leader_action, action, rng=None):
        following = state + leader_action - action
        return following, float(following[0]), -float(following[0])

    def ends(self, state):
        return abs(state[0]) > 3


@pytest.mark.filterwarnings("ignore:.*(single number|probably should be|different|infinite|infinity):UserWarning")
def test_a_game_of_spaces_and_steps_is_played_by_two():
    tug = Tug()
    assert (tug.horizon, tug.sees_leader, tug.has_picture, tug.default_follower()) == (100, True, False, None)
    assert tug.seen_space == gym.spaces.Box(np.array([-9.0, 0.0]), np.array([9.0, 2.0]), dtype=np.float64)
    assert tug.observe_follower(np.array([0.5]), 2).tolist() == [0.5, 2.0]
    assert tug.not_drawn(np.array([0.5])).tolist() == [0.5, -np.inf]
    api_test(GameEnv(tug), num_cycles=100)
    parallel_api_test(ParallelGameEnv(tug), num_cycles=100)
    env = ParallelGameEnv(tug)
    env.reset(seed=0)
    _, rewards, terminated, *_ = env.step({"leader_0": 2, "follower_0": np.array([-1.0])})
    again = env.step({"leader_0": 2, "follower_0": np.array([-1.0])}) if env.agents else None
    assert terminated["leader_0"] == (rewards["leader_0"] > 3)
    assert again is None or again[2]["leader_0"]
    for make in (GameEnv, ParallelGameEnv):
        with pytest.raises(ValueError, match="`render_mode` must be None: Tug has no `draw_game`, got 'rgb_array'"):
            make(tug, render_mode="rgb_array")
        with pytest.raises(ValueError, match="`render_mode` must be one of None, 'rgb_array', 'human'"):
            make(tug, render_mode="ansi")


def test_the_followers_observations_follow_from_the_spaces_of_our_games():
    toy = toy_markov_game_v0.env().unwrapped.game
    assert toy.seen_space == gym.spaces.MultiDiscrete([3, 2])
    assert toy.unseen_space == gym.spaces.MultiDiscrete([3, 3])
    assert (toy.not_drawn(1).tolist(), toy.policy_state(1, 1)) == ([1, 2], 3)
    lqr = bilevel_lqr_v0.env().unwrapped.game
    assert lqr.seen_space == lqr.unseen_space == gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    pendulum = guided_pendulum_v0.env(flip=True).unwrapped.game
    assert pendulum.seen_space == pendulum.state_space
    high = np.array([1.0, 1.0, 8.0, np.inf])
    assert pendulum.unseen_space == gym.spaces.Box(-high, high, dtype=np.float64)
    assert pendulum.policy_state(np.zeros(3), np.array([2.0])).tolist() == [0, 0, 0, 2]


def test_spaces_that_are_neither_numbers_nor_vectors_are_refused():
    class Odd(Tug):
        leader_actions = gym.spaces.Dict({})

    with pytest.raises(TypeError, match="a game's spaces must be Discrete or Box, got Dict"):
        GameEnv(Odd())


@dataclass(frozen=True)
class Coin(TabularGame):
    """One state; both show a side, and the follower, who sees the leader's, is paid for the other one."""

    preferences = Preferences(0.5, 0.5, 0.2)

    @property
    def tables(self):
        match = torch.eye(2, dtype=torch.float64)[None]
        return GameTables(torch.ones(1, 2, 2, 1).double(), torch.ones(1).double(), match, 1 - match)


def test_a_game_may_compute_its_tables():
    env = BilevelWrapper(TabularEnv(Coin()))
    # The follower's choice moves nothing: it shows the other side with σ(1 / β) at every step, and J_L is their sum.
    expected = (1 - 1 / (1 + np.exp(-1 / 0.2))) / (1 - 0.5)
    assert exact.objective(env, [[0.3, 0.7]]) == pytest.approx(expected, rel=1e-9)
    picture = GameEnv(Coin(), render_mode="rgb_array")
    picture.reset(seed=0)
    assert picture.render().shape == (320, 480, 3)


def test_a_users_game_may_have_an_id():
    env = make_env(f"{__name__}:Coin")
    assert env.observation_space == gym.spaces.MultiDiscrete([1, 2])
    env.reset(seed=0, options={"theta": [[0.0, 1.0]]})
    _, reward, *_, info = env.step(0)  # the leader shows 1: the sides differ
    assert (reward, info["leader_reward"]) == (1.0, 0.0)
    many = make_vector_env(f"{__name__}:Coin", num_envs=3, theta=[[1.0, 0.0]])
    assert many.reset(seed=0)[0].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("module", [toy_markov_game_v0, bilevel_lqr_v0, guided_pendulum_v0])
def test_the_functions_of_a_module_are_its_own(module):
    for name in ("env", "raw_env", "parallel_env"):
        made = getattr(module, name)
        assert (made.__module__, made.__qualname__) == (module.__name__, name)
        assert made.__doc__.startswith("The game in ")
