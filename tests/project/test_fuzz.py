"""A short round of the fuzzer, and that its judge sees what is wrong. The long one: python -m tests.fuzz."""

import json
import warnings
from importlib.metadata import version

import numpy as np
import pytest

from tests.fuzz import KINDS, Args, Case, case, fuzz, judge, run


@pytest.mark.slow
def test_random_input_works_or_is_refused_by_name():
    assert fuzz(200, seed=19, tell=lambda line: None).faults == []


def test_a_round_is_recorded(tmp_path):
    path = tmp_path / "fuzz.json"
    with pytest.raises(SystemExit, match="0"):
        run(Args(cases=3, seed=2, kinds=("study",), out=path))
    told = json.loads(path.read_text())
    assert told["seconds"] > 0
    assert {name: told[name] for name in ("cases", "seed", "kinds", "faults", "version")} == {
        "cases": 3, "seed": 2, "kinds": {"study": 3}, "faults": [], "version": version("bilevel-envs"),
    }  # fmt: skip


def test_a_number_makes_the_same_case_again():
    first, again = ([case(3, index, list(KINDS))[1].told for index in range(200)] for _ in range(2))
    assert [told.partition(" at 0x")[0] for told in first] == [told.partition(" at 0x")[0] for told in again]


def spin():
    while True:
        pass


def nameless():
    raise ValueError("no")


def named():
    raise ValueError("`size` must be less")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: [][1], "IndexError"),
        (lambda: {}["a"], "KeyError"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: np.log(np.zeros(1)), "RuntimeWarning"),
        (lambda: np.zeros(3 * 2**28), "MemoryError"),
        (nameless, "refused without a name"),
        (spin, "took more than 0.2 s"),
        (lambda: "NaN", "went through, but: NaN"),
        (lambda: None, None),
        (named, None),
        (lambda: warnings.warn("of ours", UserWarning, stacklevel=1), None),
    ],
)
def test_the_judge_passes_what_works_or_is_refused_by_name_and_nothing_else(run, said):
    wrong = judge(Case("", ("size",), run), seconds=0.2)
    assert wrong is None if said is None else said in wrong
