"""Linear-quadratic worlds and their follower, against SciPy, the specification's numbers and sampling."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_are, solve_discrete_lyapunov
from scipy.stats import kstest, truncnorm

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.mdp import Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.envs.building_thermal_control import BuildingThermalControl
from bilevel_envs.followers import Riccati, Truncated
from bilevel_envs.followers.planners.riccati import planned_ahead
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel, Quadratic, discounted_sum, truncated_normal
from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
from leaders import exact

GAMMA = 0.9


def model_at(theta):
    return BuildingThermalControl().model(torch.as_tensor(theta, dtype=torch.float64))


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_the_building_has_the_hand_checked_numbers_at_one_theta():
    # specification 2.1 and 2.4: one transition with its mean, rewards, density and score
    theta = tensor(0.2, 0.4, 0.6, 0.8, 0.7, 0.5, 0.3, 0.1)[None].requires_grad_()
    model = model_at(theta)
    s, b = tensor(5, -3, 2, 1)[None, None], tensor(1.5, -2.5)[None, None]
    mean = model.mean_next(s, b)
    torch.testing.assert_close(mean[0, 0], tensor(5.01, -1.886, 0.555, 0.289), rtol=0, atol=1e-12)
    assert float(model.r_follower(s, b).detach()) == pytest.approx(-235.085, abs=1e-10)
    assert float(model.r_leader(s, b).detach()) == pytest.approx(-12.6415, abs=1e-10)
    arrived = mean.detach() + tensor(0.01, -0.02, 0.03, 0.005)
    log_p = model.log_arrival(s, b, arrived)
    assert float(log_p.detach()) == pytest.approx(10.191087888893893, abs=1e-9)
    (score,) = torch.autograd.grad(log_p.sum(), theta)
    insulation = tensor(-5, -4.5, -9, -0.625)  # −δ_i s_i (s'_i − μ_i) / σ²
    torch.testing.assert_close(score[0, :4], insulation, rtol=0, atol=1e-9)
    torch.testing.assert_close(score[0, 4:7], tensor(-22, -25, -4.125), rtol=0, atol=1e-9)


@pytest.mark.parametrize("zones", [4, 6, 32])
def test_rows_of_the_dynamics_conserve_but_for_missing_insulation(zones):
    theta = np.random.default_rng(0).random((1, 2 * zones))
    a = BuildingThermalControl(zones=zones).model(torch.from_numpy(theta)).A[0].numpy()
    loss = np.resize([0.04, 0.03, 0.06, 0.05], zones)
    assert a.sum(1) == pytest.approx(1 + loss * (1 - theta[0, :zones]), abs=1e-12)
    ring = np.abs(np.subtract.outer(np.arange(zones), np.arange(zones)))
    assert (a[(ring > 1) & (ring < zones - 1)] == 0).all()


def test_riccati_agrees_with_scipy():
    rng = np.random.default_rng(0)
    theta = np.vstack([np.full(8, 0.5), np.zeros(8), np.ones(8), rng.random((3, 8))])
    model = model_at(theta)
    best = Riccati().best_response(model, Preferences(GAMMA, GAMMA, 0.1))
    root = GAMMA**0.5
    for run in range(len(theta)):
        a, b = root * model.A[run].numpy(), root * model.B[0].numpy()
        p = solve_discrete_are(a, b, model.state_cost[0].numpy(), model.action_cost[0].numpy())
        # SciPy's own error is what limits this at θ = 0, where √γ times the closed loop has radius 0.9957
        assert -best.v.matrix[run].numpy() == pytest.approx(p, rel=1e-7 if run == 1 else 1e-9, abs=1e-8)
    assert (best.residual < 1e-12).all()


def test_log_policy_is_the_soft_advantage():
    rng = np.random.default_rng(1)
    best = Riccati().best_response(model_at(rng.random((5, 8))), Preferences(GAMMA, GAMMA, 0.1))
    s, b = torch.from_numpy(rng.normal(0, 5, (5, 20, 4))), torch.from_numpy(rng.normal(0, 5, (5, 20, 2)))
    left, right = 0.1 * best.policy.log_prob(s, b), best.q(s, b) - best.v(s)
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-8)


def test_the_response_satisfies_its_bellman_equation_by_sampling():
    # Q_F(s, b) = r_F + γ E[V_F(s')] with 10⁵ draws of s'
    model = model_at(np.full((1, 8), 0.3))
    best = Riccati().best_response(model, Preferences(GAMMA, GAMMA, 0.1))
    s, b = tensor(1, -2, 0.5, 1)[None, None], tensor(-2, 1)[None, None]
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (1, 100_000, 4)))
    onward = best.v(model.mean_next(s, b) + noise)
    target = model.r_follower(s, b) + GAMMA * onward.mean()
    assert abs(float(best.q(s, b) - target)) < 4 * GAMMA * float(onward.std()) / 100_000**0.5


def test_expectations_of_quadratics_are_those_of_draws():
    rng = np.random.default_rng(2)
    matrix = torch.from_numpy(rng.normal(size=(1, 5, 5)))
    q = Quadratic(matrix + matrix.mT, tensor(0.7))
    root = torch.from_numpy(rng.normal(size=(1, 2, 2)))
    policy = GaussianPolicy(torch.from_numpy(rng.normal(size=(1, 2, 3))), root @ root.mT)
    state = torch.from_numpy(rng.normal(size=(1, 1, 3)))
    many = state.expand(1, 200_000, 3)
    action = policy.sample(many, rng.random((1, 200_000, 2)))
    drawn = q(many, action)
    assert abs(float(policy.expect(q, state) - drawn.mean())) < 4 * float(drawn.std()) / 200_000**0.5
    covariance = torch.from_numpy(np.cov(action[0].T.numpy()))
    torch.testing.assert_close(covariance, policy.covariance[0], rtol=0.02, atol=0.02)
    density = torch.distributions.MultivariateNormal(policy.mean(many), policy.covariance[0]).log_prob(action)
    torch.testing.assert_close(policy.log_prob(many, action), density, rtol=1e-10, atol=1e-10)


def test_discounted_sums_solve_the_lyapunov_equation_and_have_its_gradients():
    rng = np.random.default_rng(3)
    step = torch.from_numpy(0.2 * rng.normal(size=(2, 3, 3)))
    first = torch.from_numpy(rng.normal(size=(2, 3, 3)))
    first = first @ first.mT
    total = discounted_sum(step, first, GAMMA)
    for run in range(2):
        expected = solve_discrete_lyapunov(GAMMA**0.5 * step[run].numpy(), first[run].numpy())
        assert total[run].numpy() == pytest.approx(expected, rel=1e-10)

    def summed(step, half):
        return discounted_sum(step, half @ half.mT, GAMMA)

    leaves = (step.clone().requires_grad_(), first.clone().requires_grad_())
    assert torch.autograd.gradcheck(summed, leaves, check_undefined_grad=False)


def test_reactions_have_the_gradients_of_finite_differences():
    preferences = Preferences(GAMMA, GAMMA, 0.1)

    def reaction(theta):
        best = Riccati().reaction(model_at(theta), preferences)
        return best.policy.gain, best.policy.covariance, best.v.matrix, best.v.constant, best.q.constant

    theta = tensor(0.3, 0.5, 0.7, 0.2, 0.9, 0.4, 0.6, 0.5)[None].requires_grad_()
    assert torch.autograd.gradcheck(reaction, theta, check_undefined_grad=False)


def test_a_world_that_cannot_be_stabilised_is_a_clear_error():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    model = LinearQuadraticModel(3 * one, 0 * one, one, one, one, one, one, one, one[0, 0])
    with pytest.raises(RuntimeError, match="no finite solution.*unable|no finite solution.*cannot keep"):
        Riccati().best_response(model, Preferences(GAMMA, GAMMA, 0.1))
    with pytest.raises(ValueError, match="spectral radius below 1/√γ, got 3"):
        discounted_sum(3 * one, one, GAMMA)


def scalar_world(a, q, r=1.0, b=1.0, **more):
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    return LinearQuadraticModel(a * one, b * one, one, one, q * one, r * one, one, one, one[0, 0], **more)


@pytest.mark.parametrize("follower", [Riccati(), Truncated(Riccati(), rounds=200)])
def test_a_follower_paid_by_states_is_solved_while_actions_cost_more(follower):
    # γP² + (1 − γQ − γA²) P − Q = 0 with γ = 0.95, A = 0.5, Q = −0.1, R = 1: P = −0.13759
    linear = 1 + 0.95 * 0.1 - 0.95 * 0.25
    p = (-linear + (linear**2 - 4 * 0.95 * 0.1) ** 0.5) / (2 * 0.95)
    assert p == pytest.approx(-0.13759, abs=5e-6)
    best = follower.best_response(scalar_world(0.5, -0.1), Preferences(0.9, 0.95, 0.1))
    assert float(best.v.matrix) == pytest.approx(-p, rel=1e-12)
    assert float(best.policy.gain) == pytest.approx(0.95 * 0.5 * p / (1 + 0.95 * p), rel=1e-12)
    assert float(best.policy.covariance) == pytest.approx(0.05 / (1 + 0.95 * p), rel=1e-12)


@pytest.mark.parametrize(
    "solve", [Riccati().best_response, Truncated(Riccati(), rounds=50).best_response, exact.best_response]
)
@pytest.mark.parametrize(
    ("a", "q", "gamma"),
    [
        (0.9, -5.0, 0.95),  # the equation's only attracting solution has 1 + γP < 0: a negative variance
        (3.0, -0.1, 0.95),  # 1 + γP > 0, P = 7.8; but a follower that does nothing earns 0.1 Σ (0.95 · 9)^k s²
        (0.0, -2.0, 0.5),  # 1 + γP = 0: actions cost nothing, so there is no best one
    ],
)
def test_a_follower_whose_return_is_unbounded_is_refused(solve, a, q, gamma):
    with pytest.raises(RuntimeError, match="no optimum in run 0 .*R \\+ γ_F BᵀPB must be positive definite.*raise Q"):
        solve(scalar_world(a, q), Preferences(0.9, gamma, 0.1))


def test_the_run_without_an_optimum_is_named():
    both = torch.tensor([1.0, -5.0]).double().view(2, 1, 1)
    with pytest.raises(RuntimeError, match="no optimum in run 1"):
        Riccati().best_response(scalar_world(0.9, both), Preferences(0.9, 0.95, 0.1))


def test_a_singular_solve_is_the_same_error_as_divergence(monkeypatch):
    def singular(*_):
        raise torch.linalg.LinAlgError("singular")

    cost = torch.eye(1).double()  # not solved by `singular`
    model = scalar_world(0.5, 1.0)
    solve = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda m, x: solve(m, x) if torch.equal(m[0], cost) else singular())
    with pytest.raises(RuntimeError, match="no finite solution with γ_F = 0.95.*√γ_F A must be stabilisable"):
        Riccati().best_response(model, Preferences(0.9, 0.95, 0.1))


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_riccati_solution_is_free_of_units(scale):
    # all costs times a power of two: every number is, to the last digit, and the residual relative to P is the same
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.normal(size=(1, 5, 5))), torch.from_numpy(rng.normal(size=(1, 5, 2)))
    one, two = torch.eye(5).double()[None], torch.eye(2).double()[None]

    def solved(units):
        model = LinearQuadraticModel(a, b, one, one, units * one, units * two, one, two, torch.ones(1).double())
        return Riccati().best_response(model, Preferences(0.9, 0.95, 0.1))

    plain, scaled = solved(1.0), solved(scale)
    p = solve_discrete_are(0.95**0.5 * a[0].numpy(), 0.95**0.5 * b[0].numpy(), np.eye(5), np.eye(2))
    np.testing.assert_allclose(-scaled.v.matrix[0] / scale, p, rtol=1e-9, atol=1e-9)
    assert 0 < float(plain.residual) < 1e-12
    assert float(scaled.residual) == pytest.approx(float(plain.residual), rel=1e-6, abs=0)


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_horizon_must_have_a_step(horizon):
    model, preferences = scalar_world(0.5, 1.0), Preferences(0.9, 0.95, 0.1)
    best = Riccati().best_response(model, preferences)
    with pytest.raises(ValueError, match=f"`horizon` must be at least 1, got {horizon}"):
        scalar_world(0.5, 1.0, horizon=horizon)
    with pytest.raises(ValueError, match=f"`horizon` must be at least 1, got {horizon}"):
        exact.value(model, best.policy, 0.9, horizon)
    with pytest.raises(ValueError, match=f"`rounds` must be at least 1, got {horizon}"):
        Truncated(Riccati(), rounds=horizon)
    with pytest.raises(ValueError, match=f"`steps` must be at least 1, got {horizon}"):
        planned_ahead(model, 0.95, 0.1, horizon, torch.zeros(1, 1, 1).double(), torch.zeros(1).double())


def test_bad_matrices_are_refused_by_name():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    good = [one] * 8 + [one[0, 0]]
    with pytest.raises(TypeError, match="`noise` must be a float64"):
        LinearQuadraticModel(*good[:2], one.float(), *good[3:])
    with pytest.raises(ValueError, match="`A` must have shape"):
        LinearQuadraticModel(torch.ones(1, 2, 2, dtype=torch.float64), *good[1:])
    LinearQuadraticModel(*good, bound=10.0)  # one dimension is enough
    with pytest.raises(TypeError, match="`A` must be a float64 torch tensor, got a tensor of torch.float32"):
        LinearQuadraticModel(one.float(), *good[1:])
    with pytest.raises(ValueError, match="`B` must have shape"):
        LinearQuadraticModel(one, one[0], *good[2:])
    with pytest.raises(ValueError, match="`noise` must be diagonal with no negative entry"):
        LinearQuadraticModel(*good[:2], -one, *good[3:])
    with pytest.raises(ValueError, match="`action_cost` must be positive definite"):
        LinearQuadraticModel(*good[:5], -one, *good[6:])
    with pytest.raises(ValueError, match="`bound` must be"):
        LinearQuadraticModel(*good, bound=-1.0)
    with pytest.raises(ValueError, match="`state_cost` must be finite"):
        LinearQuadraticModel(*good[:4], one * float("nan"), *good[5:])
    with pytest.raises(ValueError, match="`zones` must be even"):
        gym.make("BiLevel/BuildingThermalControl-v0", zones=5)


@pytest.mark.parametrize("mean", [0.0, 29.99, 30.0, -30.0])
def test_noise_at_the_bound_is_a_truncated_normal(mean):
    drawn = truncated_normal(np.full(4000, mean), np.float64(0.02), 30.0, np.random.default_rng(0).random(4000))
    assert np.abs(drawn).max() <= 30
    law = truncnorm((-30 - mean) / 0.02, (30 - mean) / 0.02, loc=mean, scale=0.02)
    assert kstest(drawn, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("theta", [np.full(8, 0.5), np.full((2, 8), [[0.2], [0.9]])])
def test_both_samplers_draw_from_the_models_law(theta):
    env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))
    best = env.best_response(theta)
    model = env.model(theta)
    for sampler in ("fused", "steps"):
        batch = env.rollout(theta, best, Noise([0, 1]), rows=40, horizon=150, sampler=sampler)
        assert batch.state.shape == (2, 40, 150, 4)
        assert (batch.truncated == (batch.step == 99)).all()
        assert not batch.terminated.any()
        torch.testing.assert_close(batch.r_leader, model.r_leader(batch.state, batch.action), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            batch.r_follower, model.r_follower(batch.state, batch.action), rtol=1e-12, atol=1e-12
        )
        goes_on = ~batch.truncated[..., :-1]
        torch.testing.assert_close(batch.state[:, :, 1:][goes_on], batch.next_state[:, :, :-1][goes_on])
        white = (batch.next_state - model.mean_next(batch.state, batch.action)) / 0.02
        assert kstest(white.flatten().numpy(), "norm").pvalue > 1e-3
        off = torch.linalg.solve(
            best.policy.factor[:, None, None], (batch.action - best.policy.mean(batch.state))[..., None]
        )
        assert kstest(off.flatten().numpy(), "norm").pvalue > 1e-3
        starts = batch.state[batch.starts] / 5
        assert kstest(starts.flatten().numpy(), "norm").pvalue > 1e-3


def test_the_leaders_reward_is_the_priced_sum_of_what_is_told():
    env = gym.make("BiLevel/BuildingThermalControl-v0", theta=np.linspace(0, 1, 8))
    env.reset(seed=0)
    for _ in range(5):
        info = env.step(env.action_space.sample())[4]
        priced = info["stability"] - 0.5 * info["energy"] - 0.1 * info["insulation"] - 0.1 * info["airflow"]
        assert info["leader_reward"] == pytest.approx(priced, rel=1e-12)


def test_actions_are_not_clipped():
    env = gym.make("BiLevel/BuildingThermalControl-v0")
    env.reset(seed=0)
    power = np.array([150.0, 0.0])
    assert env.step(power)[4]["energy"] == 150.0**2
    with pytest.raises(ValueError, match="`action` must be finite numbers of shape"):
        env.step(np.array([np.nan, 0.0]))
