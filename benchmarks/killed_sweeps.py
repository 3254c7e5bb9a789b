"""A study whose processes are killed at random moments, against the same study undisturbed, byte for byte.

Twenty jobs of five kinds: BC-HG and Naive-PGD in tables, the latter with a search by Optuna, MBHG, an agent of
Stable-Baselines3 with its replay buffer as the follower, and a linear-quadratic world. SIGKILL goes to the command or
to one of its workers, each as likely as the others; every other time while jobs write checkpoints, else at any moment,
also while processes start. A command that ended is started again. A study that is done begins anew in another folder
until all kills are spent. After each study its figures are written to a file, beside those of other seeds; 200 kills
take an hour on two cores.

Run: python benchmarks/killed_sweeps.py [--kills 200] [--seed 0] [--short] --out docs/data/killed_sweeps.json
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tyro

ALONE = 3600.0  # seconds that a study without kills may take
KEPT = ("history.csv", "theta.csv", "result.json", "results.csv", "summary.csv")
BILEVEL = [sys.executable, "-c", "import sys; from leaders.cli.main import main; main(sys.argv[1:])"]
STUDY = """
seed: [0, 10, 20, 30]
runs: 2
blocks:
  - {env: BiLevel/RandomMDP-v0, leader: bchg, iterations: 100}
  - env: BiLevel/TollBridge-v0
    leader: naive-pgd
    iterations: 200
    seed: [0, 10]
    tune: {search: optuna, learning_rate: {low: 0.01, high: 1.0, log: true}, count: 4, batch: 2, runs: 2}
  - {env: BiLevel/TollBridge-v0, leader: mbhg, iterations: 6}
  - env: BiLevel/TollBridge-v0
    follower: sb3
    follower_args: {algorithm: SoftDQN, steps: 60, learning_starts: 20, buffer: keep,
                    policy_kwargs: {value: {net_arch: [8]}}}
    runs: 1
    batch: 40
    iterations: 20
  - {env: BiLevel/BilevelLQR-v0, leader: bchg, iterations: 40}
"""
SHORT = """
runs: 2
blocks:
  - {env: BiLevel/TollBridge-v0, leader: naive-pgd, iterations: 300, seed: [0, 10]}
  - env: BiLevel/TollBridge-v0
    follower: sb3
    follower_args: {algorithm: SoftDQN, steps: 60, learning_starts: 20, buffer: keep,
                    policy_kwargs: {value: {net_arch: [8]}}}
    batch: 40
    iterations: 8
"""


@dataclass
class Args:
    """What is killed how often."""

    kills: int = 200
    seed: int = 0
    short: bool = False
    """four small jobs instead of twenty"""
    every: float = 3.0
    """mean seconds until a kill"""
    out: Path | None = None
    """a JSON file for the figures of this seed"""


@dataclass
class Campaign:
    """What happened.

    Attributes:
      kills: by process, "command" or "worker".
      commands: how often the command was started.
      rounds: how many studies were run to their end.
      resumes: how often a job went on from a checkpoint, by leader and follower.
      faults: what differs from the undisturbed study.
      statuses: with which commands that were not killed ended.
    """

    kills: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    rounds: int = 0
    resumes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def started(study: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, with what it says in a file beside its folder."""
    arguments = ["sweep", study, "--out", out, "--processes", 2, "--no-progress", "--checkpoint-every", 0.2]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen([*BILEVEL, *map(str, arguments)], stdout=log, stderr=log)


