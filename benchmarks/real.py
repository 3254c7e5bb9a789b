"""Leaders in real environments at equal environment steps, the leader's and the follower's together.

Every row of the data file is a run of an example of `examples/real`; runs that are there already are not repeated.
`docs/real_environments.md` includes the table.

Needs: pip install --no-deps "mo-gymnasium==1.3.2", and the extra `real` for the robot arm
Run: python benchmarks/real.py [--problems contract prices reservoir reacher] [--leaders bchg ...] [--seeds 0 1]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import Record  # noqa: E402
from benchmarks.seeds import with_interval  # noqa: E402
from bilevel_envs.core.checks import check_choice  # noqa: E402


@dataclass(frozen=True)
class Problem:
    """An example, as the benchmark runs it.

    Attributes:
      name: of the problem, in the table.
      script: its file.
      flags: that it is run with, beside leader, seed and folder.
      result: the file that it writes.
      optimum: best J_L known; None for none.
      digits: decimals of J_L in the table.
    """

    name: str
    script: str
    flags: tuple[str, ...]
    result: str
    optimum: float | None
    digits: int


PROBLEMS = {
    "contract": Problem(
        "deep-sea treasure, contract, θ ∈ R²",
        "deep_sea_treasure.py",
        ("--problem", "contract", "--iterations", "50"),
        "contract.json",
        4.81,
        2,
    ),
    "prices": Problem(
        "deep-sea treasure, price list, θ ∈ R¹⁰",
        "deep_sea_treasure.py",
        ("--problem", "prices", "--iterations", "50"),
        "prices.json",
        5.966,
        2,
    ),
    "reservoir": Problem(
        "water reservoir, two fines", "water_reservoir.py", ("--iterations", "46"), "reservoir.json", -393.6, 1
    ),
    "reacher": Problem(
        "robot arm, two prices",
        "reacher.py",
        (
            *("--iterations", "25", "--learning-rate", "0.1", "--first", "10000"),
            *("--judge", "12000", "--judges", "4", "--no-film"),
        ),
        "reacher.json",
        None,
        1,
    ),
}


@dataclass
class Real:
    """Runs what is missing and writes data and table."""

    problems: tuple[str, ...] = tuple(PROBLEMS)
    leaders: tuple[str, ...] = ("bchg", "cmaes", "zeroth-order", "naive-pgd")
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = ROOT / "docs" / "data" / "real.json"

    def run(self) -> None:
        """Run by run."""
        for problem in self.problems:
            check_choice(problem, PROBLEMS, "problems")
        for leader in self.leaders:
            check_choice(leader, Real.leaders, "leaders")
        record = Record(self.out)
        for leader in self.leaders:
            for problem in self.problems:
                missing = [seed for seed in self.seeds if f"{problem}; {leader}; {seed}" not in record.found]
                found = _runs(problem, leader, missing) if missing else {}
                for seed in missing:
                    record.get(f"{problem}; {leader}; {seed}", lambda key=f"{leader} {seed}", runs=found: runs[key])
        record.table(table(record.found))


def _runs(name: str, leader: str, seeds: list[int]) -> dict[str, dict[str, float]]:
    """What the example writes of a leader with some seeds."""
    problem = PROBLEMS[name]
    with tempfile.TemporaryDirectory() as folder:
        flags = [*problem.flags, "--leaders", leader, "--seeds", *map(str, seeds), "--out", folder]
        command = [sys.executable, str(ROOT / "examples" / "real" / problem.script), *flags]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}; {leader} failed:\n{done.stderr or done.stdout}")
        return json.loads((Path(folder) / problem.result).read_text())


def table(runs: dict[str, dict[str, float]]) -> str:
    """A table per problem: by leader, J_L of each seed, and from three on their mean with a 95 % interval."""
    lines = []
    for key, problem in PROBLEMS.items():
        found = {}
        for leader in Real.leaders:
            mine = [run for name, run in runs.items() if name.split("; ")[:2] == [key, leader]]
            if mine:
                found[leader] = mine
        if found:
            start = next(iter(found.values()))[0]["start"]
            optimum = "" if problem.optimum is None else f", optimum {problem.optimum}"
            lines += [f"**{problem.name}**: start {start:.{problem.digits}f}{optimum}", ""]
            lines += ["| leader | J_L at the end | steps of both |", "|---" * 3 + "|"]
            lines += [_row(leader, mine, problem.digits) for leader, mine in found.items()] + [""]
    return "\n".join(lines)


def _row(leader: str, runs: list[dict[str, float]], digits: int) -> str:
    """A leader's line."""
    spent = [run["steps"] for run in runs]
    steps = " to ".join(f"{count:,}" for count in sorted({min(spent), max(spent)}))
    return f"| {leader} | {with_interval([run['value'] for run in runs], digits)} | {steps} |"


if __name__ == "__main__":
    tyro.cli(Real).run()
