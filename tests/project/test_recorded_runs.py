"""Recorded runs in real environments: pages show what the data files hold, and BC-HG ends where it must."""

import json

import pytest

from benchmarks import batch_size, best_known, estimators, followers, pendulum_physics, plateau, real
from tests.project.measures import ROOT

DATA = ROOT / "docs" / "data"
RUNS = json.loads((DATA / "real.json").read_text())
LEAST = {"contract": 4.6, "prices": 5.88, "reservoir": -402.0, "reacher": -41.0}  # of each seed


MADE = {"real": real.table, "pendulum_physics": pendulum_physics.table} | {
    "plateau": plateau.table,
    "best_known": best_known.table,
}


@pytest.mark.parametrize("name", MADE)
def test_pages_show_what_the_files_hold(name):
    assert (DATA / f"{name}.md").read_text() == MADE[name](json.loads((DATA / f"{name}.json").read_text()))


def test_odd_input_and_killed_studies_left_no_fault():
    fuzz = json.loads((DATA / "fuzz.json").read_text())
    assert fuzz["cases"] >= 20_000
    assert len(fuzz["kinds"]) == 9
    assert fuzz["faults"] == []
    for seed in json.loads((DATA / "killed_sweeps.json").read_text()).values():
        assert sum(seed["kills"].values()) >= 200
        assert seed["faults"] == []
        assert len(seed["resumes_from_a_checkpoint"]) == 5
        assert min(seed["resumes_from_a_checkpoint"].values()) > 0


@pytest.mark.parametrize("part", estimators.PARTS)
def test_tables_of_estimators_show_what_their_file_holds(part):
    _, table = estimators.PARTS[part]
    assert (DATA / f"estimators_{part}.md").read_text() == table(
        json.loads((DATA / "estimators.json").read_text())[part]
    )


@pytest.mark.parametrize(
    ("name", "made"), [("batch_size", batch_size.declines), ("batch_size_mended", batch_size.mendings)]
)
def test_tables_of_batch_sizes_show_what_their_file_holds(name, made):
    assert (DATA / f"{name}.md").read_text() == made(json.loads((DATA / "batch_size.json").read_text()))


@pytest.mark.parametrize("part", ["observed", "soft-dqn", "sac", "tax"])
def test_tables_of_followers_show_what_their_file_holds(part):
    _, table = followers.PARTS[part]
    assert (DATA / f"followers_{part}.md").read_text() == table(json.loads((DATA / "followers.json").read_text())[part])


@pytest.mark.parametrize("problem", LEAST)
def test_bc_hg_ends_where_it_must_in_each_of_three_seeds(problem):
    ended = [RUNS[f"{problem}; bchg; {seed}"] for seed in range(3)]
    assert all(run["value"] > LEAST[problem] > run["start"] for run in ended)


def test_the_pendulum_ends_above_minus_35_in_each_of_three_seeds():
    runs = json.loads((DATA / "pendulum_physics.json").read_text())
    assert all(runs[f"bchg; {seed}"]["objective"][-1] > -35 for seed in range(3))


@pytest.mark.parametrize("beta", [0.001, 0.003, 0.005])
def test_figure_2_is_reproduced_to_its_end(beta):
    _, _, *rows = (DATA / f"four-rooms-beta{beta}.md").read_text().splitlines()
    assert sum("| 10,000 |" in row for row in rows) == 5
    assert all(row.endswith("| agrees |") for row in rows)


def test_the_page_of_contexts_shows_what_its_file_holds():
    found = json.loads((DATA / "contexts.json").read_text())
    page = (DATA.parent / "contexts.md").read_text()
    assert f"| no penalties | {found['no penalties']:.3f} |" in page
    for name, curves in found.items():
        if name not in ("iterations", "no penalties"):
            last = curves[-1]
            shown = f"{sum(last) / len(last):.3f} ({min(last):.3f} to {max(last):.3f})"
            assert f"| {name} | {shown} |" in page


def test_the_page_of_large_tables_shows_what_its_file_holds():
    found = json.loads((DATA / "large_warehouse.json").read_text())
    page = (DATA.parent / "large_tables.md").read_text().replace("−", "-")
    for name in ("exact gradient", "BC-HG"):
        curve = found[name]["leader_value"]
        shown = " | ".join(f"{curve[k]:.3f}" for k in (10, 50, 100))
        assert any(line.startswith(f"| {name}") and shown in line for line in page.splitlines())
