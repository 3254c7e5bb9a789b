"""Each tutorial script runs at toy size."""

import ctypes.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from leaders.cli.doctor import OPTIONAL

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCS = EXAMPLES.parent / "docs"


@pytest.mark.slow
def test_the_four_rooms_script_runs(tmp_path):
    command = [
        sys.executable,
        str(EXAMPLES / "four_rooms.py"),
        "--iterations",
        "5",
        "--runs",
        "2",
        "--out",
        str(tmp_path),
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "J_L = -0.6674" in out  # four_rooms specification, section 6
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "incentives.png", "leader.zip"}


@pytest.mark.slow
def test_the_building_thermal_control_script_runs(tmp_path):
    script = str(EXAMPLES / "building_thermal_control.py")
    size = ["--iterations", "2", "--runs", "2", "--batch", "200", "--out", str(tmp_path)]
    out = subprocess.run([sys.executable, script, *size], capture_output=True, text=True, check=True).stdout
    assert "J_L = -261.9631" in out  # building specification, θ = 1/2
    assert {path.name for path in tmp_path.iterdir()} == {"building.png", "leader.zip"}


@pytest.mark.slow
def test_the_markov_game_script_runs(tmp_path):
    script = str(EXAMPLES / "markov_game.py")
    size = ["--iterations", "2", "--runs", "2", "--out", str(tmp_path)]
    out = subprocess.run([sys.executable, script, *size], capture_output=True, text=True, check=True).stdout
    assert "f(0|A) = 0.5: the follower goes to A with probability 0.988; J_L = 39.938" in out
    assert {path.name for path in tmp_path.iterdir()} == {"game.png", "leader.zip"}


@pytest.mark.slow
def test_the_sb3_follower_script_ends_better_than_it_starts(tmp_path):
    command = [sys.executable, str(EXAMPLES / "sb3_follower.py"), "--out", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "after 8000 steps the soft return is" in out
    before, after = re.search(r"BC-HG leads SAC: exact J_L from (\S+) to (\S+),", out).groups()
    assert float(before) == pytest.approx(-261.6, abs=0.5)  # raw parameters of N(0, 0.01²): θ is 1/2 but for that
    assert float(after) > float(before) + 20  # a fifth of what there is to win; the exact controller is led further
    assert {path.name for path in tmp_path.iterdir()} == {"sac.png"}


@pytest.mark.slow
def test_the_observed_follower_script_runs(tmp_path):
    script = str(EXAMPLES / "observed_follower.py")
    size = ["--iterations", "2", "--runs", "2", "--out", str(tmp_path)]
    out = subprocess.run([sys.executable, script, *size], capture_output=True, text=True, check=True).stdout
    assert "100000 transitions watched: cosine to the exact hypergradient 0.9" in out
    assert {path.name for path in tmp_path.iterdir()} == {"observed.png"}


@pytest.mark.slow
def test_the_guided_pendulum_script_ends_better_than_it_starts(tmp_path):
    command = [sys.executable, str(EXAMPLES / "guided_pendulum.py"), "--out", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    number = r"J_L ≈ (\S+) ± (\S+), upright in (\S+)%"
    first, led = (re.search(f"^{name} wind: {number}", out, re.MULTILINE).groups() for name in ("first", "led"))
    (before, error, _), (after, its_error, upright) = (map(float, row) for row in (first, led))
    assert after - before > 2 * (error**2 + its_error**2) ** 0.5
    assert upright > 80  # it still balances: the leader did not win by spoiling the follower
    assert {path.name for path in tmp_path.iterdir()} == {"pendulum.png"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "files"),
    [([], {"warehouse.png", "warehouse.mp4"}), (["--rows", "9", "--columns", "13"], {"warehouse.png"})],
)
def test_the_warehouse_script_runs(tmp_path, size, files):
    command = [sys.executable, str(EXAMPLES / "warehouse.py"), "--iterations", "1", "--out", str(tmp_path), *size]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "in 1 iterations" in out
    if not size:
        assert "no limits: J_L = -0.8849" in out
        assert "−3 in the zone, 3 elsewhere: J_L = 0.6536" in out
    assert {path.name for path in tmp_path.iterdir()} == files


@pytest.mark.slow
def test_the_contexts_script_runs(tmp_path):
    command = [sys.executable, str(EXAMPLES / "contexts.py"), "--iterations", "4", "--unseen", "20", "--runs", "2"]
    out = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "10,506 pairs: 8,405 to train on, 20 of the others to look at" in out
    assert {path.name for path in tmp_path.iterdir()} == {"contexts.png", "contexts.json"}


@pytest.mark.slow
def test_the_pendulum_script_runs(tmp_path):
    command = [sys.executable, str(EXAMPLES / "real" / "pendulum_physics.py"), "--iterations", "1"]
    out = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    first, last, trust, _ = out.splitlines()
    # Twenty episodes of an agent after 6,000 steps; soft value iteration on a grid has −45.25 for the optimal one.
    value, error = re.fullmatch(r"θ = \[0.5 0.5 0.5\]: J_L ≈ (-\S+) ± (\S+)", first).groups()
    assert abs(float(value) + 45.25) < 4 * float(error)
    assert "after 17,500 steps" in last  # 6,000 + 1,500 of the agent, 8,000 + 2,000 of the leader
    assert float(re.search(r"R² = (\S+) on held-out", trust).group(1)) > 0.9
    assert {path.name for path in tmp_path.iterdir()} == {"pendulum.png", "pendulum.mp4"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "line"),
    [
        ("deep_sea_treasure", "mo_gymnasium", 'pip install --no-deps "mo-gymnasium==1.3.2"'),
        ("water_reservoir", "mo_gymnasium", 'pip install --no-deps "mo-gymnasium==1.3.2"'),
        ("reacher", "mujoco", 'pip install "bilevel-envs[real]"'),
    ],
)
def test_a_real_environment_that_is_not_there_is_asked_for(name, module, line):
    script = str(EXAMPLES / "real" / f"{name}.py")
    code = f"import sys, runpy; sys.modules[{module!r}] = None; runpy.run_path({script!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert line in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep_sea_treasure", "water_reservoir", "reacher", "pendulum_physics"])
