"""Recorded runs in real environments: pages show what the data files hold, and BC-HG ends where it must."""

import json
import re

import gymnasium as gym
import numpy as np
import pytest

from benchmarks import batch_size, best_known, estimators, followers, pendulum_physics, plateau, real
from leaders import exact, published
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


def test_figure_3_ends_where_its_page_says():
    rows = [line.split(" | ") for line in (DATA / "building-thermal-control.md").read_text().splitlines()]
    ends = {row[0].strip("| "): re.findall(r"-[\d.]+", row[2]) for row in rows if len(row) > 2 and row[1] == "2,000"}
    assert len(ends) == 8
    for name in ("BC-HG", 'BC-HG, gradient="pathwise"'):
        assert float(ends[name][1]) > -162.55  # the worst run; the best known is -162.503
    assert float(ends['BC-HG, gradient="score"'][1]) > -163
    at_one = exact.objective(gym.make("BiLevel/BuildingThermalControl-v0"), np.ones(8))
    assert at_one == pytest.approx(-197.249, abs=5e-4)
    assert float(ends["Naive-PGD"][0]) == pytest.approx(at_one, abs=0.02)
    page = (DATA.parent / "building_thermal_control.md").read_text()
    above = next(line for line in (DATA / "random-search.md").read_text().splitlines() if line.startswith("| above"))
    exactly, sampled = (float(share) for share in re.findall(r"([\d.]+)%", above)[:2])
    assert f"better than the published BC-HG is {exactly:.1f} %" in page
    assert f"what looked like {sampled:.0f} % of" in page


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


def test_the_readme_quotes_what_the_files_hold():
    page = (ROOT / "README.md").read_text().replace("−", "-")
    raw = ROOT / "benchmarks" / "leaderboard" / "raw"
    rooms, floor = (json.loads((raw / f"{run}.json").read_text()) for run in ("four-rooms--bchg", "warehouse--mbhg"))
    assert (rooms["budget"]["env_steps"], floor["budget"]["env_steps"]) == (300_000, 25_000)
    assert f"after 300,000 steps ten runs are at {sum(rooms['values']) / 10:.3f} of 1.623 in the mean" in page
    assert min(floor["values"]) >= 0.748
    assert "0.748 or more of 0.749 in 25,000 steps by each of ten runs of MBHG" in page
    curve = published.four_rooms("bchg", 0.005, 100)
    assert f"is at {curve.at(3_000)[0]:.2f} then and at {curve.at(10_000)[0]:.3f} after" in page
    large = json.loads((DATA / "large_warehouse.json").read_text())
    gradient, sampled = (large[name]["leader_value"] for name in ("exact gradient", "BC-HG"))
    assert f"go from {large['at_zero']:.3f} to {gradient[100]:.3f}, and 100 of BC-HG" in page
    assert f"at batch 200,000 to {sampled[100]:.3f}" in page
    (row,) = [line for line in (DATA / "bilevel-lqr.md").read_text().splitlines() if line.startswith("| BC-HG |")]
    worst = float(row.split("|")[4])
    assert 18.26 <= worst < 18.27
    assert "every one of twenty 18.26 or more of 18.43" in page
