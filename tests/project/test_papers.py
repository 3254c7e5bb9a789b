"""The papers of a release are true: badges, citation, the picture of imports, issue templates, the save format."""

import io
import json
import re
import tomllib
import zipfile
from importlib import util
from pathlib import Path

import pytest
import torch
import yaml

from leaders import BCHG
from leaders.config import EstimatorConfig, LeaderConfig
from leaders.training.history import COLUMNS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def module(name):
    spec = util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    found = util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_badges_say_what_the_project_file_says():
    badges = module("badges")
    made = badges.badges()
    assert {path.name: path.read_text() for path in badges.OUT.glob("*.svg")} == made, "run: python docs/badges.py"
    shown = re.findall(r"!\[\w+\]\(docs/images/badges/([\w.]+)\)", (ROOT / "README.md").read_text())
    assert sorted(shown) == sorted(made)


def test_the_citations_agree():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    readme = (ROOT / "README.md").read_text()
    paper = cited["preferred-citation"]
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    assert f"version = {{{PROJECT['version']}}}" in readme
    assert f"{{{paper['title']}}}" in readme
    names = [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]]
    assert f"{{{' and '.join(names)}}}" in readme


def test_the_picture_of_imports_is_that_of_the_code():
    imports = module("imports")
    assert json.loads(imports.DATA.read_text()) == imports.imports(), "run: python docs/imports.py"


def test_what_the_picture_leaves_out_follows_from_what_it_shows():
    essential = module("imports").essential
    found = {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["a", "c"], "e": ["a", "b"]}
    assert essential(found) == {"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["b"]}


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_an_issue_template_is_a_form(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert set(form) == {"name", "description", "labels", "body"}
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    names = [part["id"] for part in asked]
    assert len(names) == len(set(names)) >= 3
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in asked)


def test_the_page_of_the_save_format_lists_what_is_saved(make, tmp_path):
    path = tmp_path / "leader.zip"
    BCHG(make("TollBridge"), seed=0).learn(2).save(path)
    page = (ROOT / "docs/save_format.md").read_text()

    def listed(head):
        rows = page.partition(f"| {head} |")[2].partition("\n\n")[0]
        return set(re.findall(r"(?m)^\| `([\w.]+)` \|", rows))

    with zipfile.ZipFile(path) as file:
        assert set(file.namelist()) == listed("member")
        assert set(json.loads(file.read("leader.json"))) == listed("in `leader.json`") - {"contexts"}
        state = torch.load(io.BytesIO(file.read("state.pt")), weights_only=True)
    assert set(state) == listed("in `state.pt`")


def test_migration_leads_to_names_that_exist():
    rows = (ROOT / "docs/versioning.md").read_text().partition("| was | is |")[2].partition("\n\n")[0]
    options = {*EstimatorConfig.__dataclass_fields__, *LeaderConfig.__dataclass_fields__}
    was, now = set(), set()
    for row in rows.splitlines()[2:]:
        before, after = row.strip("| ").split(" | ")
        if re.match(r"`\w+(=|`$)", after) and "Error" not in after:
            was.add(re.match(r"`(\w+)", before)[1])
            now.add(re.match(r"`(\w+)", after)[1])
        elif column := re.match(r'`history\["(\w+)"\]`', after):
            assert column[1] in COLUMNS
    assert now == {"gradient", "control_variate", "score_weight", "guiding", "tail"}
    assert now <= options
    assert not was - {"tail"} & options
