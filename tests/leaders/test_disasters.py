"""A disk that fills, a folder that becomes read-only, a clock that jumps, files cut short or exchanged.

Each ends in one line with what to do and status 2 or 3, and afterwards the same command ends in the undisturbed bytes.
"""

import os
import random
import shutil
import subprocess
import tempfile
import time
from itertools import accumulate
from pathlib import Path

import pytest

from leaders.cli.main import main
from leaders.cli.train import Train
from leaders.experiments.lock import release_all
from leaders.experiments.run_directory import Checkpoint
from leaders.experiments.sweep import runner

TOLL = "BiLevel/TollBridge-v0"
RUN = ["train", "--env", TOLL, "--runs", "2", "--batch", "40", "--iterations", "9", "--no-progress", "--resume"]
RUN += ["--checkpoint-every", "0"]
SWEEP = ["sweep", "--processes", "1", "--no-progress", "--checkpoint-every", "0"]
SWEEP += ["--settings", f"env={TOLL}", "leader=bchg,naive-pgd", "runs=2", "batch=40", "iterations=9"]
KEPT = ("history.csv", "theta.csv", "result.json", "results.csv", "summary.csv")
COMMANDS = {"train": RUN, "sweep": SWEEP}
NOBODY = 65534
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own


@pytest.fixture
def folder():
    """A folder that other users can read, too."""
    made = Path(tempfile.mkdtemp(prefix="disaster-"))
    made.chmod(0o755)
    yield made
    release_all()
    shutil.rmtree(made)


@pytest.fixture
def disk(folder):
    """A small disk of its own."""
    made = folder / "disk"
    made.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", made], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield made
    release_all()
    subprocess.run(["umount", "--lazy", made], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files that each command ends in."""
    found = {}
    for name, command in COMMANDS.items():
        out = tmp_path_factory.mktemp(name) / "out"
        main([*command, "--out", str(out)])
        found[name] = contents(out)
    return found


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.name in KEPT}


def fill(disk):
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return


class ReadOnly:
    """A folder that nobody may write to; root does not heed permissions, and becomes somebody else."""

    def __init__(self, folder):
        self.folder, self.was = folder, os.geteuid()

    def begin(self):
        for path in [self.folder, *self.folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if self.was == 0:
            os.seteuid(NOBODY)

    def end(self):
        if self.was == 0:
            os.seteuid(0)
        for path in [self.folder, *self.folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def at(moment, monkeypatch, disaster):
    """Lets a disaster happen once: at an iteration, before a run's pictures, before its result, or before tables."""
    happened = []

    def once():
        if not happened:
            happened.append(moment)
            disaster()

    if isinstance(moment, int):
        step = Checkpoint._on_step

        def on_step(self):
            if self.n_calls == moment:
                once()
            return step(self)

        monkeypatch.setattr(Checkpoint, "_on_step", on_step)
        return happened
    owner, name = {
        "beginning": (Train, "_log_to"),
        "pictures": (Train, "_draw"),
        "report": (Train, "_report"),
        "tables": (runner._Running, "write_tables"),
    }[moment]
    method = getattr(owner, name)

    def before(self, *arguments):
        once()
        return method(self, *arguments)

    monkeypatch.setattr(owner, name, before)
    return happened


def check_ended(command, out, capsys, happened):
    """One line, a status, and what to do."""
    with pytest.raises(SystemExit) as end:
        main([*command, "--out", str(out)])
    assert happened
    said = capsys.readouterr().err
    assert end.value.code in (2, 3)
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("bilevel: ")]) == 1
    assert "--resume" in said if command[0] == "train" else "the same command" in said
    return said


MOMENTS = [*(("train", moment) for moment in ("beginning", 1, 5, "pictures")), ("sweep", 5), ("sweep", "pictures")]
MOMENTS += [("sweep", "tables")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "moment"), MOMENTS)
def test_a_disk_that_fills_is_named_and_nothing_is_lost(disk, undisturbed, monkeypatch, capsys, name, moment):
    with monkeypatch.context() as patch:
        happened = at(moment, patch, lambda: fill(disk))
        said = check_ended(COMMANDS[name], disk / "out", capsys, happened)
    assert "No space left on device" in said
    release_all()
    (disk / "filler").unlink()
    main([*COMMANDS[name], "--out", str(disk / "out")])
    assert contents(disk / "out") == undisturbed[name]
    assert not list((disk / "out").rglob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "moment"), MOMENTS)
def test_a_folder_that_becomes_read_only_is_named_and_nothing_is_lost(
    folder, undisturbed, monkeypatch, capsys, name, moment
):
    out = folder / "out"
    closed = ReadOnly(out)
    with monkeypatch.context() as patch:
        happened = at(moment, patch, closed.begin)
        try:
            said = check_ended(COMMANDS[name], out, capsys, happened)
        finally:
            closed.end()
    assert "Permission denied" in said
    release_all()
    main([*COMMANDS[name], "--out", str(out)])
    assert contents(out) == undisturbed[name]
    assert not list(out.rglob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_clock_that_jumps_changes_no_byte(folder, undisturbed, monkeypatch, name):
    rng = random.Random(0)
    leaps = accumulate(rng.choice([0.0, 0.01, 1e6]) for _ in iter(int, 1))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + rng.uniform(-1e8, 1e8))  # set forth and back
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: next(leaps))  # of a machine that sleeps
    main([*COMMANDS[name], "--out", str(folder / "out")])
    assert contents(folder / "out") == undisturbed[name]


@pytest.mark.slow
def test_a_study_file_cut_short_is_named_with_its_remedy_which_helps(folder, undisturbed, capsys):
    out = folder / "out"
    main([*SWEEP, "--out", str(out)])
    whole = (out / "study.json").read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        (out / "study.json").write_bytes(whole[:length])
        with pytest.raises(SystemExit, match="2"):
            main([*SWEEP, "--out", str(out)])
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"{out / 'study.json'} is damaged" in said
        assert "the same command with --extend" in said
    main([*SWEEP, "--out", str(out), "--extend"])
    assert contents(out) == undisturbed["sweep"]
    assert (out / "study.json").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["rows of another run", "a configuration cut short", "a checkpoint cut short"])
def test_files_that_are_exchanged_or_cut_short_are_named_with_a_remedy_which_helps(
    folder, undisturbed, monkeypatch, capsys, damage
):
    out, other = folder / "out", folder / "other"
    for path, seed in ((out, "0"), (other, "1")):
        with monkeypatch.context() as patch:
            at(5, patch, killed)
            with pytest.raises(SystemExit, match="3"):
                main([*RUN, "--seed", seed, "--out", str(path)])
    capsys.readouterr()
    if damage == "rows of another run":
        shutil.copy(other / "leader.history", out)
    else:
        path = out / ("config.json" if "configuration" in damage else "leader.zip")
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(SystemExit, match="2"):
        main([*RUN, "--out", str(out)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"delete {out}" in said
    shutil.rmtree(out)
    main([*RUN, "--out", str(out)])
    assert contents(out) == undisturbed["train"]


def killed():
    raise KeyboardInterrupt
