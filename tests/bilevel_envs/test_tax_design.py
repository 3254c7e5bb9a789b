"""Tax design: its numbers, its tables, and the household's environment."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.stats import norm
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from bilevel_envs import BilevelWrapper
from bilevel_envs.envs.tax_design import TaxDesign, TaxDesignSmall
from bilevel_envs.followers import SoftValueIteration
from leaders import BCHG, exact

ENV, SMALL = "BiLevel/TaxDesign-v0", "BiLevel/TaxDesign-small-v0"
FIRST = np.full(4, 0.3)
RATES = torch.tensor([[0.4, 0.1, 0.7, 1.2]], dtype=torch.float64)


def solved(problem, theta=FIRST):
    """The table at θ and the household's response."""
    model = problem.model(torch.as_tensor(theta)[None])
    return model, SoftValueIteration().best_response(model, problem.preferences)


def value(problem, theta=FIRST):
    model, best = solved(problem, theta)
    return float(exact.value(model, best.policy, problem.gamma_leader))


# F by an independent program (grid of 1, quadrature of the truncated normal), given to two digits; the grid of 2 used
# here is 0.01 above it.
@pytest.mark.parametrize(
    ("beta", "mean", "households"),
    [(0.1, 28.74, (28.18, 29.30)), (0.2, 31.70, (31.35, 32.04)), (0.3, 35.18, (34.95, 35.41))],
)
def test_the_objective_at_the_first_taxes_is_that_of_the_specification(beta, mean, households):
    problem = TaxDesign(beta=beta)
    assert exact.objective(gym.make(ENV, beta=beta), FIRST) == pytest.approx(mean, abs=0.05)
    for context, expected in enumerate(households):
        assert value(problem.of_type(context)) == pytest.approx(expected, abs=0.05)


# The same program's table of other rates, at β = 0.1.
@pytest.mark.parametrize(
    ("theta", "expected"),
    [
        ((0.05, 0.05, 0.05, 0.05), 19.29),
        ((0.3, 1.0, 1.0, 1.0), 24.60),
        ((0.6, 0.3, 0.3, 0.3), 36.87),
        ((0.6, 1.5, 1.5, 1.5), 34.99),
        ((0.75, 0.3, 0.3, 0.3), 34.93),
        ((0.9, 0.3, 0.3, 0.3), 6.87),
        ((1.2, 0.3, 0.3, 0.3), -51.39),
    ],
)
def test_the_objective_at_other_taxes_is_that_of_the_specification(theta, expected):
    # Kinks cost it up to 0.1 where households are in debt.
    assert value(TaxDesign(), np.array(theta)) == pytest.approx(expected, abs=0.1)


def test_a_finer_grid_changes_little():
    coarse, fine = (value(TaxDesign(spacing=spacing).of_type(0)) for spacing in (2.0, 1.0))
    assert coarse == pytest.approx(fine, abs=0.02)


def test_the_world_has_the_published_constants():
    problem = TaxDesign()
    assert problem.levels == (10, 5, 5, 5)
    assert problem.hours[-1] == pytest.approx(8.01)
    assert problem.bundles.max() == 5.0
    assert (len(problem.bundles), len(problem.totals), len(problem.points)) == (125, 13, 101)
    model = problem.model(torch.from_numpy(FIRST)[None])
    assert (model.states, model.actions) == (202, 130)
    np.testing.assert_allclose(problem.parameterization(3, None)().detach().numpy(), 0.3, rtol=1e-12)


def test_rewards_are_those_computed_by_hand():
    problem, action = TaxDesign(), [3, 4, 2, 1]  # h = 2.67, c = (5, 2.5, 1.25)
    x, y = 0.4, np.array([0.1, 0.7, 1.2])
    received = np.array([5, 2.5, 1.25]) / (1 + y)
    bought = received[0] ** 0.6 * received[1] ** 0.3 * received[2] ** 0.1
    welfare = 15 * received.mean() / 5 + 5 * np.log(1 + (y * received).sum() + x * 2.67)
    for assets, follower, leader in ((10.0, np.log(1.5), 0.0), (-3.0, -3.0, -3.0)):
        paid = float(problem.reward_follower(assets, action, 0, RATES[0]))
        assert paid == pytest.approx(follower - 0.1 * 2.67**2 + bought, rel=1e-12)
        assert float(problem.reward_leader(assets, action, RATES[0])) == pytest.approx(leader + welfare, rel=1e-12)