def workers(command: int) -> list[int]:
    """Children of the command that run jobs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            told = path.with_name("cmdline").read_bytes()
        except OSError:  # it is gone
            continue
        if parent == command and b"loky" in told and b"tracker" not in told:
            found.append(int(path.parent.name))
    return found


def wait_for_jobs(process: subprocess.Popen[bytes], out: Path) -> None:
    """Until a job of these workers has a checkpoint or a result, or the command has ended."""
    begun = time.time()
    while process.poll() is None and max(map(written, out.glob("*/*/*")), default=0.0) < begun:
        time.sleep(0.1)


def written(path: Path) -> float:
    """When a checkpoint or a result was written; 0 for other files."""
    try:
        return path.stat().st_mtime if path.name in ("leader.zip", "result.json") else 0.0
    except OSError:  # it is replaced at this moment
        return 0.0


def disturbed(study: Path, out: Path, kills: int, every: float, rng: random.Random, seen: Campaign) -> int:
    """Runs a study to its end under at most so many kills; returns how many there were."""
    spent, process = 0, None
    while True:
        if process is None:
            process, seen.commands = started(study, out), seen.commands + 1
        if spent < kills and rng.random() < 0.5:
            wait_for_jobs(process, out)
        wait = rng.expovariate(1 / every) if spent < kills else ALONE
        try:
            status = process.wait(wait)
        except subprocess.TimeoutExpired:
            if spent == kills:
                process.kill()
                process.wait()
                seen.faults.append(f"{out.name}: the command took more than an hour without a kill")
                return spent
            one = rng.choice([process.pid, *workers(process.pid)])
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue
            spent += 1
            seen.kills["command" if one == process.pid else "worker"] += 1
            if one == process.pid:
                process.wait()
                process = None
            continue
        seen.statuses[status] += 1
        process = None
        if status == 0:
            return spent
        if status not in (3, -signal.SIGKILL):
            seen.faults.append(f"{out.name}: the command ended with status {status}, see {out.with_suffix('.log')}")
            return spent


def contents(out: Path) -> dict[str, bytes]:
    """What must be the same, by path."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.name in KEPT}


def differences(whole: Path, out: Path) -> list[str]:
    """What is missing, too much, or not the same."""
    expected, got = contents(whole), contents(out)
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if "tensorboard" not in path.parts}
    left = {str(path.relative_to(out)) for path in out.rglob("*") if "tensorboard" not in path.parts}
    return [
        *(f"{out.name}: {name} is missing" for name in sorted(files - left)),
        *(f"{out.name}: {name} is too much" for name in sorted(left - files)),
        *(f"{out.name}: {name} differs" for name in sorted(expected) if got.get(name, b"") != expected[name]),
    ]


def resumes(out: Path) -> Counter[str]:
    """How often jobs went on from a checkpoint."""
    found: Counter[str] = Counter()
    for log in (out / "logs").glob("*.log"):
        done = [int(count) for count in re.findall(r"resuming after (\d+) outer iterations", log.read_text())]
        found[log.name.rpartition("-")[0]] += sum(count > 0 for count in done)
    return found


def campaign(folder: Path, args: Args) -> Iterator[Campaign]:
    """The undisturbed study, and studies under kills, in a folder of their own; what happened, after each of them."""
    study, whole, rng, seen = folder / "study.yaml", folder / "whole", random.Random(args.seed), Campaign()
    study.write_text(SHORT if args.short else STUDY)
    begun = time.monotonic()
    if started(study, whole).wait() != 0:
        raise SystemExit(f"the undisturbed study failed, see {whole.with_suffix('.log')}")
    print(f"undisturbed: {time.monotonic() - begun:.0f} s", flush=True)
    left = args.kills
    while left and not seen.faults:
        out = folder / f"killed{seen.rounds}"
        left -= disturbed(study, out, left, args.every, rng, seen)
        seen.rounds += 1
        seen.resumes += resumes(out)
        seen.faults += differences(whole, out)
        yield seen


def told(seen: Campaign, files: int) -> dict[str, object]:
    """The figures of a campaign so far."""
    return {
        "kills": dict(seen.kills),
        "commands_started": seen.commands,
        "studies_run_to_their_end": seen.rounds,
        "resumes_from_a_checkpoint": dict(sorted(seen.resumes.items())),
        "statuses_of_commands_that_were_not_killed": {str(status): n for status, n in sorted(seen.statuses.items())},
        "files_compared_by_study": files,
        "faults": seen.faults,
    }


def main(args: Args) -> None:
    folder = Path(tempfile.mkdtemp(prefix="killed-sweeps-"))
    print(f"in {folder}")
    for seen in campaign(folder, args):
        figures = told(seen, len(contents(folder / "whole")))
        print(json.dumps(figures), flush=True)
        if args.out is not None:
            others = json.loads(args.out.read_text()) if args.out.exists() else {}
            args.out.write_text(json.dumps(others | {f"seed {args.seed}": figures}, indent=1) + "\n")
    sys.exit(1 if seen.faults else 0)


if __name__ == "__main__":
    main(tyro.cli(Args))
