"""Estimates as leaders make them while they learn: short rows, cut episodes that are bootstrapped; right on average."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.parameterizations import Free
from leaders import BCHG, HPGD, NaivePGD, SoBiRL, exact
from tests.helpers import leader_at_fixed_theta, training_estimates, wrapped, z_scores

RUNS, WARM_UP, ITERATIONS = 40, 12, 4  # after the first, the rarest pairs are known too
ROWS, STEPS = 100, 3  # what lies behind a cut counts for half, γ³


class Ending(RandomMDP):
    """Two of the pairs end the episode, so that a row may hold several and its last is cut."""

    def model(self, theta):
        model = super().model(theta)
        continues = torch.ones_like(model.continues)
        continues[0, 1, 0] = continues[0, 3, 1] = 0.0
        return replace(model, continues=continues, structure=None)


def world(theta_moves, gamma=0.8):
    how = {} if theta_moves else {"transition_share": 0.0}
    sizes = {"states": 5, "actions": 2, "branching": 3, "dim": 3}
    return wrapped(Ending(seed=4, gamma_leader=gamma, gamma_follower=gamma - 0.1, **sizes, **how))


THETA = np.array([0.4, -0.3, 0.2])
GRADIENTS = [("empirical", True), ("empirical", False), ("exact", False)]  # critic, whether θ moves the transitions


def estimates(leader_class, env, rows=ROWS, **settings):
    """The mean estimate of each run over some iterations at a fixed θ, [R, dim]; runs are independent."""
    policy = Free(np.tile(THETA, (RUNS, 1)))
    leader = leader_at_fixed_theta(leader_class, env, policy, runs=RUNS, rows=rows, batch_size=rows * STEPS, **settings)
    leader.learn(WARM_UP)
    assert leader.estimator_config.tail == "continue"
    assert leader.estimator_config.cross_fit
    return training_estimates(leader, ITERATIONS).mean(0)


def check(found, truth, wrong):
    """The mean is right, and what is wrong would stand out."""
    assert np.abs(z_scores(found, truth)).max() < 4  # Student t, 39 d.o.f.: once in 3,650 entries by chance
    for other in wrong:
        assert np.abs(z_scores(found, other)).max() > 8


# HPGD's own critic, mean returns, sums a return as far as its row goes: right only where rows are long.
@pytest.mark.slow
@pytest.mark.parametrize(("critic", "theta_moves"), GRADIENTS)
@pytest.mark.parametrize(
    ("leader", "how"),
    [
        (BCHG, {}),
        (BCHG, {"control_variate": "none"}),
        (BCHG, {"shared": True, "control_variate": "none"}),
        (HPGD, {"variant": "mc"}),
    ],
)
def test_estimates_of_training_average_to_the_hypergradient(leader, how, critic, theta_moves):
    env = world(theta_moves)
    direct, guiding = exact.hypergradient_parts(env, THETA)
    check(estimates(leader, env, critic=critic, **how), direct + guiding, [direct, direct - guiding])


@pytest.mark.parametrize(
    ("leader", "how"), [(BCHG, {"critic": "expected_sarsa"}), (HPGD, {"variant": "sa", "rows": 200})]
)
def test_estimates_with_a_table_that_learns_average_to_the_hypergradient(leader, how):
    env = world(theta_moves=False)
    direct, guiding = exact.hypergradient_parts(env, THETA)
    check(estimates(leader, env, **how), direct + guiding, [direct, direct - guiding])


@pytest.mark.slow
@pytest.mark.parametrize(("critic", "theta_moves"), GRADIENTS)
def test_estimates_of_an_oracle_average_to_the_hypergradient(critic, theta_moves):
    env = world(theta_moves, gamma=0.6)
    direct, guiding = exact.hypergradient_parts(env, THETA)
    check(estimates(HPGD, env, rows=20, variant="oracle", critic=critic), direct + guiding, [direct, direct - guiding])


@pytest.mark.parametrize(("critic", "theta_moves"), GRADIENTS)
def test_estimates_of_naive_pgd_average_to_the_direct_term(critic, theta_moves):
    env = world(theta_moves)
    direct, guiding = exact.hypergradient_parts(env, THETA)
    check(estimates(NaivePGD, env, critic=critic), direct, [direct + guiding, np.zeros(3)])


@pytest.mark.slow
@pytest.mark.parametrize("theta_moves", [True, False])
@pytest.mark.parametrize("modified", [True, False])
def test_estimates_of_sobirl_average_to_their_own_expectation(modified, theta_moves):
    r"""E[Q_L (∇r_F − E_b ∇r_F)] / β over the leader's discounted visits, or, as published, over the first step.

    As published all later steps of the sum have mean 0: given s_k the centred ∇r_F(s_k, b_k) does not know s_0 and b_0.
    """
    env = world(theta_moves)
    model, preferences = env.model(THETA).detach(), env.preferences
    g = env.best_response(THETA).policy.probs[0].numpy()
    goes_on = (model.moves.dense() * model.continues[..., None])[0].numpy()
    r_leader, start, slope = model.r_leader[0].numpy(), model.initial[0].numpy(), env.problem._tables.r_follower.slope
    matrix = np.eye(5) - preferences.gamma_leader * np.einsum("sb,sbt->st", g, goes_on)
    q = r_leader + preferences.gamma_leader * goes_on @ np.linalg.solve(matrix, (g * r_leader).sum(-1))
    centred = slope.numpy() - np.einsum("sb,sbd->sd", g, slope.numpy())[:, None]
    visits = np.linalg.solve(matrix.T, start) if modified else start
    guiding = np.einsum("s,sb,sbd->d", visits, g * q, centred) / preferences.beta
    direct, true_guiding = exact.hypergradient_parts(env, THETA)
    found = estimates(SoBiRL, env, modified=modified, critic="exact")
    check(found, direct + guiding, [direct, direct - guiding, direct + true_guiding])
