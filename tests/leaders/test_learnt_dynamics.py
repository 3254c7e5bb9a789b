"""Black boxes with θ in their physics: how θ moves the next state is learnt, and held against closed forms."""

import logging

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import (
    BilevelWrapper,
    ConfigurableDynamics,
    ConfigurableMDP,
    LinearEnv,
    LinearQuadraticModel,
    Noise,
    Preferences,
)
from bilevel_envs.core.follower import Capabilities
from bilevel_envs.followers import Riccati, SB3Follower
from bilevel_envs.networks.dynamics import DynamicsFit, GaussianDynamics
from bilevel_envs.networks.temporal_differences import Fit
from bilevel_envs.parameterizations import Box
from bilevel_envs.worlds.linear_quadratic.model import Quadratic, discounted_sum
from leaders import BCHG, exact
from leaders.critics import NetworkCritic
from leaders.critics.cross_fit import Judges
from leaders.estimators import dynamics as learnt
from leaders.estimators.sample import Sample
from leaders.functional.guiding import ESTIMATORS
from leaders.functional.per_step import per_step_gradient
from leaders.functional.surrogate import surrogate
from leaders.functional.weights import Weights, discount_weights
from tests.pendulum import led_pendulum, true_gradient

PREFERENCES = Preferences(0.9, 0.9, 0.5)
SPACE = gym.spaces.Box(0.0, 1.0, (2,), np.float64)
THETA = np.array([0.3, 0.6])
NOISE = 0.02  # variance of each entry


def coefficients(theta):
    """A and B of s' = A s + B b + w at θ [R, 2], of tensors or arrays: θ₀ joins the entries, θ₁ helps the action."""
    own, zero = 0.9 + 0 * theta[..., 0], 0 * theta[..., 0]
    return [[own, 0.1 + 0.6 * theta[..., 0]], [zero, own - 0.1]], [[zero], [0.4 + 0.8 * theta[..., 1]]]


def tensors(theta):
    return [torch.stack([torch.stack(row, -1) for row in matrix], -2) for matrix in coefficients(theta)]


class Known(ConfigurableMDP):
    """The world as a model."""

    theta_space, default_theta, preferences = SPACE, THETA, PREFERENCES
    state_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def model(self, theta):
        a, b = tensors(theta)
        two, one = torch.eye(2).double()[None], torch.eye(1).double()[None]
        return LinearQuadraticModel(a, b, NOISE * two, two, 0.5 * two, 0.5 * one, two, 0 * one, 0.1 * theta[:, 1] ** 2)

    def parameterization(self, runs, noise):
        return Box(np.zeros((runs, 2)), 0.0, 1.0)


class Hidden(gym.Env):
    """The same world, by `reset` and `step` alone."""

    observation_space, action_space = Known.state_space, Known.action_space
    theta = THETA

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2)
        return self.state, {}

    def step(self, action):
        a, b = (np.array(matrix) for matrix in coefficients(self.theta))
        before = self.state
        self.state = a @ before + b @ action + NOISE**0.5 * self.np_random.normal(size=2)
        return self.state, -0.5 * (before @ before) - 0.5 * (action @ action), False, False, {"square": before @ before}


class Optimal:
    """The soft optimum of the model, which the leader does not know."""

    beta = None
    capabilities = Capabilities(gives_values=True, learns=True)

    def respond(self, task, theta, model, init=None, learn=True):
        return Riccati().best_response(Known().model(torch.from_numpy(theta)), PREFERENCES)


def put(env, theta):
    env.unwrapped.theta = theta


def hidden(**changed):
    env = ConfigurableDynamics(
        gym.wrappers.TimeLimit(Hidden(), 50),
        SPACE,
        put,
        lambda theta, c: -c[..., 1] - 0.1 * theta[..., 1] ** 2,
        PREFERENCES,
        components=lambda observation, action, reward, after, info: [reward, info["square"]],
        default_theta=THETA,
        **changed,
    )
    return BilevelWrapper(env, Optimal())


def leader_of(kind=BCHG, env=None, **changed):
    arguments = {"seed": 0, "batch_size": 500, "critic": "state_values", "guiding": "fitted", "dynamics": "learnt"}
    return kind(hidden() if env is None else env, **{k: v for k, v in (arguments | changed).items() if v is not None})


