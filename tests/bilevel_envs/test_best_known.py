"""Best known values: what is recorded, and that θ attains it."""

import pickle

import gymnasium as gym
import pytest

from bilevel_envs import BestKnown, BilevelWrapper, TabularEnv
from bilevel_envs.core.mdp import PROOFS, REPEATABLE
from bilevel_envs.envs.toll_bridge import TollBridge
from bilevel_envs.registration import PROBLEMS
from leaders import exact
from leaders.cli.main import main

RECORDED = [
    ("BiLevel/TollBridge-v0", {}),
    *[("BiLevel/FourRooms-v0", {"beta": beta}) for beta in (1e-3, 3e-3, 5e-3)],
    ("BiLevel/Warehouse-v0", {}),
    ("BiLevel/BuildingThermalControl-v0", {}),
    *[("BiLevel/ToyMarkovGame-v0", {"variant": variant}) for variant in ("R1", "R2")],
    ("BiLevel/BilevelLQR-v0", {}),
    ("BiLevel/TaxDesign-small-v0", {}),
    *[("BiLevel/TaxDesign-v0", {"beta": beta}) for beta in (0.1, 0.2, 0.3)],
]
NAMES = [" ".join([name.split("/")[1], *map(str, kwargs.values())]) for name, kwargs in RECORDED]
# RandomMDP's rewards grow with θ, which has no bounds; the guided games can only be played.
WITHOUT = {"BiLevel/RandomMDP-v0", "BiLevel/GuidedCartPole-v0", "BiLevel/GuidedPendulum-v0"}


def test_every_environment_is_accounted_for():
    assert {name for name, _ in RECORDED} | WITHOUT == set(PROBLEMS)
    for name in WITHOUT:
        assert gym.make(name).unwrapped.best_known is None


@pytest.mark.parametrize(("name", "kwargs"), RECORDED, ids=NAMES)
def test_the_recorded_theta_is_worth_the_recorded_value(name, kwargs):
    env = gym.make(name, **kwargs)
    best = env.unwrapped.best_known
    assert best.proof in PROOFS
    assert best.exact == (best.proof in ("closed form", "exact maximisation"))
    assert exact.objective(env, best.theta) == pytest.approx(best, rel=2e-6)  # digits of value and of θ


def test_best_known_values_are_numbers_that_say_where_they_are_from():
    best = BestKnown(1.5, "by hand", REPEATABLE, [0.5])
    again = pickle.loads(pickle.dumps(best))
    assert (float(again), again.source, again.proof, again.theta.tolist()) == (1.5, "by hand", REPEATABLE, [0.5])
    assert not again.exact
    assert repr(best) == "BestKnown(1.5, multi-start of the exact gradient: by hand)"
    assert BestKnown(1.0, "").proof == "best found"
    assert BestKnown(1.0, "", "closed form").exact
    with pytest.raises(ValueError, match="read-only"):
        best.theta[0] = 1.0
    with pytest.raises(ValueError, match="`proof` must be one of 'closed form', 'exact maximisation'"):
        BestKnown(1.0, "", True)
    with pytest.raises(ValueError, match="`value` must be finite, got nan"):
        BestKnown(float("nan"), "")
    with pytest.raises(TypeError, match="`value` must be a number, got '1'"):
        BestKnown("1", "")


def test_a_value_that_a_foreign_environment_tells_is_a_lower_bound():
    from bilevel_envs.core.problems import completed

    class Foreign:
        best_known = 2.5

    known = completed(Foreign()).best_known(None)
    assert known == 2.5
    assert known.proof == "best found"
    assert not known.exact


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        (13.9, TypeError, r"`best_known` of Wrong must return BestKnown\(value, source\) or None, got 13.9"),
        (BestKnown(1.0, "", theta=[1.0, 2.0]), ValueError, r"must have a θ of shape \[1\], got \[2\]"),
    ],
)
def test_a_hook_that_records_no_best_known_value_is_refused_where_it_is_asked(told, error, message):
    class Wrong(TollBridge):
        def best_known(self, preferences):
            return told

    for env in (TabularEnv(Wrong()), BilevelWrapper(TabularEnv(Wrong()))):
        with pytest.raises(error, match=message):
            env.best_known  # noqa: B018


def test_a_recorded_value_that_its_own_theta_does_not_reach_ends_with_1(monkeypatch, capsys):
    told = BestKnown(2.0, "a slip of the pen", theta=[0.0])
    monkeypatch.setattr(TollBridge, "best_known", lambda self, preferences: told)
    with pytest.raises(SystemExit) as end:
        main(["best-known", "BiLevel/TollBridge-v0"])
    assert end.value.code == 1
    assert "not reached at the θ that it records" in capsys.readouterr().err
