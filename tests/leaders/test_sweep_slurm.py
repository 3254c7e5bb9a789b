"""A study whose jobs submitit submits: here to processes of this machine, as it submits them to a cluster."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from leaders.cli.main import main

COMMAND = [sys.executable, "-c", "import sys; from leaders.cli.main import main; main(sys.argv[1:])"]
STUDY = """
env: BiLevel/TollBridge-v0
iterations: ITERATIONS
runs: 2
stack: false
leader: bchg
"""


def files(folder):
    kept = ("history.csv", "theta.csv", "result.json", "results.csv", "summary.csv")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in kept}


def sweep(folder, *where, iterations=300):
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(STUDY.replace("ITERATIONS", str(iterations)))
    command = [*COMMAND, "sweep", "study.yaml", "--out", "out", "--checkpoint-every", "0.2", "--no-progress", *where]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)


def under_way(out, but=()):
    """A run that has a checkpoint and no result, and the process that runs it; none of the folders in `but`."""
    for path in Path(out).glob("jobs/*/.owner.json"):
        if path.parent in but:
            continue
        if (path.parent / "leader.zip").exists() and not (path.parent / "result.json").exists():
            try:
                return path.parent, json.loads(path.read_text())["process"]
            except (OSError, ValueError):  # it ends at this moment
                continue
    return None


def signalled(out, signals, heard):
    """Sends each signal to another run that is under way."""
    hit = set()
    for one in signals:
        while (found := under_way(out, hit)) is None:
            time.sleep(0.02)
        os.kill(found[1], one)
        hit.add(found[0])
        heard.append(one)


@pytest.mark.slow
def test_jobs_that_are_preempted_or_killed_go_on_from_their_checkpoints(tmp_path):
    pytest.importorskip("submitit")
    heard: list[signal.Signals] = []
    signals = [signal.SIGUSR2, signal.SIGKILL]  # as Slurm preempts, and as it kills
    out = tmp_path / "there" / "out"
    threading.Thread(target=signalled, args=(out, signals, heard), daemon=True).start()
    there = sweep(tmp_path / "there", "--slurm", "cluster=local", "timeout_min=10")
    assert there.returncode == 0, there.stdout + there.stderr
    assert heard == signals
    logs = [path.read_text() for path in (out / "logs").glob("*.log")]
    assert [text.count("resuming after") for text in logs] == [1, 1], logs
    here = sweep(tmp_path / "here", "--processes", "1")
    assert here.returncode == 0, here.stdout + here.stderr
    assert len(files(tmp_path / "here" / "out")) == 2 * 3 + 2
    assert files(out) == files(tmp_path / "here" / "out")


@pytest.mark.slow
def test_sigterm_ends_a_study_that_is_told_of_it_not_one_whose_job_is(tmp_path):
    pytest.importorskip("submitit")
    folder = tmp_path / "there"
    out = folder / "out"

    def stop():
        while (found := under_way(out)) is None:
            time.sleep(0.02)
        os.kill(found[1], signal.SIGTERM)  # of Slurm, to a job: not the user's wish
        os.kill(json.loads((out / ".owner.json").read_text())["process"], signal.SIGTERM)  # to the sweep: it is

    threading.Thread(target=stop, daemon=True).start()
    stopped = sweep(folder, "--slurm", "cluster=local", iterations=20_000)
    assert stopped.returncode == 3, stopped.stdout + stopped.stderr
    assert "the same command goes on with the others" in stopped.stderr
    assert under_way(out) is None  # no process is left
    assert list(out.glob("jobs/*/leader.zip"))


def refused(capsys, *arguments):
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "--settings", "env=BiLevel/TollBridge-v0", "iterations=2", "--out", "out", *arguments])
    return capsys.readouterr().err


def test_what_submitit_does_not_take_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "--slurm", "cluster=local", "colour=red")
    assert "`slurm` must be options of submitit.AutoExecutor, got" in said
    assert "colour" in said


def test_without_submitit_the_error_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "pip install 'bilevel-envs[slurm]'" in refused(capsys, "--slurm")


def test_ray_and_slurm_at_once_are_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "must not be given together" in refused(capsys, "--slurm", "timeout_min=5", "--ray", "local")
    assert not (tmp_path / "out").exists()
