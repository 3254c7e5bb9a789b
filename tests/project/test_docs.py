"""What the documents say is true: names exist, snippets run, the table of the mathematics is right."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest

from bilevel_envs.followers import FOLLOWERS
from bilevel_envs.registration import PROBLEMS
from leaders import LEADERS

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/leader").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_a_page_stands_in_a_block_that_is_run(page):
    text = page.read_text()
    assert set(re.findall(r"```[ \t]*(py\w*)", text)) <= {"python"}
    assert not re.search(r"(?m)^    (from \S+ )?import ", BLOCK.sub("", text))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_snippets_run_as_they_stand(page, tmp_path):
    text = page.read_text()
    blocks = BLOCK.findall(text)
    code = "import torch; torch.set_num_threads(1)\n" + "\n".join(blocks)
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    for shown in re.findall(r"\nprints\n\n((?:    .*\n)+)", text):
        assert dedent(shown) in done.stdout


def rows_of_math_table():
    for line in (ROOT / "docs/math_to_code.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[3].startswith("`"):
            module = cells[3].strip("`")
            for name in re.findall(r"`([^`]+)`", cells[1]):
                yield module, name


def test_the_table_of_the_mathematics_names_what_exists():
    rows = list(rows_of_math_table())
    assert len(rows) > 20
    for module, dotted in rows:
        holder = import_module(module)
        first, *rest = dotted.split(".")
        thing = getattr(holder, first)
        for name in rest:
            declared = {f.name for f in fields(thing)} if is_dataclass(thing) else set()
            assert name in declared or hasattr(thing, name), f"{module}.{dotted}"
        home = getattr(thing, "__module__", module)
        assert f"{home}.".startswith(f"{module}."), f"{dotted} lives in {home}"


def test_every_environment_leader_and_follower_has_its_page():
    index = (ROOT / "docs/index.md").read_text()
    for name in PROBLEMS:
        assert f"generated/env-{name.split('/')[1].removesuffix('-v0')}\n" in index
    for name in LEADERS:
        assert f"leader/{name}\n" in index
    for cls in FOLLOWERS.values():
        assert f"generated/follower-{cls.__name__}\n" in index


def test_what_code_on_a_page_imports_is_public():
    listed = (ROOT / "docs/versioning.md").read_text()
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            for module in re.findall(r"(?m)^ *from ((?:bilevel_envs|leaders)[\w.]*) import", block):
                assert f"`{module}`" in listed, f"{page.name} imports from {module}"


def test_every_local_link_leads_somewhere():
    folders = ("", "docs", "docs/leader", "benchmarks", "benchmarks/leaderboard")
    for page in [page for folder in folders for page in (ROOT / folder).glob("*.md")]:
        prose = re.sub(r"(?m)^    .*$|```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", prose):
            if "://" in target:
                continue
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_speaks_of_the_project_alone():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    hosts = re.compile(
        "|".join(["python" + "hosted", "pypi" + r"\.org", "npm" + r"js\.org", "/ro" + "ot/", "/wo" + "rk/"])
    )
    for name in tracked.stdout.split("\0"):
        path = ROOT / name
        if name and path.suffix in {".py", ".md", ".toml", ".ipynb", ".txt", ".cff", ".yaml", ""} and path.is_file():
            assert not hosts.search(path.read_text(errors="ignore")), name


def test_the_errata_name_tests_that_exist():
    named = re.findall(r"\]\(\.\./(tests/[\w/]+\.py)(?: \"(\w+)\")?\)", (ROOT / "docs/errata.md").read_text())
    assert len(named) > 25
    for path, test in named:
        text = (ROOT / path).read_text()
        assert not test or f"\ndef {test}(" in text, f"{path} has no {test}"


SECTIONS = (
    "Description",
    "Action Space",
    "Observation Space",
    "Starting State",
    "Configuration",
    "Reward",
    "Leader Reward",
    "Episode End",
    "Information",
    "Arguments",
    "Version History",
)


@pytest.mark.parametrize("name", PROBLEMS)
def test_an_environments_page_has_equations_spaces_both_rewards_best_known_and_history(name):
    module, cls = PROBLEMS[name][0].split(":")
    problem = getattr(import_module(module), cls)
    text = inspect.getdoc(problem)
    inherited = [base for base in problem.__mro__[1:] if f"As ``{base.__name__}``" in text]
    if inherited:  # the rest is told on the page of the environment that it is a form of
        assert "Version History:\n" in text
        text = inspect.getdoc(inherited[0])
    for section in SECTIONS:
        assert f"\n{section}:\n" in text, section
    assert "\nBest Known:\n" in text or "\nOptimum:\n" in text
    assert ".. math::" in text
    assert f"v{name.rpartition('-v')[2]}: " in text.partition("Version History:\n")[2]
    first = text.splitlines()[0]
    assert first.endswith(".")
