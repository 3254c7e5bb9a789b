import numpy as np
import pytest
from scipy import stats

from leaders.experiments.statistics import performance_profile, probability_of_improvement, summary


def test_means_and_intervals_are_those_made_by_hand():
    got = summary([*np.arange(19.0), 1000.0])
    assert got.mean == pytest.approx((171 + 1000) / 20)
    assert got.iqm == pytest.approx(9.5)  # the middle half: 5 … 14
    assert got.iqm_interval[1] < 18 < got.mean_interval[1]  # one outlier moves the mean, not the IQM


@pytest.mark.slow
def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = summary(rng.normal(size=30), seed=trial, resamples=300).mean_interval
        hits += low <= 0 <= high
    # a percentile bootstrap of 30 covers a little below 95 %; 180 of 200 is 3 s.e. below 94 %
    assert 180 <= hits < 200


def test_seeds_are_resampled_within_their_task():
    # two tasks far apart: mixed resampling would give an interval as wide as their distance
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=20), 1000 + rng.normal(size=20)
    got = summary({"near": near, "far": far})
    low, high = got.mean_interval
    spread = 1.96 * np.hypot(stats.sem(near), stats.sem(far)) / 2
    assert high - low == pytest.approx(2 * spread, rel=0.25)
    assert got.seeds == {"near": 20, "far": 20}


def test_seeds_that_agree_need_no_resampling():
    assert summary([2.0, 2.0, 2.0]).mean_interval == (2.0, 2.0)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((10, 1000)), r"`scores` must be one number per seed, got shape \[10, 1000\]; iterations"),
        ([1.0], "`scores` must hold at least 2 seeds, got 1"),
        ([1.0, np.nan], "`scores` must be finite; seed 1 is not"),
        ({"a": [1.0, 2.0], "b": np.zeros((2, 2))}, r"`scores\['b'\]` must be one number per seed"),
        ({}, "`scores` must hold at least one task"),
        (["a", "b"], "`scores` must be one number per seed, got"),
    ],
)
def test_scores_that_are_not_one_number_a_seed_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        summary(scores)


def test_the_median_is_the_mean_over_tasks_of_the_median_over_seeds():
    told = summary({"a": [0.0, 1.0, 50.0], "b": [2.0, 4.0]})
    assert told.median == pytest.approx((1 + 3) / 2)
    low, high = told.median_interval
    assert low <= told.median <= high


def test_the_probability_of_improvement_is_mann_and_whitneys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, 1, 20), rng.normal(0, 1, 30)
    got, (low, high) = probability_of_improvement(x, y)
    assert got == pytest.approx(stats.mannwhitneyu(x, y).statistic / 600)
    assert low < got < high
    assert probability_of_improvement(y, x)[0] == pytest.approx(1 - got)
    assert probability_of_improvement([1.0, 1.0], [1.0, 1.0]) == (0.5, (0.5, 0.5))
    both = probability_of_improvement({"a": [2.0, 3.0], "b": [0.0, 0.0]}, {"b": [1.0, 1.0], "a": [1.0, 2.0]})[0]
    assert both == pytest.approx((3.5 / 4 + 0) / 2)  # the mean over tasks


def test_the_interval_of_the_probability_covers_the_truth():
    rng = np.random.default_rng(1)
    truth, hits = stats.norm.cdf(0.5 / 2**0.5), 0
    for trial in range(200):
        x, y = rng.normal(0.5, 1, 25), rng.normal(0, 1, 25)
        low, high = probability_of_improvement(x, y, resamples=300, seed=trial)[1]
        hits += low <= truth <= high
    assert 178 <= hits < 200


def test_a_performance_profile_is_the_share_of_runs_above_each_threshold():
    above, interval = performance_profile({"a": [0.1, 0.5, 0.9, 0.95], "b": [0.0, 1.0]}, [0.0, 0.5, 0.92])
    np.testing.assert_allclose(above, [(1 + 0.5) / 2, (0.5 + 0.5) / 2, (0.25 + 0.5) / 2])
    assert (interval[:, 0] <= above).all()
    assert (above <= interval[:, 1]).all()


def test_leaders_are_compared_on_the_same_tasks():
    with pytest.raises(ValueError, match="`others` must be of the tasks a, got b"):
        probability_of_improvement({"a": [1.0, 2.0]}, {"b": [1.0, 2.0]})