@pytest.fixture
def quick(monkeypatch):
    """Less data and fewer steps."""
    monkeypatch.setattr(learnt, "FIRST", 1_000)
    monkeypatch.setattr(learnt, "HOW", DynamicsFit(hidden=(16,), first_steps=150, steps=20))


def drawn(runs, size, seed=0):
    """Steps at any θ with their inputs (s, b, θ), [runs, size, ...]."""
    noise = np.random.default_rng(seed)
    s, b, theta = (torch.from_numpy(noise.normal(size=(runs, size, n))) for n in (2, 1, 2))
    theta = theta.sigmoid()
    a_matrix, b_matrix = tensors(theta)
    spread = torch.from_numpy(noise.normal(size=(runs, size, 2)) * np.array([0.05, 0.2]))
    moved = (a_matrix @ s[..., None] + b_matrix @ b[..., None])[..., 0] - s + spread
    return torch.cat([s, b, theta], -1), moved


@pytest.mark.slow
def test_a_linear_gaussian_world_is_learnt_with_its_derivatives_and_its_noise():
    x, moved = drawn(1, 4_000)
    network = GaussianDynamics(DynamicsFit(hidden=(32,), first_steps=1_000))
    network.fit(x, moved, torch.ones(1, 4_000, dtype=torch.bool), Noise([0]))
    new, moved = drawn(1, 2_000, seed=1)
    new.requires_grad_()
    mean, log_deviation = network(new)
    (first,) = torch.autograd.grad(mean[..., 0].sum(), new, retain_graph=True)
    (second,) = torch.autograd.grad(mean[..., 1].sum(), new)
    # ∂μ₀/∂θ₀ = 0.6 s₁, ∂μ₁/∂θ₁ = 0.8 b, all others 0; each within a tenth of the size of the one that there is.
    for slope, own, true in ((first, 3, 0.6 * new[..., 1]), (second, 4, 0.8 * new[..., 2])):
        assert (slope[..., own] - true).square().mean() < 0.03 * true.square().mean()
        assert slope[..., 7 - own].square().mean() < 0.03 * true.square().mean()
    torch.testing.assert_close(log_deviation.exp().mean((0, 1)), torch.tensor([0.05, 0.2]).double(), rtol=0.15, atol=0)
    told, inside = network.quality(new.detach(), moved, torch.ones(1, 2_000, dtype=torch.bool))
    # R² = 1 − 0.04 / Var(second entry): −0.2 s₁ + (0.4 + 0.8 θ₁) b + w, with E[(0.4 + 0.8 θ₁)²] ≈ 0.67
    assert told.item() == pytest.approx(1 - 0.04 / (0.04 + 0.67 + 0.04), abs=0.02)
    assert inside.item() == pytest.approx(0.9, abs=0.03)


def test_networks_of_several_runs_do_not_mix():
    x, moved = drawn(3, 200)
    used = torch.ones(3, 200, dtype=torch.bool)
    how = DynamicsFit(hidden=(8,), first_steps=30)
    beside, alone = GaussianDynamics(how), GaussianDynamics(how)
    beside.fit(x, moved, used, Noise([4, 5, 6]))
    alone.fit(x[1:2], moved[1:2], used[1:2], Noise([5]))
    for one, other in zip(alone(x[1:2]), beside(x), strict=True):
        torch.testing.assert_close(one, other[1:2], rtol=1e-9, atol=1e-9)
    for one, other in zip(beside(x), beside.copies(2)(x.repeat(2, 1, 1)), strict=True):
        torch.testing.assert_close(one.repeat(2, 1, 1), other)


