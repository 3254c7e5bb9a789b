"""The published learning curves, by the preset that does what the published code did."""

import numpy as np
import pytest

from leaders import BCHG
from leaders.published import four_rooms, trailing_mean


def test_the_trailing_mean_is_that_made_by_hand():
    np.testing.assert_allclose(trailing_mean(np.array([1.0, 3.0, 5.0, 7.0]), window=2), [1, 2, 4, 6])


def test_published_curves_have_the_papers_final_values():
    mean, sem = four_rooms("bchg", 1e-3, 100).at(10_000)
    assert mean == pytest.approx(0.66812, abs=1e-4)  # final point of Figure 2, left
    assert sem == pytest.approx(0.00862, abs=1e-4)
    assert four_rooms("bchg", 2e-3, 100) is None
    assert four_rooms("exact", 1e-3, 100) is None


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "published"), [(5e-3, {2000: 0.880, 5000: 1.250}), (1e-3, {2000: 0.565})])
def test_paper_preset_learns_as_published(make, beta, published):
    env = make("FourRooms", beta=beta, dynamics="mismatched")
    leader = BCHG(env, preset="paper", runs=10, seed=0, learning_rate=0.1, critic_learning_rate=0.5).learn(
        max(published)
    )
    smoothed = trailing_mean(leader.history["leader_value"])
    curve = four_rooms("bchg", beta, 100)
    for iteration, value in published.items():
        mean, theirs = curve.at(iteration)
        assert mean == pytest.approx(value, abs=2e-3)
        ours = smoothed[iteration - 1]
        error = np.hypot(ours.std(ddof=1) / 10**0.5, theirs)
        print(f"β {beta:g}, {iteration}: ours {ours.mean():.3f}, published {mean:.3f}, combined s.e. {error:.3f}")
        assert abs(ours.mean() - mean) <= max(3 * error, 0.01)


@pytest.mark.slow
def test_the_clean_leader_does_what_the_exact_gradient_does_from_the_start(make):
    # both end near the plateau J ≈ 0 (four_rooms specification, section 7, item 16)
    leader = BCHG(make("FourRooms", beta=1e-3), runs=4, seed=0, exploration="none").learn(400)
    assert np.abs(leader.history["leader_value"][-1]).max() < 0.1
