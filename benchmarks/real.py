"""Leaders in real environments at equal environment steps, the leader's and the follower's together.

Every row of the data file is a run of an example of `examples/real`; runs that are there already are not repeated.
`docs/real_environments.md` includes the table.

Needs: pip install --no-deps "mo-gymnasium==1.3.2"
Run: python benchmarks/real.py [--problems contract prices] [--leaders bchg cmaes naive-pgd zeroth-order] [--seeds 0 1]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
ITERATIONS = {"contract": 50, "prices": 50}  # of 4,000 steps
OPTIMA = {"contract": 4.81, "prices": 5.966}
NAMES = {"contract": "deep-sea treasure, contract, θ ∈ R²", "prices": "deep-sea treasure, price list, θ ∈ R^10"}


@dataclass
class Real:
    """Runs what is missing and writes data and table."""

    problems: tuple[str, ...] = tuple(ITERATIONS)
    leaders: tuple[str, ...] = ("bchg", "cmaes", "naive-pgd", "zeroth-order")
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = ROOT / "docs" / "data" / "real.json"

    def run(self) -> None:
        """Run by run."""
        for leader in self.leaders:
            for problem in self.problems:
                for seed in self.seeds:
                    self._run_one(problem, leader, seed)
        self.out.with_suffix(".md").write_text(table(self._kept()))

    def _kept(self) -> dict[str, dict[str, float]]:
        return json.loads(self.out.read_text()) if self.out.exists() else {}

    def _run_one(self, problem: str, leader: str, seed: int) -> None:
        key = f"{problem}; {leader}; {seed}"
        if key in self._kept():
            return
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--problem", problem, "--leaders", leader, "--seeds", str(seed), "--out", folder]
            command = [sys.executable, str(ROOT / "examples" / "real" / "deep_sea_treasure.py"), *flags]
            command += ["--iterations", str(ITERATIONS[problem])]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
            (found,) = json.loads((Path(folder) / f"{problem}.json").read_text()).values()
        self.out.write_text(json.dumps(self._kept() | {key: found}, indent=1) + "\n")  # others may have written
        print(key, found, flush=True)


def table(runs: dict[str, dict[str, float]]) -> str:
    """By problem and leader: J_L of each seed, and from three on their mean with a 95 % interval of Student's t."""
    from scipy.stats import t

    lines = ["| world | optimum | start | leader | J_L after 200,000 steps | seeds | CPU s |", "|---" * 7 + "|"]
    for problem, name in NAMES.items():
        for leader in dict.fromkeys(key.split("; ")[1] for key in runs):
            mine = [run for key, run in runs.items() if key.split("; ")[:2] == [problem, leader]]
            if not mine:
                continue
            values = np.array([run["value"] for run in mine])
            told = ", ".join(f"{value:.2f}" for value in values)
            if len(values) > 2:
                half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
                told = f"{values.mean():.2f} ± {half:.2f} ({told})"
            seconds = np.median([run["seconds"] for run in mine])
            row = (name, OPTIMA[problem], f"{mine[0]['start']:.2f}", leader, told, len(mine), f"{seconds:.0f}")
            lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(Real).run()
