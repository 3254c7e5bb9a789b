"""Gradients where the caller has switched autograd off, and policies that give none."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from bilevel_envs.core.follower import BestResponse
from bilevel_envs.followers import Riccati, SoftValueIteration
from bilevel_envs.worlds.linear_quadratic.model import discounted_sum
from leaders import BCHG, NaivePGD, RandomSearch, exact
from tests.helpers import central_differences, wrapped_env

OFF = [torch.no_grad, torch.inference_mode]


class Own(torch.nn.Module):
    """A policy for RandomMDP: what `rule` makes of five numbers."""

    def __init__(self, rule):
        super().__init__()
        self.raw, self.rule = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64)), rule

    def forward(self):
        return self.rule(self.raw)


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("name", ["TollBridge", "RandomMDP", "BuildingThermalControl"])
def test_the_exact_hypergradient_is_right_with_autograd_off(name, off):
    env = wrapped_env(name)
    theta = np.asarray(env.unwrapped.theta) + 0.01
    differences = central_differences(lambda x: exact.objective(env, x), theta)
    raw = env.unwrapped.parameterization()
    with off():
        gradient = exact.hypergradient(env, theta)
        pulled = exact.hypergradient(env, parameters=raw)
    np.testing.assert_allclose(gradient, differences, rtol=1e-5, atol=1e-6 * np.abs(differences).max())
    assert np.abs(differences).max() > 1e-3
    np.testing.assert_allclose(pulled, exact.hypergradient(env, parameters=raw), rtol=1e-12)
    assert np.abs(pulled).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("name", ["FourRooms", "RandomMDP", "BuildingThermalControl"])
def test_leaders_learn_the_same_with_autograd_off(name, off):
    on, without = (BCHG(wrapped_env(name), runs=2, seed=0, exploration="none") for _ in range(2))
    on.learn(3)
    samples, raw = on.gradient_samples(4), on.gradient_samples(4, raw=True)
    with off():
        without.learn(3)
        np.testing.assert_array_equal(without.theta, on.theta)
        np.testing.assert_array_equal(without.gradient_samples(4), samples)
        np.testing.assert_array_equal(without.gradient_samples(4, raw=True), raw)
    assert (on.history["grad_norm"] > 0).all()
    assert np.abs(raw).max() > 0


@pytest.mark.parametrize("off", OFF)
def test_reactions_and_surrogates_carry_gradients_with_autograd_off(off):
    env = wrapped_env("BuildingThermalControl")
    theta = torch.full((1, 8), 0.4, dtype=torch.float64, requires_grad=True)
    model = env.model(theta)

    def gain(x):
        return float(Riccati().best_response(env.model(x[None]), env.preferences).policy.gain.sum())

    with off():
        reaction = Riccati().reaction(model, env.preferences).policy.gain
        guiding = exact.surrogates(model, exact.best_response(model.detach(), env.preferences), env.preferences)[1]
    (slope,) = torch.autograd.grad(reaction.sum(), theta, retain_graph=True)
    np.testing.assert_allclose(slope[0], central_differences(gain, theta.detach().numpy()[0]), rtol=1e-6, atol=1e-9)
    (part,) = torch.autograd.grad(guiding.sum(), theta)
    np.testing.assert_allclose(part, exact.hypergradient_parts(env, theta)[1], rtol=1e-9)


def test_a_discounted_sum_is_right_without_a_gradient():
    step = torch.tensor([[[0.5, 0.2], [0.0, 0.3]]], dtype=torch.float64, requires_grad=True)
    first = torch.eye(2, dtype=torch.float64)[None]
    with torch.no_grad():
        total = discounted_sum(step, first, 0.9)
    expected = solve_discrete_lyapunov(0.9**0.5 * step[0].detach().numpy(), np.eye(2))
    np.testing.assert_allclose(total[0], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["TaxDesign-small", "FourRooms"])
def test_tensors_that_an_environment_keeps_have_gradients_after_a_first_use_in_inference_mode(name):
    env = wrapped_env(name)
    theta = env.unwrapped.theta
    with torch.inference_mode():
        exact.objective(env, theta)
        env.best_response(theta)
    fresh = wrapped_env(name)
    np.testing.assert_array_equal(exact.hypergradient(env, theta), exact.hypergradient(fresh, theta))


def test_objects_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        tax = gym.make("BiLevel/TaxDesign-small-v0")
        policy = Own(lambda raw: raw * 1.0)
        with pytest.raises(RuntimeError, match="BCHG must be made outside of torch.inference_mode"):
            BCHG(wrapped_env("RandomMDP"))
    with pytest.raises(ValueError, match="made inside torch.inference_mode.*make the environment, the policy and"):
        exact.hypergradient(tax, tax.unwrapped.theta)
    with pytest.raises(ValueError, match="`policy` must be made outside of torch.inference_mode"):
        BCHG(wrapped_env("RandomMDP"), policy=policy)


def test_followers_that_learn_may_use_gradients():
    class Fits:
        beta = None

        def respond(self, env, theta, model, start, learn=True) -> BestResponse:
            weight = torch.ones(1, requires_grad=True)
            (weight * 2).sum().backward()
            assert float(weight.grad) == 2.0
            return SoftValueIteration().best_response(model, env.problem.preferences, start)

    env = wrapped_env("RandomMDP", Fits())
    for off in OFF:
        with off():
            env.best_response(env.unwrapped.theta)


def raises(raw):
    raise KeyError("no such layer")


BROKEN = [
    (lambda raw: raw.detach() * 1.0, ValueError, r"depends on its parameters through autograd; forward\(\) of Own"),
    (lambda raw: torch.tensor(raw.tolist()), ValueError, "depends on its parameters through autograd"),
    (lambda raw: raw * float("nan"), ValueError, r"must be finite; at \(0,\) it is nan"),
    (lambda raw: 1 / raw, ValueError, r"must be finite; at \(0,\) it is inf"),
    (raises, ValueError, r"whose forward\(\), called without arguments, is θ; that of Own raised KeyError"),
    (lambda raw: raw.detach().numpy(), TypeError, "must yield θ as a tensor, got ndarray from Own"),
]


@pytest.mark.parametrize(("rule", "kind", "message"), BROKEN)
def test_a_policy_that_yields_no_theta_is_refused(rule, kind, message):
    with pytest.raises(kind, match="`policy.*" + message):
        BCHG(wrapped_env("RandomMDP"), policy=Own(rule))
    with pytest.raises(kind, match="`parameters.*" + message):
        exact.hypergradient(wrapped_env("RandomMDP"), parameters=Own(rule))


@pytest.mark.parametrize(("rule", "kind", "message"), BROKEN)
def test_a_policy_that_breaks_later_stops_the_run(rule, kind, message):
    policy = Own(lambda raw: raw * 1.0)
    leader = BCHG(wrapped_env("RandomMDP"), policy=policy).learn(1)
    before, policy.rule = policy.raw.detach().clone(), rule
    if rule is not BROKEN[3][0]:  # by then no entry is 0
        with pytest.raises(kind, match="`policy.*" + message):
            leader.learn(1)
        assert torch.equal(policy.raw, before)
        assert len(leader.history) == 1


def test_search_leaders_need_no_derivative_of_their_policy():
    leader = RandomSearch(wrapped_env("RandomMDP"), policy=Own(lambda raw: raw.detach() * 1.0), seed=0)
    assert len(leader.learn(2).history) == 2


def test_a_gradient_of_zero_is_no_error():
    # TollBridge: neither r_L nor the transitions depend on the toll
    leader = NaivePGD(wrapped_env("TollBridge"), seed=0)
    before = leader.theta
    leader.learn(3)
    np.testing.assert_array_equal(leader.theta, before)
    assert (leader.history["grad_norm"] == 0).all()


def test_a_model_without_gradients_is_refused(make):
    env = wrapped_env("RandomMDP")
    leader = BCHG(env)
    inner = env.unwrapped.model
    env.unwrapped.model = lambda theta: inner(theta).detach()
    with pytest.raises(ValueError, match=r"`model\(theta\)` of RandomMDP must depend on θ through torch operations"):
        leader.learn(1)
