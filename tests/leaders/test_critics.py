import numpy as np
import pytest
import torch

from bilevel_envs.core.noise import Noise
from leaders.critics import ExactCritic, ExpectedSarsa, MonteCarlo, Sarsa
from tests.helpers import response, two_episodes

HALF = response([[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]])


def test_sarsa_updates_are_those_made_by_hand():
    critic = Sarsa(0.9, learning_rate=0.5)
    critic.begin(HALF.policy, Noise([0]))
    critic.table[0, 2] = [10.0, 20.0]
    critic.pass_over(two_episodes(), HALF.policy, np.array([[1, 0, 2]]))
    # (1,1): 0 + ½(2 − 0) = 1; then (0,0): 0 + ½(1 + .9·1 − 0) = .95; the cut step looks at V(2) = 15: ½(4 + 13.5)
    np.testing.assert_allclose(critic.table[0], [[0.95, 8.75], [0.0, 1.0], [10.0, 20.0]])


def test_published_sarsa_takes_the_cut_for_the_end():
    critic = Sarsa(0.9, learning_rate=0.5, cut_is_end=True)
    critic.begin(HALF.policy, Noise([0]))
    critic.table[0, 2] = [10.0, 20.0]
    critic.pass_over(two_episodes(), HALF.policy, np.array([[0, 1, 2]]))
    # in this order (0,0) still sees Q(1,1) = 0; the cut step's target is its reward alone
    np.testing.assert_allclose(critic.table[0], [[0.5, 2.0], [0.0, 1.0], [10.0, 20.0]])


def test_expected_sarsa_updates_are_those_made_by_hand():
    critic = ExpectedSarsa(0.9, learning_rate=0.5)
    critic.begin(HALF.policy, Noise([0]))
    critic.table[0, 2] = [10.0, 20.0]
    critic.fit(two_episodes(), HALF, None, Noise([0]))
    # backwards: (0,1): ½(4 + .9·15) = 8.75; (1,1): ½·2 = 1; (0,0): ½(1 + .9·½·1) = .725
    np.testing.assert_allclose(critic.table[0], [[0.725, 8.75], [0.0, 1.0], [10.0, 20.0]])


def test_monte_carlo_values_are_those_made_by_hand():
    critic = MonteCarlo(0.9)
    critic.fit(two_episodes(), HALF, None, Noise([0]))
    q, v, v_next = critic.values(two_episodes(), HALF.policy)
    # returns: 1 + .9·2 = 2.8, 2, 4; state 0 was left twice: (2.8 + 4) / 2; state 2 never
    np.testing.assert_allclose(q[0, 0], [2.8, 2.0, 4.0])
    np.testing.assert_allclose(v[0, 0], [3.4, 2.0, 3.4])
    np.testing.assert_allclose(v_next[0, 0], [2.0, 0.0, 0.0])


@pytest.mark.parametrize("critic", ["sarsa", "expected_sarsa"])
def test_learnt_tables_approach_the_exact_one(make, critic):
    env = make("RandomMDP", branching=2, states=4)
    best = env.best_response(np.zeros(5))
    learnt = {"sarsa": Sarsa, "expected_sarsa": ExpectedSarsa}[critic](0.9, learning_rate=0.02)
    noise, model = Noise([0]), env.model(np.zeros(5)).detach()
    for _ in range(150):
        learnt.fit(env.rollout(np.zeros(5), best, noise, rows=2, horizon=200), best, None, noise)
    exact = ExactCritic(0.9)
    exact.fit(None, best, model, noise)
    often = best.policy.probs[0].numpy() > 0.1
    spread = np.ptp(exact.table[0].numpy())
    assert np.abs(learnt.table[0] - exact.table[0].numpy())[often].max() < 0.1 * spread


def test_exact_critic_satisfies_the_bellman_equation(make):
    env = make("RandomMDP")
    best, model = env.best_response(np.zeros(5)), env.model(np.zeros(5)).detach()
    critic = ExactCritic(0.9)
    critic.fit(None, best, model, Noise([0]))
    q = critic.table
    v = (best.policy.probs * q).sum(-1)
    torch.testing.assert_close(q, model.r_leader + 0.9 * (model.moves.dense() @ v[0]), rtol=0, atol=1e-10)


def test_copies_of_a_critic_start_alike_and_part(make):
    env = make("FourRooms")
    best, noise = env.best_response(env.unwrapped.theta), Noise([0, 1])
    critic = ExpectedSarsa(0.99, np.array([0.5, 0.1]))
    critic.fit(env.rollout(env.unwrapped.theta, best, noise, rows=1, horizon=50), best, None, noise)
    copy = critic.copies(3)
    assert copy.table.shape == (6, 104, 4)
    np.testing.assert_array_equal(copy.table[4:6], critic.table)
    assert copy.learning_rate.tolist() == [0.5, 0.1] * 3
    copy.table += 1
    assert not np.array_equal(copy.table[:2], critic.table)


def test_bad_learning_rates_are_refused():
    with pytest.raises(ValueError, match="`critic_learning_rate` must be above 0 and at most 1, got 1.5"):
        Sarsa(0.9, 1.5)
    with pytest.raises(ValueError, match="`start` must be one of 'zeros', 'normal'"):
        ExpectedSarsa(0.9, 0.5, "ones")
