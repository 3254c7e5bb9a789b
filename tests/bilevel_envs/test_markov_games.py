"""Two-player games: PettingZoo's own checks, one game in both forms, and the tables behind them."""

import warnings

import gymnasium as gym
import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from bilevel_envs import BilevelWrapper, LeaderEnv, registration
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import Committed, SoftValueIteration
from bilevel_envs.games.pettingzoo_env import ParallelGameEnv
from bilevel_envs.markov_games import bilevel_lqr_v0, guided_cartpole_v0, guided_pendulum_v0, toy_markov_game_v0
from bilevel_envs.markov_games.toy_markov_game_v0 import INDIFFERENT, VARIANTS, ToyMarkovGame
from leaders import exact
from tests.helpers import bilevel_lqr, toy_policy

with warnings.catch_warnings():  # PettingZoo's tests load one of its own games in a way that it deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, render_test, seed_test

GAMES = [
    (toy_markov_game_v0, {"variant": "R1"}),
    (toy_markov_game_v0, {"variant": "R2"}),
    (bilevel_lqr_v0, {}),
    (guided_cartpole_v0, {}),
    (guided_cartpole_v0, {"flip": True, "discrete": 5}),
    (guided_pendulum_v0, {}),
    (guided_pendulum_v0, {"flip": True}),
]
IDS = ["toy-R1", "toy-R2", "lqr", "cartpole", "cartpole-flip", "pendulum", "pendulum-flip"]
NAMES = list(registration.GAMES)


# Its heuristics suspect a first observation of 0 and unbounded spaces, which are meant here.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(all zeros|probably should be|different|infinite|infinity):UserWarning")
@pytest.mark.parametrize(("module", "arguments"), GAMES, ids=IDS)
def test_pettingzoos_own_checks_pass(module, arguments):
    api_test(module.env(**arguments), num_cycles=400)
    parallel_api_test(module.parallel_env(**arguments), num_cycles=400)
    seed_test(lambda: module.env(**arguments))
    parallel_seed_test(lambda: module.parallel_env(**arguments))
    render_test(lambda render_mode: module.env(render_mode=render_mode, **arguments))


@pytest.mark.parametrize("name", NAMES)
def test_pettingzoo_knows_the_games(name):
    turns, together = pettingzoo.make("aec", name), pettingzoo.make("parallel", name, max_cycles=7)
    assert turns.unwrapped.possible_agents == together.possible_agents == ["leader_0", "follower_0"]
    assert together.horizon == 7


def moves(env, seed, steps):
    spaces = [env.action_space(agent) for agent in ("leader_0", "follower_0")]
    for offset, space in enumerate(spaces):
        space.seed(seed + offset)
    return [tuple(space.sample() for space in spaces) for _ in range(steps)]


@pytest.mark.parametrize(("module", "arguments"), GAMES, ids=IDS)
def test_both_forms_are_one_game_for_many_steps(module, arguments):
    lives = []
    for _ in range(2):  # the same seed twice: determinism over many steps
        turns, together = module.env(**arguments), module.parallel_env(**arguments)
        turns.reset(seed=5)
        seen, _ = together.reset(seed=5)
        life = []
        for a, b in moves(together, 5, together.horizon):
            np.testing.assert_array_equal(turns.observe("leader_0"), seen["leader_0"])
            assert turns.agent_selection == "leader_0"
            turns.step(a)
            # the follower sees what the leader has drawn
            expected = together.observe_follower(seen["leader_0"], a)
            np.testing.assert_array_equal(turns.observe("follower_0"), expected)
            assert together.observation_space("follower_0").contains(seen["follower_0"])
            assert not np.array_equal(seen["follower_0"], expected)  # marked as not drawn yet
            turns.step(b)
            seen, rewards, terminated, truncated, _ = together.step({"leader_0": a, "follower_0": b})
            assert turns.rewards == rewards
            assert turns.truncations == truncated
            assert turns.terminations == terminated
            life.append((np.asarray(seen["leader_0"]).tolist(), rewards))
            if not together.agents:  # some games end by themselves
                break
        assert all(truncated.values()) or all(terminated.values())
        assert together.agents == []
        lives.append(life)
    assert lives[0] == lives[1]