def test_what_a_film_needs_is_asked_for_before_anything_is_learnt(name, tmp_path):
    script, there = EXAMPLES / "real" / f"{name}.py", "sys.modules.setdefault"
    modules = f"{there}('mujoco', sys); {there}('mo_gymnasium', sys)"  # which are asked for first
    code = f"import sys, runpy; {modules}; sys.modules['moviepy'] = None; runpy.run_path({str(script)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert 'a film needs moviepy: pip install "bilevel-envs[video]"' in done.stderr
    assert re.search(r'(?m)^Needs: .*"bilevel-envs\[(\w+,)?video\]"', script.read_text())


@pytest.mark.slow
def test_the_robot_arm_runs(tmp_path):
    size = ["--iterations", "1", "--first", "300", "--judge", "300", "--seeds", "0", "1"]
    draws = ctypes.util.find_library("EGL") is not None
    command = [sys.executable, str(EXAMPLES / "real" / "reacher.py"), *size, "--out", str(tmp_path)]
    gl = os.environ | {"MUJOCO_GL": "egl" if draws else "disabled"}
    done = subprocess.run(command + ["--no-film"] * (not draws), capture_output=True, text=True, cwd=tmp_path, env=gl)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "reacher.json").read_text())
    assert [one["steps"] for one in found.values()] == [1_300, 1_300]
    assert found["bchg 0"]["start"] == found["bchg 1"]["start"] < -20  # an arm that has learnt nothing
    assert {path.name for path in tmp_path.glob("reacher.*")} >= {"reacher.png", "reacher.json"}
    assert (tmp_path / "reacher.mp4").exists() == draws


def test_every_real_environment_has_its_page_and_no_extra_pulls_pygame():
    page = (DOCS / "real_environments.md").read_text()
    for script in (EXAMPLES / "real").glob("*.py"):
        assert f"({script.stem}.md)" in page
        assert f"python examples/real/{script.name}" in (DOCS / f"{script.stem}.md").read_text()
    extras = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {re.match(r"[\w-]+", one).group() for extra in extras.values() for one in extra}
    assert "pygame-ce" in named
    assert not named & {"pygame", "mo-gymnasium"}  # which would replace the files of pygame-ce


@pytest.mark.slow
def test_the_install_line_of_the_real_environments_works(tmp_path):
    line = ["--no-deps", "mo-gymnasium==1.3.2"]
    told = f'pip install {line[0]} "{line[1]}"'
    scripts = [EXAMPLES / "real" / f"{name}.py" for name in ("deep_sea_treasure", "water_reservoir")]
    pages = [DOCS / f"{name}.md" for name in ("own_environment", "real_environments", *(one.stem for one in scripts))]
    assert all(told in path.read_text() for path in scripts + pages)
    assert told in OPTIONAL["mo_gymnasium"][0]  # of `bilevel doctor`
    packages = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(packages), *line]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"no package index within reach: {installed.stderr.strip().splitlines()[-1]}")
    path = {"PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])}
    for script, further in zip(scripts, (["--problem", "prices"], []), strict=True):
        command = [sys.executable, str(script), "--iterations", "1", "--out", str(tmp_path / script.stem), *further]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
        assert done.returncode == 0, done.stderr
        assert "J_L = " in done.stdout
        assert {path.suffix for path in (tmp_path / script.stem).iterdir()} >= {".png", ".mp4"}