@pytest.mark.parametrize(("scaled", "debt"), [(False, -3.0), (True, 0.0)])
def test_the_weight_of_assets_leaves_debt_alone_unless_told(scaled, debt):
    problem = TaxDesign(scale_debt_branch=scaled)
    idle = [0, 0, 0, 0]
    assert float(problem.reward_leader(-3.0, idle, RATES[0])) == debt
    assert float(problem.reward_leader(3.0, idle, RATES[0])) == 0.0


def test_untaxed_labour_and_goods_bring_no_revenue_and_vat_makes_goods_dear():
    problem, action = TaxDesign(consumption_weight=0.0), torch.tensor([5, 2, 2, 2])
    assert float(problem.reward_leader(1.0, action, torch.zeros(4))) == 0.0
    rates = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    for context in (0, 1):
        (slope,) = torch.autograd.grad(problem.reward_follower(1.0, action, context, rates).sum(), rates)
        assert slope[0] == 0
        assert (slope[1:] < 0).all()


def test_nothing_bought_is_worth_nothing_and_has_no_slope():
    rates = RATES[0].clone().requires_grad_()
    reward = TaxDesign().reward_follower(0.0, [0, 0, 4, 4], 0, rates)
    assert float(reward.detach()) == 0.0
    (slope,) = torch.autograd.grad(reward, rates)
    assert (slope == 0).all()


def test_lumped_rewards_are_those_of_all_bundles_one_by_one():
    problem = TaxDesign(beta=0.2)
    lumped = problem.lumped(RATES)
    for context, hour, total in ((0, 0, 0), (0, 3, 1), (1, 7, 6), (1, 2, 12)):
        bundles = [b for b in np.ndindex(5, 5, 5) if sum(b) == total]
        actions = np.array([(hour, *b) for b in bundles])
        paid = problem.reward_follower(0.0, actions, context, RATES[0]).numpy()
        welfare = problem.reward_leader(0.0, actions, RATES[0]).numpy()
        weight = np.exp(paid / 0.2)
        assert float(lumped.r_follower[0, context, hour, total]) == pytest.approx(0.2 * np.log(weight.sum()), abs=1e-12)
        assert float(lumped.r_leader[0, context, hour, total]) == pytest.approx(
            (weight * welfare).sum() / weight.sum(), abs=1e-12
        )