@pytest.mark.parametrize(("module", "arguments"), GAMES, ids=IDS)
def test_the_last_rewards_arrive_in_the_dead_turns(module, arguments):
    env = module.env(**arguments)
    env.reset(seed=0)
    policies = {agent: env.action_space(agent) for agent in env.possible_agents}
    for agent, space in policies.items():
        space.seed(len(agent))
    paid, collected = dict.fromkeys(policies, 0.0), dict.fromkeys(policies, 0.0)
    for agent in env.agent_iter():
        _, reward, terminated, truncated, _ = env.last()
        collected[agent] += reward
        env.step(None if terminated or truncated else policies[agent].sample())
        if agent == "follower_0" and not (terminated or truncated):
            paid = {one: paid[one] + env.rewards[one] for one in paid}
    assert collected == pytest.approx(paid)


def test_the_parallel_form_refuses_half_a_move():
    env = toy_markov_game_v0.parallel_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="`actions` must hold a move of each agent, got none of follower_0"):
        env.step({"leader_0": 0})
    with pytest.raises(ValueError, match="`agent` must be one of 'leader_0', 'follower_0', got 'leader'"):
        env.action_space("leader")
    fresh = toy_markov_game_v0.parallel_env()
    with pytest.raises(ValueError, match="`max_cycles` must be at least 1"):
        toy_markov_game_v0.parallel_env(max_cycles=0)
    with pytest.raises(ValueError, match="`variant` must be one of 'R1', 'R2'"):
        toy_markov_game_v0.parallel_env(variant="R3")
    assert fresh.possible_agents == ["leader_0", "follower_0"]


class GameWithoutSteps(ToyMarkovGame):
    horizon = 0


def test_a_game_must_have_a_step():
    with pytest.raises(ValueError, match="`game.horizon` must be at least 1, got 0"):
        ParallelGameEnv(GameWithoutSteps(), "game", None, None)
    assert ParallelGameEnv(GameWithoutSteps(), "game", 5, None).horizon == 5


# The toy game ------------------------------------------------------------------------------------------------------


def test_the_toy_games_table_is_the_papers():
    t = ToyMarkovGame(variant="R2").tables
    # (s, a, b) → (s', r_L, r_F), from the specification's table
    S, A, B = range(3)
    expected = {
        (S, 0, 0): (S, 0, 0), (S, 1, 1): (A, 1, 1), (S, 0, 2): (B, 0, 1),
        (A, 0, 0): (S, 0, 0), (A, 0, 1): (A, 0, 0), (A, 0, 2): (B, 0, 2),
        (A, 1, 0): (S, 0, -1), (A, 1, 1): (S, 0, -1), (A, 1, 2): (S, 0, -1),
        (B, 0, 0): (S, 0, 0), (B, 1, 1): (B, 0, 0), (B, 0, 2): (B, 0, 0),
    }  # fmt: skip
    for at, (following, r_leader, r_follower) in expected.items():
        assert int(t.transition[at].argmax()) == following
        assert (float(t.r_leader[at]), float(t.r_follower[at])) == (r_leader, r_follower)
    assert pytest.approx(2.3858910707, abs=1e-9) == INDIFFERENT
    assert float(ToyMarkovGame(variant="R1").tables.r_follower[A, 0, 2]) == 1


def test_the_other_variants_of_the_toy_game_have_their_published_tables():
    t = ToyMarkovGame(variant="3_1a").tables  # base −1, B,*,s:0
    assert float(t.r_follower[0, 0, 0]) == -1
    assert float(t.r_follower[2, 1, 0]) == 0
    assert float(t.r_follower[0, 1, 2]) == -3
    assert int(ToyMarkovGame(variant="2_2").tables.transition[1, 1, 0].argmax()) == 2  # A,1,s>B
    assert int(ToyMarkovGame(variant="1_1a").tables.transition[0, 1, 1].argmax()) == 2  # S,1,a>B
    assert ToyMarkovGame(variant="1_1b").horizon == 100
    assert len(VARIANTS) == 16
    for variant in VARIANTS:
        model = ToyMarkovGame(variant=variant).model(torch.full((1, 3, 2), 0.5, dtype=torch.float64))
        SoftValueIteration().best_response(model, Preferences(0.99, 0.99, 0.05))


