import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_envs import Preferences
from leaders.functional.guiding import guiding_bc_hg, guiding_bc_hg_shared, guiding_naive_pgd
from leaders.functional.values import Values
from leaders.functional.visits import visit_mean
from leaders.functional.weights import discount_weights, eligibility_trace, residualised, weights_from_guiding
from tests.helpers import rollout, values_like

PREFS = Preferences(0.9, 0.8, 0.5)


def test_the_trace_is_that_made_by_hand():
    guiding = torch.tensor([1.0, -2.0, 0.0, 4.0], dtype=torch.float64)
    never = torch.tensor([True, False, False, False])
    # decay 1/2:  1,  1/2 - 2,  -3/4 + 0,  -3/8 + 4
    expected = torch.tensor([1.0, -1.5, -0.75, 3.625], dtype=torch.float64)
    torch.testing.assert_close(eligibility_trace(guiding, 0.5, never), expected, rtol=0, atol=0)
    again = torch.tensor([True, False, True, False])
    # a new episode at step 2 forgets: 1, -1.5, 0, 4
    torch.testing.assert_close(
        eligibility_trace(guiding, 0.5, again),
        torch.tensor([1.0, -1.5, 0.0, 4.0], dtype=torch.float64),
        rtol=0,
        atol=0,
    )


def test_the_trace_refuses_a_decay_above_one():
    with pytest.raises(ValueError, match=r"`decay` must lie in \[0, 1\], got 1.5"):
        eligibility_trace(torch.zeros(3), 1.5, torch.zeros(3, dtype=torch.bool))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_the_trace_is_the_double_sum_of_the_theorem(seed):
    rng = np.random.default_rng(seed)
    ends = rng.random((2, 3, 12)) < 0.2
    batch = rollout(rng.integers(5, size=(2, 3, 12)).tolist(), terminated=ends.tolist())
    guiding, reward = torch.from_numpy(rng.normal(size=(2, 2, 3, 12)))
    single = (eligibility_trace(guiding, 0.8, batch.starts) * reward).sum()
    double = 0.0  # Σ_t c_t Σ_{k ≥ t, same episode} γ^{k−t} r_k
    for r in range(2):
        for n in range(3):
            for t in range(12):
                for k in range(t, 12):
                    double += float(guiding[r, n, t]) * 0.8 ** (k - t) * float(reward[r, n, k])
                    if ends[r, n, k]:
                        break
    assert float(single) == pytest.approx(double, abs=1e-12)


def test_the_guiding_weight_is_that_made_by_hand():
    batch = rollout([[[0, 1, 0]]], terminated=[[[0, 1, 0]]])
    q, v = (
        torch.tensor([[[3.0, 1.0, 2.0]]], dtype=torch.float64),
        torch.tensor([[[1.0, 2.0, 2.5]]], dtype=torch.float64),
    )
    values = Values(q, v, v, v, v)
    discounts = discount_weights(batch, 0.9, None)
    # two episodes, steps 0 and 1, then 0: γ^k / 2 = .5, .45, .5; benefits 2, −1, −.5; β = 1/2
    expected = torch.tensor([[[0.5 * 2, 0.45 * -1, 0.5 * -0.5]]], dtype=torch.float64) / 0.5
    torch.testing.assert_close(guiding_bc_hg(batch, values, discounts, PREFS), expected, rtol=0, atol=1e-15)
    assert (guiding_naive_pgd(batch, values, discounts, PREFS) == 0).all()


def test_sharing_averages_over_visits_of_a_pair_within_a_run():
    batch = rollout([[[0, 1, 0, 0]], [[0, 1, 0, 0]]], action=[[[1, 0, 1, 0]], [[1, 0, 1, 0]]])
    values = values_like(batch)
    discounts = discount_weights(batch, 0.9, None)
    plain, shared = (guiding(batch, values, discounts, PREFS) for guiding in (guiding_bc_hg, guiding_bc_hg_shared))
    for run in range(2):
        p, s = plain[run, 0], shared[run, 0]
        mean = (p[0] + p[2]) / 2
        torch.testing.assert_close(s, torch.stack([mean, p[1], mean, p[3]]))