def test_the_tables_mean_and_variance_are_those_of_the_noise():
    problem = TaxDesign()
    moves = problem.model(RATES).moves.dense()[0].view(2, 101, 10, 13, 2, 101)
    assert (moves[0, :, :, :, 1] == 0).all()  # the type never changes
    inner = moves[0, 30:71, :, :, 0]  # far from the limit, where nothing is truncated
    mean = (inner * problem.points).sum(-1)
    expected = problem.points[30:71, None, None] + 0.6 * problem.hours[:, None] - problem.totals
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-6)  # 2e-9 of the mass is cut at 6 σ = 30
    torch.testing.assert_close(
        (inner * (problem.points - mean[..., None]) ** 2).sum(-1), torch.full_like(mean, 25.0), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("income_tax", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("problem", [TaxDesign(), TaxDesign(wage=2.0, spacing=2.5)])
def test_the_tables_lists_leave_out_nothing_that_can_follow(problem, income_tax):
    """Against SciPy's normal density at all points: at the end points half of it counts."""
    moves = problem.model(torch.tensor([[income_tax, 0.3, 0.3, 0.3]]).double()).moves.dense()[0]
    points = problem.points.numpy()
    found = moves.view(2, len(points), 10, 13, 2, len(points))[1, ..., 1, :]
    earned = (1 - income_tax) * problem.wage * problem.hours.numpy()
    mean = np.clip(points[:, None, None] + earned[:, None] - problem.totals.numpy(), -100, 100)
    density = norm.pdf(points, mean[..., None], problem.noise)
    density[..., [0, -1]] /= 2
    np.testing.assert_allclose(found, density / density.sum(-1, keepdims=True), rtol=0, atol=1e-8)


def test_log_prob_transition_is_a_density_and_its_score_averages_to_nothing():
    problem, action = TaxDesign(), [5, 1, 0, 0]
    rates = RATES[0].clone().requires_grad_()
    arrived = torch.linspace(-100, 100, 20_001, dtype=torch.float64)
    for assets in (98.0, 0.0, -97.0):
        density = problem.log_prob_transition(assets, action, arrived, rates).exp()
        mass = torch.trapezoid(density, arrived)
        assert float(mass.detach()) == pytest.approx(1.0, abs=1e-6)
        (slope,) = torch.autograd.grad(mass, rates)
        assert float(slope.abs().max()) < 1e-6
    assert float(problem.log_prob_transition(0.0, action, 100.5, RATES[0])) == -np.inf


@pytest.mark.parametrize("seed", range(3))
def test_the_hypergradient_is_that_of_central_differences(seed):
    env = gym.make(SMALL, beta=0.3)
    theta = np.random.default_rng(seed).uniform(0.05, 0.9, 4)
    slope = [
        (8 * f(1) - 8 * f(-1) - f(2) + f(-2)) / 12e-4
        for e in np.eye(4)
        for f in [lambda k, e=e: exact.objective(env, theta + k * 1e-4 * e)]
    ]
    # Steps of 1e-4: what the grid cuts at 6 σ may move by a point between them.
    np.testing.assert_allclose(exact.hypergradient(env, theta), slope, rtol=1e-4, atol=1e-3)


def test_the_hypergradient_at_the_first_taxes_is_that_of_central_differences():
    env = gym.make(ENV)
    e = np.array([1e-3, 0, 0, 0])
    slope = (exact.objective(env, FIRST + e) - exact.objective(env, FIRST - e)) / 2e-3
    assert exact.hypergradient(env, FIRST)[0] == pytest.approx(slope, rel=1e-3)


# The environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", ["multi", "flat", "totals"])
@pytest.mark.parametrize("observe_type", [False, True])
def test_checkers_accept_every_form(actions, observe_type):
    env = gym.make(ENV, actions=actions, observe_type=observe_type)
    check_env(env.unwrapped)
    sb3_check_env(env.unwrapped)
    assert env.observation_space.shape == ((3,) if observe_type else (1,))


def test_step_pays_what_the_functions_say():
    theta, problem = RATES[0].numpy(), TaxDesign()
    env, rng = gym.make(ENV, theta=theta), np.random.default_rng(0)
    flat = gym.make(ENV, theta=theta, actions="flat")
    for episode in range(10):
        (assets,), told = env.reset(seed=episode)
        flat.reset(seed=episode)
        for _ in range(20):
            action = rng.integers(env.action_space.nvec)
            (following,), reward, *_, info = env.step(action)
            expected = problem.reward_follower(assets, action, told["context"], theta)
            assert reward == pytest.approx(float(expected), abs=1e-12)
            assert info["leader_reward"] == pytest.approx(
                float(problem.reward_leader(assets, action, theta)), abs=1e-12
            )
            assert info["context"] == told["context"]
            assert info["hours"] == pytest.approx(0.89 * action[0])
            assert info["spending"].tolist() == (1.25 * action[1:]).tolist()
            assert flat.step(np.ravel_multi_index(tuple(action), (10, 5, 5, 5)))[1] == reward
            assets = following


def test_next_assets_have_the_tables_mean_and_variance():
    count, action = 20_000, np.array([6, 1, 1, 0])
    envs = gym.make_vec(ENV, num_envs=count)
    first, _ = envs.reset(seed=0)
    moved = envs.step(np.tile(action, (count, 1)))[0] - first
    mean, deviation = 0.7 * 0.89 * 6 - 2.5, 5.0
    assert abs(moved.mean() - mean) < 4 * deviation / count**0.5
    assert abs(moved.var() - 25) < 4 * 25 * (2 / count) ** 0.5
    assert abs(first.mean()) < 4 * (2 / count) ** 0.5
    assert abs(first.var() - 2) < 4 * 2 * (2 / count) ** 0.5


def test_assets_stay_within_the_limit():
    envs = gym.make_vec(ENV, num_envs=50)
    envs.reset(seed=0)
    for _ in range(150):
        assets = envs.step(np.tile([0, 4, 4, 4], (50, 1)))[0]
    assert assets.min() >= -100
    assert assets.mean() < -90


def test_the_soft_household_earns_in_the_environment_what_the_table_says():
    env = BilevelWrapper(gym.make(SMALL))
    best, problem, count = env.best_response(FIRST), env.problem, 2_000
    model = env.model(FIRST)
    envs = gym.make_vec(SMALL, num_envs=count, actions="totals", observe_type=True, max_episode_steps=None)
    observation, infos = envs.reset(seed=0)
    rng, log_g = np.random.default_rng(0), best.policy.log_probs[0].numpy()
    leader, follower = np.zeros(count), np.zeros(count)
    for k in range(100):  # 0.9^100 = 3e-5
        state = problem.nearest_state(observation[:, 0], infos["context"])
        action = (best.policy.cdf[0][state] <= rng.random(count)[:, None]).sum(1)
        observation, reward, _, _, infos = envs.step(action)
        leader += 0.9**k * infos["leader_reward"]
        follower += 0.9**k * (reward - problem.beta * log_g[state, action])
    known = float(exact.value(model, best.policy, 0.9)), float((model.initial * best.v.values).sum())
    # The household looks at the nearest point only, which costs it a little: 1 % is allowed for that.
    for sums, expected in zip((leader, follower), known, strict=True):
        assert abs(sums.mean() - expected) < 4 * sums.std() / count**0.5 + 0.01 * abs(expected)


def test_observations_name_the_states_of_the_table():
    problem = TaxDesign()
    seen = problem.observations()
    assert seen.shape == (202, 3)
    assert seen[0].tolist() == [-100, 1, 0]
    assert seen[150].tolist() == [-2, 0, 1]  # 101 points of the first type, then the 50th of the second
    np.testing.assert_array_equal(problem.nearest_state(seen[:, 0], seen[:, 1:].argmax(1)), np.arange(202))
    space = gym.make(ENV, observe_type=True).observation_space
    assert all(space.contains(row) for row in seen)


@pytest.mark.parametrize("context", [0, 1])
def test_reset_fixes_the_type_of_one_episode(context):
    env = gym.make(ENV, observe_type=True)
    for seed in range(10):
        observation, info = env.reset(seed=seed, options={"context": context, "theta": FIRST})
        assert info["context"] == context
        assert observation[1:].tolist() == np.eye(2)[context].tolist()
        assert env.step(env.action_space.sample())[4]["context"] == context
    assert {env.reset()[1]["context"] for _ in range(30)} == {0, 1}
    envs = gym.make_vec(ENV, num_envs=5)
    assert (envs.reset(seed=0, options={"context": context})[1]["context"] == context).all()


def test_autoreset_tells_the_new_type():
    envs = gym.make_vec(ENV, num_envs=40, observe_type=True, max_episode_steps=2)
    before, infos = envs.reset(seed=0)
    for _ in range(6):
        observation, _, _, ended, infos = envs.step(envs.action_space.sample())
        np.testing.assert_array_equal(infos["context"], observation[:, 1:].argmax(1))
        if ended.any():
            np.testing.assert_array_equal(infos["final_info"]["context"], before[:, 1:].argmax(1))
        before = observation


def test_rates_can_differ_by_run():
    envs = gym.make_vec(ENV, num_envs=4)
    theta = np.stack([FIRST, np.zeros(4)])
    envs.reset(seed=0, options={"theta": theta})
    _, _, _, _, infos = envs.step(np.tile([5, 0, 0, 0], (4, 1)))
    assert infos["hours"].tolist() == pytest.approx([4.45] * 4)
    untaxed = TaxDesign().reward_leader(1.0, [5, 0, 0, 0], np.zeros(4))
    taxed = TaxDesign().reward_leader(1.0, [5, 0, 0, 0], FIRST)
    debts = np.minimum(envs.reset(seed=0)[0][:, 0], 0)
    np.testing.assert_allclose(infos["leader_reward"] - debts, [taxed, taxed, untaxed, untaxed], atol=1e-12)


def test_leaders_draw_from_the_table_only():
    env = BilevelWrapper(gym.make(SMALL))
    with pytest.raises(ValueError, match='`sampler` must be "fused" for TaxDesignSmall, got "steps"'):
        BCHG(env, sampler="steps")
    with pytest.raises(ValueError, match="`beta` must be given to TaxDesignSmall and not to its follower"):
        BilevelWrapper(gym.make(SMALL), SoftValueIteration(beta=0.5))
    BilevelWrapper(gym.make(SMALL, beta=0.5), SoftValueIteration(beta=0.5))


def test_best_known_values_are_for_the_published_world():
    best = gym.make(ENV).unwrapped.best_known
    assert best == pytest.approx(38.15, abs=0.01)
    assert not best.exact
    assert gym.make(ENV, noise=4.0).unwrapped.best_known is None
    assert gym.make(ENV, beta=0.15).unwrapped.best_known is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"households": (0.5, 0.5)}, "`households` must give each type an exponent"),
        ({"households": ((0.5, -0.5),)}, "`households` must give each type an exponent"),
        ({"households": ((0.5,), (0.5, 0.2))}, "`households` must give each type an exponent"),
        ({"probabilities": (1.0,)}, "`probabilities` must be 2 numbers"),
        ({"probabilities": (0.7, 0.7)}, "`probabilities` must sum to 1"),
        ({"prices": (1.0, 1.0)}, "`prices` must be 3 numbers"),
        ({"prices": (1.0, 1.0, 0.0)}, "`prices` must be above 0"),
        ({"hour_levels": 1}, "`hour_levels` must be at least 2"),
        ({"noise": 0.0}, "`noise` must be above 0"),
        ({"spacing": 4.0}, "`spacing` must be at most 2.82"),
        ({"spacing": 1.5}, r"`spacing` must divide `limit` \(100\)"),
        ({"beta": 0.0}, "`beta` must be above 0"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TaxDesign(**kwargs)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="`actions` must be one of 'multi', 'flat', 'totals'"):
        gym.make(ENV, actions="joint")
    with pytest.raises(TypeError, match=r"TaxDesign has no argument 'observation' .*; it takes households"):
        gym.make(ENV, observation="vector")
    env = gym.make(ENV).unwrapped
    with pytest.raises(ValueError, match=r"""`options\["context"\]` must be one of 0, 1, got 2"""):
        env.reset(options={"context": 2})
    env.reset()
    for action in ([10, 0, 0, 0], [0, 0, 0], [0.0, 0, 0, 0], 3, [-1, 0, 0, 0]):
        with pytest.raises(ValueError, match="`action` must lie in MultiDiscrete"):
            env.step(action)
    with pytest.raises(ValueError, match="`action` must be levels in 0"):
        TaxDesign().reward_leader(0.0, [0, 5, 0, 0], FIRST)


def test_households_may_be_of_any_number_with_any_number_of_goods():
    problem = TaxDesignSmall(households=[[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]], probabilities=[0.5, 0.25, 0.25])
    model, _ = solved(problem, np.array([0.3, 0.3, 0.3]))
    assert (model.states, model.actions) == (3 * 41, 5 * 5)
    np.testing.assert_allclose(model.initial[0].view(3, 41).sum(1).numpy(), [0.5, 0.25, 0.25], rtol=1e-12)


def test_the_step_is_seen_through_a_wrapper_of_gymnasium():
    env = gym.wrappers.TimeAwareObservation(gym.make(ENV))
    observation, _ = env.reset(seed=0)
    later = env.step(env.action_space.sample())[0]
    assert env.observation_space.contains(later)
    assert (observation[-1], later[-1]) == (0, 1)
