"""How often the exact value is recorded, and that nothing else depends on it."""

import logging

import numpy as np
import pytest

from leaders import BCHG, CMAES, ExactGradient
from leaders.evaluation import Evaluation
from leaders.training.history import History


@pytest.mark.parametrize("leader", [BCHG, CMAES, ExactGradient])
def test_every_third_value_is_the_one_of_a_run_that_records_all(make, leader):
    every, third = (leader(make("RandomMDP"), seed=0, evaluate_every=k).learn(8) for k in (None, 3))
    np.testing.assert_array_equal(every.theta, third.theta)
    value = third.history["leader_value"][:, 0]
    assert np.isnan(value).tolist() == [False, True, True, False, True, True, False, False]  # and the last one
    known = ~np.isnan(value)
    np.testing.assert_array_equal(value[known], every.history["leader_value"][known, 0])
    np.testing.assert_array_equal(third.history["grad_norm"], every.history["grad_norm"])


def test_values_between_are_those_of_the_last_evaluation():
    history = History(2)
    for value in ([1.0, np.nan], [np.nan, np.nan], [3.0, 4.0], [np.nan, np.nan]):
        history.append(**dict.fromkeys(history, 0.0) | {"leader_value": np.array(value)})
    np.testing.assert_array_equal(
        history.filled("leader_value"), [[1.0, np.nan], [1.0, np.nan], [3.0, 4.0], [3.0, 4.0]]
    )
    np.testing.assert_array_equal(history.latest("leader_value"), [3.0, 4.0])
    assert np.isnan(History(2).latest("leader_value")).all()


def test_a_history_is_read_like_a_mapping():
    history = History(1)
    for value in (2.0, 3.0):
        history.append(**dict.fromkeys(history, 0.0) | {"leader_value": value})
    found = dict(history.items())
    assert list(found) == list(history) == list(history.keys())
    np.testing.assert_array_equal(found["leader_value"], [[2.0], [3.0]])
    np.testing.assert_array_equal(list(history.values()), list(found.values()))
    np.testing.assert_array_equal(history.get("leader_value"), [[2.0], [3.0]])
    assert (history.get("value"), history.get("value", 0)) == (None, 0)
    assert history.keys() & {"leader_value", "value"} == {"leader_value"}


def test_the_last_value_is_shown_and_resumed(make, tmp_path):
    leader = BCHG(make("TollBridge"), seed=0, evaluate_every=5).learn(7)
    value = leader.history["leader_value"][-1, 0]
    assert f"last_leader_value={value:.5g}" in repr(leader)
    leader.save(tmp_path / "leader.zip")
    other = BCHG.load(tmp_path / "leader.zip", make("TollBridge")).learn(4)
    assert np.isnan(other.history["leader_value"][:, 0]).tolist() == [i not in (0, 5, 6, 10) for i in range(11)]


@pytest.mark.parametrize(
    ("evaluating", "rest", "every"),
    [(0.09, 0.001, 1), (0.5, 2.0, 1), (0.5, 1.0, 2), (0.5, 0.2, 10), (2.0, 0.01, 800), (900.0, 0.0, 1_000)],
)
def test_slow_evaluations_are_thinned_until_they_take_a_quarter_of_the_rest(caplog, evaluating, rest, every):
    evaluation = Evaluation("BCHG", None)
    with caplog.at_level(logging.INFO, logger="leaders"):
        evaluation._thin(evaluating, rest)
    assert [evaluation.due(i) for i in range(2_001)] == [i % every == 0 for i in range(2_001)]
    assert len(caplog.records) == (every > 1)


def test_a_slow_evaluation_is_thinned_and_theta_does_not_notice(make, monkeypatch):
    plain = BCHG(make("TollBridge"), seed=0).learn(12)
    moments = iter(0.51 * (k // 2) + 0.5 * (k % 2) for k in range(100))  # half a second each, a hundredth between

    class Clock:
        @staticmethod
        def process_time():
            return next(moments)

    monkeypatch.setattr("leaders.evaluation.time", Clock)
    leader = BCHG(make("TollBridge"), seed=0).learn(12)
    assert np.isnan(leader.history["leader_value"][:, 0]).tolist() == [i not in (0, 1, 11) for i in range(12)]
    np.testing.assert_array_equal(leader.theta, plain.theta)


def test_a_resumed_run_is_evaluated_as_often_as_before(make, tmp_path):
    leader = BCHG(make("TollBridge"), seed=0).learn(3)
    leader.evaluation._thin(0.4, 0.4)
    leader.save(tmp_path / "leader.zip")
    again = BCHG.load(tmp_path / "leader.zip", make("TollBridge")).learn(8)
    assert np.isnan(again.history["leader_value"][:, 0]).tolist() == [i not in (0, 1, 2, 4, 8, 10) for i in range(11)]
    other = BCHG.load(tmp_path / "leader.zip", make("TollBridge"), evaluate_every=3).learn(4)
    assert np.isnan(other.history["leader_value"][:, 0]).tolist() == [i not in (0, 1, 2, 3, 6) for i in range(7)]


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_an_evaluation_interval_must_be_a_count(make, every):
    with pytest.raises((TypeError, ValueError), match="evaluate_every"):
        BCHG(make("TollBridge"), evaluate_every=every)