@pytest.mark.parametrize(
    ("variant", "p", "value", "discounted", "undiscounted", "goes"),
    [
        ("R2", 0.497363, 39.940211, 31.165576, 59.750091, 0.986968),
        ("R1", 0.833544, 34.992641, 27.315561, 52.324139, 0.975011),
    ],
)
def test_the_toy_game_has_its_specified_optima(variant, p, value, discounted, undiscounted, goes):
    """Specification, section 6."""
    env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", variant=variant))
    theta = toy_policy(p)
    assert exact.objective(env, theta) == pytest.approx(value, abs=1e-6)
    assert exact.objective(env, theta, horizon=150) == pytest.approx(discounted, abs=2e-6)
    assert exact.objective(env, theta, horizon=150, discount=1.0) == pytest.approx(undiscounted, abs=2e-6)
    assert float(env.best_response(theta).policy.probs[0, 0, 1]) == pytest.approx(goes, abs=1e-6)
    assert float(env.best_known) == pytest.approx(value, abs=1e-6)
    assert exact.objective(env, toy_policy(p + 1e-3)) < value > exact.objective(env, toy_policy(p - 1e-3))


def test_the_toys_hypergradient_is_that_of_the_specification_and_of_differences():
    """Specification, sections 3 and 7.4: −1.49598 at p = 1/2 on R2, of which −15.633 is direct; and differences."""
    env = gym.make("BiLevel/ToyMarkovGame-v0", variant="R2")
    direct, guiding = exact.hypergradient_parts(env, toy_policy(0.5))
    along = np.array([1.0, -1.0])  # dθ[A] / dp
    assert (direct + guiding)[1] @ along == pytest.approx(-1.4959815, abs=1e-6)
    assert direct[1] @ along == pytest.approx(-15.633, abs=1e-3)
    np.testing.assert_allclose((direct + guiding)[[0, 2]], 0, atol=1e-9)  # only f(.|A) matters
    np.testing.assert_allclose((direct + guiding).sum(-1), 0, atol=1e-9)  # each row's mean is removed
    for variant, p in (("R1", 0.7), ("R2", 0.3)):
        env, h = gym.make("BiLevel/ToyMarkovGame-v0", variant=variant), 1e-5
        difference = (exact.objective(env, toy_policy(p + h)) - exact.objective(env, toy_policy(p - h))) / (2 * h)
        assert exact.hypergradient(env, toy_policy(p))[1] @ along == pytest.approx(difference, rel=1e-6)


def test_the_followers_gradient_starts_one_step_later():
    """Eq. (9) summed from t = 1 is ∇Q_F; from t = 0 it is off by V · ∇log f (specification, section 3)."""
    problem = ToyMarkovGame(variant="R2")
    preferences, h = problem.preferences, 1e-6
    solve = SoftValueIteration(tol=1e-13).best_response

    def response(p):
        return solve(problem.model(torch.tensor(toy_policy(p))[None]), preferences)

    p = 0.5
    difference = (response(p + h).q.values - response(p - h).q.values)[0] / (2 * h)  # dQ_F/dp, [6, 3]
    best, model = response(p), problem.model(torch.tensor(toy_policy(p))[None])
    # score d log f(a|s)/dp: at A, 1/p for a = 0 and −1/(1 − p) for a = 1
    score = torch.tensor([0, 0, 1 / p, -1 / (1 - p), 0, 0], dtype=torch.float64)
    arrives = best.v.values[0] * score  # V score where a step arrives
    gamma, transition, g = preferences.gamma_follower, model.moves.dense()[0], best.policy.probs[0]
    onward = torch.einsum("sb,sbt->st", g, transition)
    # G(s̄) = V score + γ Σ_b g P G is the sum from t = 0 on; from t = 1: ∇Q = γ P G
    total = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - gamma * onward, arrives)
    from_one = gamma * torch.einsum("sbt,t->sb", transition, total)
    torch.testing.assert_close(from_one, difference, rtol=0, atol=1e-6 * float(difference.abs().max()))
    from_zero = arrives[:, None] + from_one
    assert float((from_zero - difference).abs().max()) > 100  # the specification: up to 124


