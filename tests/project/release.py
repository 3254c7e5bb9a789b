"""Builds the release twice, and tries it as a stranger would: in new environments, away from the checkout.

Each case is a virtual environment of its own: the wheel or the sdist; core dependencies alone, with every extra, or in
the oldest versions that `pyproject.toml` allows. Cases whose Python is not on this machine are left out and said to be.
What each case installed and whether it passed is kept in docs/data/release.json, also from other machines.

Run: make release, or: python -m tests.project.release [--cases wheel sdist extras oldest] [--pythons python3.11 ...]
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[2]
EXTRAS = "render,video,tables,optuna,ray,mlflow,wandb,slurm,real"
TOLD = ("gymnasium", "pettingzoo", "stable-baselines3", "numpy", "scipy", "torch", "numba", "matplotlib")
NOT_OLDEST = {"torch"}  # builds without CUDA are not to be had from PyPI; the version of constraints.txt is taken
SMOKE = """
import gymnasium, numpy as np
import bilevel_envs
from bilevel_envs import BilevelWrapper
from leaders import BCHG, MBHG, exact
assert "site-packages" in bilevel_envs.__file__
env = BilevelWrapper(gymnasium.make("BiLevel/FourRooms-v0"))
assert 1.6 < env.best_known < 1.7  # its theta is a file of the package
leader = BCHG(env, seed=0).learn(2)
leader.save("leader.zip")
np.testing.assert_array_equal(BCHG.load("leader.zip", env).learn(1).theta, leader.learn(1).theta)
assert np.isfinite(exact.hypergradient(env, leader.theta)).all()
MBHG(BilevelWrapper(gymnasium.make("BiLevel/TollBridge-v0")), seed=0).learn(2)
for name in ("BuildingThermalControl", "TaxDesign-small", "Warehouse", "ToyMarkovGame", "BilevelLQR"):
    BCHG(BilevelWrapper(gymnasium.make(f"BiLevel/{name}-v0")), seed=0).learn(1)
agent = BilevelWrapper(
    gymnasium.make("BiLevel/TollBridge-v0"),
    bilevel_envs.followers.SB3Follower("SoftDQN", 20, learning_starts=10, policy_kwargs={"net_arch": [8]}),
)
BCHG(agent, seed=0, batch_size=40).learn(1)
print("passed")
"""
COMMANDS = (
    "bilevel envs",
    "bilevel doctor",
    "bilevel train --env BiLevel/TollBridge-v0 --iterations 3 --no-progress --out run",
    "bilevel sweep --settings env=BiLevel/TollBridge-v0 iterations=2 runs=2 --processes 1 --no-progress --out study",
    "bilevel report study",
)


@dataclass
class Release:
    """What is tried."""

    cases: tuple[str, ...] = ("wheel", "sdist", "extras", "oldest")
    pythons: tuple[str, ...] = ("python3.11", "python3.12", "python3.13")
    out: Path = ROOT / "docs" / "data" / "release.json"

    def run(self) -> None:
        """Builds, installs, tries."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            sums = [built(folder / one) for one in ("first", "second")]
            same = sums[0] == sums[1]
            print(
                f"built twice, {'the same' if same else 'NOT the same'} bit for bit: {', '.join(sums[0])}", flush=True
            )
            cases: dict[str, dict[str, object]] = {}
            kept = json.loads(self.out.read_text())["cases"] if self.out.exists() else {}
            for python in self.pythons:
                for case in self.cases:
                    name = f"{case}, {python}"
                    cases[name] = (
                        tried(case, python, folder)
                        if shutil.which(python)
                        else kept.get(name, {"left out": "not here"})
                    )
                    print(f"{name}: {cases[name]}", flush=True)
            self.out.write_text(json.dumps({"reproducible": same, "cases": kept | cases}, indent=1) + "\n")
            sys.exit(1 if not same or any("failed" in outcome for outcome in cases.values()) else 0)


def built(folder: Path) -> dict[str, str]:
    """Builds what is committed, in a copy; SHA-256 of each file."""
    copy = folder / "copy"
    copy.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", copy], input=archive, check=True)
    when = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True)
    environment = os.environ | {"SOURCE_DATE_EPOCH": when.stdout.strip()}
    command = [sys.executable, "-m", "build", "--outdir", folder / "dist", copy]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted((folder / "dist").iterdir())}


def tried(case: str, python: str, folder: Path) -> dict[str, object]:
    """Installs one case and tries it; versions and outcome."""
    place = folder / f"{case}-{python}"
    place.mkdir()
    pattern = "*.tar.gz" if case == "sdist" else "*.whl"
    package = next((folder / "first" / "dist").glob(pattern))
    subprocess.run([python, "-m", "venv", place / "venv"], check=True)
    binaries = place / "venv" / "bin"
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(oldest() if case == "oldest" else pinned()) + "\n")
    wanted = f"{package}[{EXTRAS}]" if case == "extras" else str(package)
    install = [binaries / "pip", "install", "-q", "--disable-pip-version-check", "-c", constraints, wanted]
    steps: list[tuple[str, list[str | Path]]] = [("installation", install)]
    steps += [("the library", [binaries / "python", "-c", SMOKE])]
    steps += [(command, [binaries / command.split()[0], *command.split()[1:]]) for command in COMMANDS]
    quiet = {"PYTHONPATH": "", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    for what, step in steps:
        done = subprocess.run(step, cwd=place, capture_output=True, text=True, env=os.environ | quiet)
        if done.returncode:
            return {"failed": what, "said": (done.stderr or done.stdout).strip().splitlines()[-1:]}
    listed = subprocess.run([binaries / "pip", "list", "--format", "json"], capture_output=True, text=True, check=True)
    versions = {re.sub("[-_.]+", "-", one["name"]).lower(): one["version"] for one in json.loads(listed.stdout)}
    return {"passed": len(steps), "versions": {name: versions[name] for name in TOLD}}


def pinned() -> list[str]:
    """The versions of constraints.txt that decide which build is taken; the others are the newest."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in NOT_OLDEST]


def oldest() -> list[str]:
    """Each core dependency in the oldest version that is allowed."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(wanted), re.MULTILINE)
    return [f"{name}=={version}" for name, version in lowest if name not in NOT_OLDEST] + pinned()


if __name__ == "__main__":
    tyro.cli(Release).run()