def test_visit_mean_leaves_what_is_not_valid_out():
    x = torch.tensor([[[1.0, 2.0, 30.0]]], dtype=torch.float64)
    key = torch.tensor([[[4, 4, 4]]])
    valid = torch.tensor([[[True, True, False]]])
    torch.testing.assert_close(visit_mean(x, key, valid), torch.tensor([[[1.5, 1.5, 0.0]]], dtype=torch.float64))


TWO_EPISODES = {"state": [[[0, 1, 2, 0, 1]]], "terminated": [[[0, 0, 1, 0, 0]]]}


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (None, [0.5, 0.45, 0.405, 0.5, 0.45]),  # two episodes begun
        ("drop", [1.0, 0.9, 0.81, 0.0, 0.0]),  # only the finished one
        ("reference", [1.0, 0.9, 0.81, 1.0, 0.9]),  # both counted, the finished one divided by
    ],
)
def test_discount_weights_of_a_cut_episode_follow_its_tail(tail, expected):
    batch = rollout(**TWO_EPISODES)
    torch.testing.assert_close(
        discount_weights(batch, 0.9, tail)[0, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15
    )


def test_the_residualised_guiding_weight_is_the_leave_one_episode_out_projection():
    rng = np.random.default_rng(0)
    ends = [[[0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0]]]
    batch = rollout(rng.integers(4, size=(1, 2, 6)).tolist(), terminated=ends)
    guiding = torch.from_numpy(rng.normal(size=(1, 2, 6)))
    phi = torch.from_numpy(rng.normal(size=(1, 2, 6, 2)))
    episode = np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3])
    flat_phi, c = phi.reshape(12, 2).numpy(), guiding.reshape(12).numpy()
    follower = rng.normal(size=12)  # what ∇Q_F might be
    # plainly: subtract from each step the prediction of a regression on the other episodes
    corrected = follower.copy()
    for e in range(4):
        others, own = episode != e, episode == e
        fit, *_ = np.linalg.lstsq(flat_phi[others], follower[others], rcond=None)
        corrected[own] -= flat_phi[own] @ fit
    actual = residualised(guiding, phi, batch).reshape(12).numpy()
    assert actual @ follower == pytest.approx(c @ corrected, abs=1e-12)


def test_a_single_episode_has_no_control_variate():
    batch = rollout([[[0, 1, 2]]])
    guiding = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64)
    torch.testing.assert_close(residualised(guiding, torch.ones(1, 1, 3, 1).double(), batch), guiding)


def test_arrival_weights_are_those_made_by_hand():
    batch = rollout([[[0, 1]]], terminated=[[[0, 1]]])
    one = torch.ones(1, 1, 2).double()
    values = Values(
        q_leader=5 * one, v_leader=2 * one, v_leader_next=3 * one, q_follower=7 * one, v_follower_next=4 * one
    )
    discounts = discount_weights(batch, PREFS.gamma_leader, None)
    guiding = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    plain = weights_from_guiding(guiding, batch, values, discounts, PREFS, tail="keep", score_weight="value")
    reduced = weights_from_guiding(guiding, batch, values, discounts, PREFS, tail="keep", score_weight="td_error")
    trace = torch.tensor([[[1.0, 0.8]]], dtype=torch.float64)
    discount = torch.tensor([[[1.0, 0.9]]], dtype=torch.float64)
    torch.testing.assert_close(plain.log_arrival, discount * 0.9 * 3 + trace * 0.8 * 4)
    # γ_L V_L(s') − (Q_L − r_L) = 2.7 − 5, γ_F V_F(s') − (Q_F − r_F) = 3.2 − 7
    torch.testing.assert_close(reduced.log_arrival, discount * (2.7 - 5) + trace * (3.2 - 7))
    torch.testing.assert_close(plain.r_follower, trace)
    torch.testing.assert_close(plain.r_leader, discount)
    torch.testing.assert_close(plain.log_start, torch.tensor([[[2.0, 0.0]]], dtype=torch.float64))