def test_the_next_state_moves_as_the_mean_and_the_deviation_do():
    x, moved = drawn(1, 400)
    leader = leader_of()
    leader.dynamics.network.how = DynamicsFit(hidden=(16,), first_steps=100)
    dynamics = leader.dynamics
    dynamics.network.fit(x, moved, torch.ones(1, 400, dtype=torch.bool), Noise([0]))
    dynamics.x, dynamics.logs = x, dynamics.network
    theta = torch.from_numpy(THETA)[None].requires_grad_()
    fixed = leader.env.model(THETA)
    batch = leader.env.rollout(THETA, leader.env.best_response(THETA), Noise([0]), rows=2, horizon=5, model=fixed)
    terms = dynamics.model(leader.env.model(theta)).terms(batch)
    torch.testing.assert_close(terms.mean_next.detach(), batch.next_state)
    # Central differences of s + μ + σ ε with the ε that was seen, and of log N(s'; s + μ, σ²).
    wide = 1e-5 * torch.eye(2).double()
    inputs = [dynamics.inputs(batch, (theta.detach() + e)[:, None, None]).flatten(1, 2) for e in (*wide, *-wide)]
    told = [[part.view(batch.state.shape) for part in dynamics.network(one)] for one in inputs]
    here = dynamics.network(dynamics.inputs(batch, theta.detach()[:, None, None]).flatten(1, 2))
    mean, log_deviation = (part.detach().view(batch.state.shape) for part in here)
    white = (batch.next_state - batch.state - mean) / log_deviation.exp()
    for j in range(2):
        up, down = told[j], told[j + 2]
        reached = [(m + d.exp() * white).sum() for m, d in (up, down)]
        off = [(batch.next_state - batch.state - m) / d.exp() for m, d in (up, down)]
        density = [(-(z**2) / 2 - d).sum() for z, (_, d) in zip(off, (up, down), strict=True)]
        for term, (above, below) in ((terms.mean_next, reached), (terms.log_arrival, density)):
            (slope,) = torch.autograd.grad(term.sum(), theta, retain_graph=True)
            torch.testing.assert_close(slope[0, j], (above - below).detach() / 2e-5, rtol=1e-5, atol=1e-6)


def test_theta_is_perturbed_inside_its_space_by_the_share_stated():
    space = gym.spaces.Box(np.zeros(2), np.array([1.0, np.inf]), dtype=np.float64)
    dynamics = learnt.LearntDynamics("BCHG", 0, space, 0.25, 0.9)
    uniform = np.random.default_rng(0).random((1, 5_000, 2))
    at = dynamics.perturbed(np.array([[0.1, 4.0]]), uniform)[0]
    np.testing.assert_allclose(at.min(0), [0.0, 2.0], atol=0.01)  # 4 − 0.25 · 2 · 4
    np.testing.assert_allclose(at.max(0), [0.35, 6.0], atol=0.01)


