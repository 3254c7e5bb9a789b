"""The leaders' pages: every leader has one, and its tables are made of the code and of the recorded runs."""

import json
import re
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from leaders import LEADERS, History, Leader
from leaders.config import EstimatorConfig, LeaderConfig
from leaders.keywords import field_docs, options_of, parameters_of
from leaders.training.history import COLUMNS

ROOT = Path(__file__).parents[2]
SECTIONS = ("Curve to expect", "When it fails", "Options", "Logged columns", "Methods")


def module(name):
    spec = util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    found = sys.modules[spec.name] = util.module_from_spec(spec)  # where dataclasses look for their module
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def pages():
    return module("leader_pages")


@pytest.mark.parametrize("name", LEADERS)
def test_a_leaders_page_says_what_pages_of_leaders_say(name):
    text = (ROOT / f"docs/leader/{name}.md").read_text()
    assert text.startswith(f"# {LEADERS[name].__name__}\n")
    assert re.findall(r"(?m)^## (.*)$", text) == list(SECTIONS)
    for said in ("**Idea.**", "**Equation", "**Pseudo-code", "2603.14867", f"images/leaders/{name}.png"):
        assert said in text
    assert f"{LEADERS[name].__module__.replace('.', '/')}.py" in text


@pytest.mark.parametrize("page", sorted((ROOT / "docs/leader").glob("*.md")), ids=lambda page: page.stem)
def test_the_tables_are_those_of_the_code(page, pages):
    text = page.read_text()
    assert pages.MARK.search(text)
    assert pages.filled(page) == text, "run: python docs/leader_pages.py"


@pytest.mark.parametrize("name", LEADERS)
def test_a_page_lists_every_option_of_its_leader(name):
    text = (ROOT / f"docs/leader/{name}.md").read_text()
    for one in parameters_of(LEADERS[name]):
        assert one.name in ("self", "env") or f"\n| `{one.name}` | " in text


@pytest.mark.parametrize("name", LEADERS)
def test_a_page_documents_gradient_samples_where_the_leader_gives_them(name):
    text = (ROOT / f"docs/leader/{name}.md").read_text()
    leader = LEADERS[name]
    assert (f".. automethod:: leaders.{leader.__name__}.gradient_samples\n" in text) == leader.gives_samples
    assert any("_samples" in vars(base) for base in leader.__mro__ if base is not Leader) == leader.gives_samples


def test_every_option_and_column_is_documented():
    assert tuple(field_docs(History, "Columns")) == COLUMNS
    for config in (LeaderConfig, EstimatorConfig):
        assert set(field_docs(config)) == set(config.__dataclass_fields__)
    for leader in LEADERS.values():
        documented = field_docs(leader, "Args")
        own = {one.name for one in parameters_of(leader)} - {"self"}
        assert set(documented) == own, leader.__name__
        assert set(options_of(leader)) <= own


def test_the_runs_on_the_pages_are_those_that_the_script_makes():
    curves = module("leader_curves")
    found = json.loads(curves.DATA.read_text())
    assert list(found) == list(curves.keys())
    for key, run in found.items():
        world, name = key.split(maxsplit=1)
        assert run["iterations"] == curves.WORLDS[world].leaders[name]
        assert set(run["last"]) <= set(COLUMNS)
        lowest, highest = np.array(run["worst"]), np.array(run["best"])
        assert (lowest <= run["mean"]).all()
        assert (highest >= run["mean"]).all()
        assert np.all(highest <= run["best_known"] + 2e-3 * abs(run["best_known"]))


def test_a_recorded_run_is_what_its_command_makes():
    curves = module("leader_curves")
    key = "ToyMarkovGame exact"
    recorded = json.loads(curves.DATA.read_text())[key]
    again = curves.measured(*key.split())
    assert again["mean"] == pytest.approx(recorded["mean"], rel=1e-3)
    assert again["last"] == pytest.approx(recorded["last"], rel=1e-2, abs=1e-6)