def test_a_follower_that_does_not_see_the_draw_has_three_states():
    env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", sees_leader=False))
    assert env.observation_space == gym.spaces.Discrete(3)
    theta = toy_policy(0.3)
    model = env.model(theta)
    # at A, b: 0.3 of going on to B for 2, 0.7 of paying 1 and being sent back
    assert float(model.r_follower[0, 1, 2]) == pytest.approx(0.3 * 2 - 0.7)
    np.testing.assert_allclose(model.moves.dense()[0, 1, 2], [0.7, 0.0, 0.3], atol=1e-12)
    h = 1e-5
    moved = [exact.objective(env, toy_policy(0.5 + sign * h)) for sign in (1, -1)]
    along = exact.hypergradient(env, toy_policy(0.5))[1] @ [1, -1]
    assert along == pytest.approx((moved[0] - moved[1]) / (2 * h), rel=1e-5)


def test_observations_of_the_toy_game_correspond_to_its_state_indices():
    env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0"))
    assert env.observation_space == gym.spaces.MultiDiscrete([3, 2])
    pairs = np.array([[0, 1], [2, 0]])
    np.testing.assert_array_equal(env.problem.index(pairs), [1, 4])
    np.testing.assert_array_equal(env.problem.observe(np.array([1, 4])), pairs)
    best = env.best_response(toy_policy(0.5))
    assert best.policy.probs.shape == (1, 6, 3)