def test_all_steps_are_counted_and_every_fifth_episode_is_held_out(quick):
    leader = leader_of(batch_size=500, rows=10).learn(2)
    # 1,000 at perturbed θ and 500 at θ, then a quarter of 500 in rows of 50, and 500.
    np.testing.assert_array_equal(leader.history["env_steps"].ravel(), [1_500, 2_150])
    assert leader.dynamics.x.shape == (1, 2_150, 5)
    assert leader.dynamics.held.sum() == 50 * (43 // 5)
    around = leader.dynamics.x[0, :1_000, 3:].numpy()
    assert len(np.unique(around, axis=0)) == 20
    assert (np.abs(around - THETA) <= 0.25 + 1e-12).all()
    np.testing.assert_allclose(leader.dynamics.x[0, 1_000:1_500, 3:], np.tile(THETA, (500, 1)), atol=1e-6)
    assert (leader.history["dynamics_r2"] < 1).all()
    assert (leader.history["dynamics_inside"] <= 1).all()


def averaged(leader):
    """Mean estimate over runs, each with dynamics of its own, and its standard error.

    A run is one sample: its estimates share what it has learnt, by which runs differ by half a unit.
    """
    each = leader.gradient_samples(4, episodes=50).mean(0)
    return each.mean(0), each.std(0, ddof=1) / leader.runs**0.5


@pytest.mark.slow
def test_the_mean_estimate_is_the_exact_hypergradient_of_the_linear_world(tmp_path, monkeypatch):
    monkeypatch.setattr(learnt, "HOW", DynamicsFit(hidden=(32, 32), first_steps=2_000))  # in half of the time
    truth = exact.hypergradient(BilevelWrapper(LinearEnv(Known())), THETA)
    leader = leader_of(batch_size=2_000, learning_rate=1e-9, runs=16).learn(2)
    leader.save(tmp_path / "leader.zip")
    for gradient in ("pathwise", "score"):  # of the same dynamics, which take most of the time
        mean, error = averaged(BCHG.load(tmp_path / "leader.zip", hidden(), gradient=gradient))
        assert (np.abs(mean - truth) < 4 * error).all(), (gradient, truth, mean, error)
        assert np.linalg.norm(error) < 0.12 * np.linalg.norm(truth), error
        assert truth @ mean / np.linalg.norm(truth) / np.linalg.norm(mean) > 0.99


class TrueMoves:
    """In the place of the network: s' − s as the world makes it."""

    def __call__(self, x):
        a_matrix, b_matrix = tensors(x[..., 3:])
        mean = (a_matrix @ x[..., :2, None] + b_matrix @ x[..., 2:3, None])[..., 0] - x[..., :2]
        return mean, torch.full_like(mean, NOISE**0.5).log()


class TrueLogs:
    """In the place of the network of components: the follower's reward, and |s|²."""

    def __call__(self, x):
        square, push = x[..., :2].square().sum(-1), x[..., 2].square()
        mean = torch.stack([-0.5 * square - 0.5 * push, square], -1)
        return mean, torch.zeros_like(mean)


class TrueReaction:
    """∇_θ V_F, by the derivative of Riccati's solution."""

    def fit(self, *given):
        """Nothing to learn."""

    def __call__(self, state):
        theta = torch.from_numpy(THETA)[None].requires_grad_()
        v = Riccati().reaction(Known().model(theta), PREFERENCES).v(state)
        return per_step_gradient(v, theta)


class TrueValue:
    """V_L, less its constant, and ∇V_L: −sᵀ P s with P = Σ γ^k (Fᵀ)^k F^k of the closed loop F = A − B K."""

    def __init__(self, policy):
        a, b = tensors(torch.from_numpy(THETA)[None])
        f = a - b @ policy.gain
        self.v = Quadratic(-discounted_sum(f.mT, torch.eye(2).double()[None], 0.9), torch.zeros(1).double())

    def state_value(self, state):
        return self.v(state)

    def leader_gradient(self, policy):
        return lambda state, step: self.v.gradient(state)


def kept_gradient(known, policy, width=1e-4):
    """Central differences of the exact objective with a follower who does not react."""
    steps = width * np.eye(2)
    ends = [[exact.objective(known, THETA + sign * e, policy=policy) for sign in (1, -1)] for e in steps]
    return np.array([(above - below) / (2 * width) for above, below in ends])


@pytest.mark.slow
def test_both_parts_of_the_estimate_are_exact_where_all_that_is_learnt_is():
    known, env = BilevelWrapper(LinearEnv(Known())), hidden()
    best = env.best_response(THETA)
    direct = kept_gradient(known, best.policy)
    reacting = exact.hypergradient(known, THETA) - direct
    batch = env.rollout(THETA, best, Noise([0]), rows=400, horizon=50)
    theta = torch.from_numpy(THETA)[None].requires_grad_()
    dynamics = learnt.LearntDynamics("BCHG", 0, SPACE, 0.25, 0.9)
    world = learnt.LearntModel(env.model(theta), dynamics, TrueMoves(), TrueLogs(), [TrueReaction()])
    judges = Judges([TrueValue(best.policy)], torch.zeros_like(batch.step), None, 0.9)
    rule, discounts = ESTIMATORS["bc_hg"], discount_weights(batch, 0.9, "keep")
    sample = Sample(theta, world, batch, best, judges, discounts, "keep", PREFERENCES, Noise([1]), rule)
    zero = torch.zeros_like(discounts)
    weights = learnt.LearntPathwise().moved(Weights(discounts, zero, None, None), sample)
    # States alone are sampled. The parts deviate by 0.2 and 0.04 (seeds 0 to 4 at half the rows, over √2).
    for total, true, four_sigma in (
        (surrogate(sample.terms, weights), direct, 0.8),
        (learnt.LearntGuiding(rule).further(sample)[0], reacting, 0.16),
    ):
        (gradient,) = torch.autograd.grad(total.sum(), theta)
        np.testing.assert_allclose(gradient[0], true, rtol=0, atol=four_sigma)


def test_dynamics_that_cannot_be_learnt_are_said_to_be_untrusted_once(quick, caplog):
    class Blind(gym.ObservationWrapper):
        def observation(self, observation):
            return self.np_random.normal(size=2)

    env = ConfigurableDynamics(
        gym.wrappers.TimeLimit(Blind(Hidden()), 20), SPACE, put, lambda theta, c: c[..., 0], PREFERENCES
    )
    with caplog.at_level(logging.WARNING, "leaders"):
        leader = leader_of(env=BilevelWrapper(env, Optimal())).learn(3)
    assert len([record for record in caplog.records if "should not be trusted" in record.message]) == 1
    assert (leader.history["dynamics_r2"] < 0.5).all()


@pytest.mark.slow
def test_a_saved_leader_goes_on_bit_for_bit(quick, tmp_path):
    straight, first = leader_of(), leader_of()
    straight.learn(3)
    first.learn(2).save(tmp_path / "leader.zip")
    second = BCHG.load(tmp_path / "leader.zip", hidden()).learn(1)
    np.testing.assert_array_equal(second.theta, straight.theta)
    np.testing.assert_array_equal(second.history.state(), straight.history.state())


@pytest.mark.slow
def test_runs_are_led_as_if_each_were_alone(quick):
    beside = leader_of(runs=2, seed=3).learn(2)
    alone = leader_of(runs=1, seed=4).learn(2)
    np.testing.assert_allclose(beside.theta[1], alone.theta[0], rtol=1e-6)
    assert not np.allclose(beside.theta[0], beside.theta[1])


@pytest.mark.slow
def test_an_agent_with_discrete_actions_is_led(quick):
    follower = SB3Follower("SoftDQN", 20, learning_starts=10, policy_kwargs={"net_arch": [8]})
    leader = BCHG(led_pendulum(follower), seed=0, batch_size=200, dynamics="learnt").learn(2)
    assert np.isfinite(leader.history["grad_norm"]).all()
    assert (leader.history["grad_norm"] > 0).all()
    assert leader.dynamics.x.shape[-1] == 3 + 5 + 3


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["pathwise", "score"])
def test_a_critic_of_ones_own_is_joined_with_a_network_of_the_reaction(quick, gradient):
    critic = NetworkCritic(0.9, Fit(hidden=(8,), steps=10), "both")
    leader = leader_of(critic=critic, gradient=gradient).learn(2)
    assert (leader.history["grad_norm"] > 0).all()
    assert len(leader.critic.reactions) == 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dynamics": "unknown"}, "`dynamics` must be one of"),
        ({"perturbation": 0.0}, "`perturbation` must be"),
        ({"gradient": "analytic"}, "`gradient` must be one of 'pathwise', 'score', got 'analytic'"),
        ({"dynamics": None, "perturbation": 0.3}, r"`perturbation` is of the .* got 0.3 with 'known'"),
        (
            {"control_variate": "quadratic"},
            r"`control_variate` is subtracted .* got 'quadratic' with `dynamics=.learnt.`",
        ),
        ({"dynamics": None}, 'dynamics="learnt"'),
    ],
)
def test_what_does_not_fit_is_refused_by_name(how, message):
    with pytest.raises((TypeError, ValueError), match=message):
        leader_of(guiding=None, **how) if how.get("gradient") else leader_of(**how)


def test_dynamics_that_are_known_are_not_learnt():
    with pytest.raises(ValueError, match=r'`dynamics` must be "known" for Known'):
        BCHG(BilevelWrapper(LinearEnv(Known())), dynamics="learnt")
    with pytest.raises(ValueError, match="have not been learnt"):
        leader_of().gradient_samples(1)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.slow
@pytest.mark.parametrize("theta", [(0.5, 0.5, 0.5), (0.3, 0.7, 0.4)])
def test_the_pendulums_hypergradient_points_where_the_grid_says(theta):
    leader = BCHG(led_pendulum(default_theta=theta), seed=0, dynamics="learnt", learning_rate=1e-9).learn(3)
    mean = leader.gradient_samples(10, episodes=10).mean(0)
    assert cosine(mean, true_gradient(np.array(theta))) > 0.97