def test_theta_that_is_no_policy_is_refused():
    env = gym.make("BiLevel/ToyMarkovGame-v0")
    with pytest.raises(ValueError, match="`theta` must be probabilities whose rows sum to 1; at .* sum to 0.9"):
        env.unwrapped.configure([[0.5, 0.5], [0.4, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="`theta` must lie in theta_space"):
        env.unwrapped.configure([[0.5, 0.5], [1.4, -0.4], [0.5, 0.5]])


def test_parameterisations_are_policies():
    problem = ToyMarkovGame()
    for name in ("softmax", "mlp"):
        theta = problem.parameterization(4, Noise([0, 1, 2, 3]), name)().detach()
        assert theta.shape == (4, 3, 2)
        problem.check_theta(theta.numpy())
        assert len({float(p) for p in theta[:, 1, 0]}) == 4
    with pytest.raises(ValueError, match="`policy` must be one of 'softmax', 'mlp', got 'table'"):
        problem.parameterization(1, Noise([0]), "table")


def test_pictures_of_the_toy_game_show_the_move():
    env = toy_markov_game_v0.parallel_env(render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step({"leader_0": 0, "follower_0": 1})
    after = env.render()
    assert before.shape == after.shape == (320, 480, 3)
    assert (before != after).any()


@pytest.mark.slow
def test_a_follower_as_published_looks_one_move_less_ahead():
    """Specification, section 6: the optima with the published operator, and section 2.2: indifference at 0.4025."""
    for variant, p, value, goes in (("R2", 0.509374, 39.760813, 0.987200), ("R1", 0.841812, 34.915791, 0.975875)):
        env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", variant=variant), Committed(sweeps=20_000, tol=1e-12))
        best = env.best_response(toy_policy(p))
        assert exact.objective(env, toy_policy(p), policy=best.policy) == pytest.approx(value, abs=1e-6)
        assert float(best.policy.probs[0, 0, 1]) == pytest.approx(goes, abs=1e-6)
        assert not best.optimal
    env = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0"), Committed(sweeps=20_000, tol=1e-12))
    assert float(env.best_response(toy_policy(0.4025)).policy.probs[0, 0, 1]) == pytest.approx(0.5, abs=0.03)
    # by convexity its values lie below the exact ones
    exact_v = BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0")).best_response(toy_policy(0.5)).v.values
    assert (env.best_response(toy_policy(0.5)).v.values < exact_v).all()
    again = env.follower.best_response(env.model(toy_policy(0.5)), env.preferences, env.best_response(toy_policy(0.5)))
    assert float(again.residual) <= 1e-12


# The leader's chair ------------------------------------------------------------------------------------------------


def test_the_leaders_side_of_the_toy_game_pays_what_the_policy_is_worth():
    env = LeaderEnv(gym.make("BiLevel/ToyMarkovGame-v0", variant="R2"), theta=toy_policy(0.5))
    check_env(env, skip_render_check=True)
    assert (env.observation_space, env.action_space) == (gym.spaces.Discrete(3), gym.spaces.Discrete(2))
    rng, total = np.random.default_rng(0), []
    for episode in range(60):
        env.reset(seed=episode)
        paid, truncated = 0.0, False
        while not truncated:
            _, reward, terminated, truncated, info = env.step(int(rng.random() < 0.5))
            paid += reward
            assert not terminated
        assert info["step"] == 149
        total.append(paid)
    expected = exact.objective(gym.make("BiLevel/ToyMarkovGame-v0"), toy_policy(0.5), horizon=150, discount=1.0)
    assert abs(np.mean(total) - expected) < 4 * np.std(total) / len(total) ** 0.5
    # the reply is to the policy last told
    before = env.best.policy.probs[0, 0].clone()
    env.configure(toy_policy(0.1))
    assert float((env.best.policy.probs[0, 0] - before).abs().max()) > 0.1
    with pytest.raises(ValueError, match="`theta` must be probabilities"):
        env.configure(np.full((3, 2), 0.4))
    np.testing.assert_array_equal(env.theta, toy_policy(0.1))
    with pytest.raises(TypeError, match="`game` must be a game with two players"):
        LeaderEnv(gym.make("BiLevel/FourRooms-v0"))
    for game in (toy_markov_game_v0.env(), toy_markov_game_v0.parallel_env(), ToyMarkovGame(), bilevel_lqr_v0.env()):
        fresh = LeaderEnv(game)
        with pytest.raises(gym.error.ResetNeeded):
            fresh.step(fresh.action_space.sample())


# The linear-quadratic game -----------------------------------------------------------------------------------------


def test_the_lqr_followers_values_are_those_of_the_specification():
    """Specification, section 3, at K = 0 and K = (−10, −10)."""
    best = bilevel_lqr().best_response(np.zeros((1, 2)))
    matrix = -best.v.matrix[0]
    np.testing.assert_allclose(matrix[:2, :2], np.diag([1.0, 1.95]), atol=1e-12)
    assert float(best.v.constant) == pytest.approx(-1.17621089, abs=1e-8)
    assert float(best.policy.covariance) == pytest.approx(0.0490905967, abs=1e-10)
    # K_w = (0, 0.18188066) meets the leader's noise w = C (a − K s) only in its first entry: gain 0 on (s, a)
    np.testing.assert_allclose(best.policy.gain, 0, atol=1e-12)
    # P over (s, w) from the matrix over (s, a): s' (M) with a = K s, here K = 0
    best = bilevel_lqr().best_response(np.array([[-10.0, -10.0]]))
    follow = np.array([[1, 0], [0, 1], [-10, -10]])  # s ↦ (s, K s)
    np.testing.assert_allclose(follow.T @ -best.v.matrix[0].numpy() @ follow, np.diag([20.0, 1.0]), atol=1e-9)
    np.testing.assert_allclose(best.policy.gain[0].numpy() @ follow, 0, atol=1e-9)


@pytest.mark.parametrize(
    ("gain", "discounted", "undiscounted"),
    [((-9.965494, -10.0), None, 18.426353), ((-9.961465, -10.0), 11.309047, None), ((0.0, 0.0), None, 0.01494905)],
)
def test_the_lqr_leaders_values_are_those_of_the_specification(gain, discounted, undiscounted):
    """Specification, section 7."""
    env = bilevel_lqr()
    if discounted is not None:
        assert exact.objective(env, [gain]) == pytest.approx(discounted, abs=1e-6)
        assert float(env.best_known) == pytest.approx(discounted, abs=1e-6)
    if undiscounted is not None:
        found = exact.objective(env, [gain], horizon=100, discount=1.0)
        assert found == pytest.approx(undiscounted, abs=1e-6)


def test_the_lqr_gradients_are_those_of_differences():
    """At K = 0 the undiscounted gradient is (−2.760e-4, 2.745e-4); elsewhere differences of the exact objective."""
    env, h = bilevel_lqr(), 1e-5
    for gain, discount in (((0.0, 0.0), 1.0), ((-8.0, -7.0), 0.99)):
        differences = []
        for entry in np.eye(2):
            ends = [
                exact.objective(env, [np.array(gain) + sign * h * entry], horizon=100, discount=discount)
                for sign in (1, -1)
            ]
            differences.append((ends[0] - ends[1]) / (2 * h))
        if discount == 1.0:
            np.testing.assert_allclose(differences, [-2.760e-4, 2.745e-4], atol=1e-7)
        else:
            np.testing.assert_allclose(exact.hypergradient(env, [gain])[0], differences, rtol=1e-6)


def test_the_bumps_mean_is_an_integral():
    bump = bilevel_lqr().problem.bump
    mean, covariance = torch.tensor([-0.7, 0.01]).double(), torch.diag(torch.tensor([0.02, 3e-4])).double()
    draws = (
        mean + torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0)).double() * covariance.diag().sqrt()
    )
    sampled = bump(draws)
    error = float(sampled.std()) / 400_000**0.5
    assert abs(float(bump.expected(mean, covariance)) - float(sampled.mean())) < 4 * error
    assert float(bump(torch.tensor([-0.8, 0.0]).double())) == 1.0
    assert float(bump(torch.tensor([1.0, 0.0]).double())) == pytest.approx(np.exp(-40.5))


@pytest.mark.parametrize("gain", [(-9.9, -9.8), (-5.0, -3.0)])
def test_the_lqr_is_played_as_it_is_solved(gain):
    env = bilevel_lqr()
    theta = np.array([gain])
    best = env.best_response(theta)
    batch = env.rollout(theta, best, Noise([0]), rows=4_000, horizon=100)
    returns = (0.99 ** batch.step.double() * batch.r_leader).sum(-1)[0].numpy()
    assert abs(returns.mean() - exact.objective(env, theta)) < 4 * returns.std() / 4_000**0.5
    # the world over (s, a) is the game: s' = A s + B b + C a, whatever a' is drawn
    state, action, following = batch.state[0, 0], batch.action[0, 0], batch.next_state[0, 0]
    for k in range(5):
        moved, r_leader, r_follower = env.problem.advance(state[k, :2].numpy(), state[k, 2], action[k])
        np.testing.assert_allclose(following[k, :2], moved, atol=1e-12)
        assert float(batch.r_leader[0, 0, k]) == pytest.approx(r_leader, abs=1e-12)
        assert float(batch.r_follower[0, 0, k]) == pytest.approx(r_follower, abs=1e-12)
    off = following[:, 2] - following[:, :2] @ torch.tensor(gain).double()
    assert float(off.std()) == pytest.approx(1e-3, rel=0.3)


def test_the_lqr_draws_a_picture_and_refuses_bad_arguments():
    env = bilevel_lqr_v0.parallel_env(render_mode="rgb_array")
    env.reset()
    env.step({"leader_0": np.array([-10.0]), "follower_0": np.zeros(1)})
    assert env.render().shape == (320, 480, 3)
    with pytest.raises(ValueError, match="`deviation` must be above 0"):
        bilevel_lqr_v0.env(deviation=0.0)
    with pytest.raises(ValueError, match="`target` must be two numbers"):
        bilevel_lqr_v0.env(target=(1.0,))
    with pytest.raises(ValueError, match="`theta` must lie in theta_space"):
        bilevel_lqr().model([[200.0, 0.0]])


@pytest.mark.parametrize("make", [toy_markov_game_v0.env, toy_markov_game_v0.parallel_env])
def test_moves_outside_the_space_are_refused_where_they_are_made(make):
    for wrong in (-1, 3, 0.7, np.nan, np.array([0, 1])):
        env = make()
        env.reset(seed=0)
        with pytest.raises(ValueError, match="the action of leader_0 must lie in"):
            env.step({"leader_0": wrong, "follower_0": 0} if env.unwrapped.__class__.__name__ != "GameEnv" else wrong)


def test_linear_moves_must_be_finite_numbers():
    for wrong in (np.array([np.nan]), "x", None, np.zeros(3)):
        turns, together = bilevel_lqr_v0.env(), bilevel_lqr_v0.parallel_env()
        assert together.agents == []
        for env in (turns, together):
            env.reset(seed=0)
        with pytest.raises(ValueError, match="the action of leader_0 must lie in Box"):
            turns.step(wrong)
        with pytest.raises(ValueError, match="the action of follower_0 must lie in Box"):
            together.step({"leader_0": np.zeros(1), "follower_0": wrong})


def test_a_blind_followers_environment_speaks_ints():
    env = gym.make("BiLevel/ToyMarkovGame-v0", sees_leader=False)
    assert env.reset(seed=0)[0] in env.observation_space  # warnings are errors here
    env.step(1)
    inner = LeaderEnv(gym.make("BiLevel/ToyMarkovGame-v0", render_mode="rgb_array"))
    inner.reset(seed=0)
    assert inner.render().shape == (320, 480, 3)
