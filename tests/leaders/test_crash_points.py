"""A kill before or after any change of the file system: what it leaves never blocks the same command.

The test takes a sample of the points. `python -m tests.leaders.test_crash_points train 1 FOLDER` tries every point of a
run, and `sweep` those of a study; 7 in place of 1 tries every seventh. What was found is in FOLDER/told.json.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOLL = "BiLevel/TollBridge-v0"
COMMANDS = {
    "train": ["train", "--env", TOLL, "--runs", "2", "--batch", "40", "--iterations", "3", "--resume"],
    "sweep": ["sweep", "--processes", "1", "--settings", f"env={TOLL}", "leader=bchg,exact", "runs=2", "iterations=2"],
}
COMMON = ["--no-progress", "--checkpoint-every", "0"]
KEPT = ("history.csv", "theta.csv", "result.json", "results.csv", "summary.csv")
CHANGES = ("replace", "unlink", "mkdir", "rmdir", "fsync")
DEAD = 99


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), [("train", 3), ("sweep", 29)])
def test_what_a_kill_leaves_at_any_point_blocks_nothing(tmp_path, kind, step):
    script = [sys.executable, "-m", "tests.leaders.test_crash_points", kind, str(step), str(tmp_path)]
    done = subprocess.run(script, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["points"] >= 50  # of a run; each write has several
    assert told["tried"] == len(range(1, told["points"] + 1, step))
    assert told["faults"] == []


def contents(out):
    """The results, and the names of all files but TensorBoard's and logs."""
    files = [path for path in out.rglob("*") if "tensorboard" not in path.parts and path.suffix != ".log"]
    results = {str(path.relative_to(out)): path.read_bytes() for path in files if path.name in KEPT}
    return results, sorted(str(path.relative_to(out)) for path in files if path.name not in (".lock", ".owner.json"))


def counting(point, where, count):
    """Lets this process die at its so manieth point, before or after a change of the file system; counts the points."""

    def changing(name, change):
        def changed(*given, **further):
            for after in (False, True):
                count[0] += 1
                if count[0] == point:
                    where.write_text(f"{'after' if after else 'before'} {name} {given}")
                    os._exit(DEAD)
                found = found if after else change(*given, **further)  # noqa: F821
            return found

        return changed

    for name in CHANGES:
        setattr(os, name, changing(name, getattr(os, name)))


def command(kind, out, point=None):
    """Runs the command in a child; its status. How many points it passed and where it died is in files beside `out`."""
    from leaders.cli.main import main

    told, where = out.with_suffix(".count"), out.with_suffix(".where")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    count, status = [0], 0
    counting(point, where, count)
    try:
        main([*COMMANDS[kind], *COMMON, "--out", str(out)])
    except SystemExit as end:
        status = end.code
    told.write_text(str(count[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def tried(kind, step, folder):
    """Kills at every `step`-th point, runs the same command again, and compares what it ends in."""
    from leaders.cli.main import main
    from leaders.experiments import plots
    from leaders.training.history import replace_file

    plots.curve_figure = plots.incentives_figure = lambda *given: True  # drawing takes time and changes no file
    plots.save = lambda figure, path: replace_file(path, b"a picture")
    whole, out = folder / "whole", folder / "out"
    main([*COMMANDS[kind], *COMMON, "--out", str(folder / "warm")])  # what children would import, each of them anew
    assert command(kind, whole) == 0, whole.with_suffix(".log").read_text()
    points, expected, faults = int(whole.with_suffix(".count").read_text()), contents(whole), []
    asked = range(1, points + 1, step)
    for point in asked:
        shutil.rmtree(out, ignore_errors=True)
        died = command(kind, out, point)
        where = out.with_suffix(".where").read_text() if died == DEAD else f"not at all, status {died}"
        status = command(kind, out)
        if died != DEAD or status or contents(out) != expected:
            faults.append([point, where, status, out.with_suffix(".log").read_text()[-500:]])
    return {"points": points, "tried": len(asked), "faults": faults}


if __name__ == "__main__":
    name, every, place = sys.argv[1:]
    (Path(place) / "told.json").write_text(json.dumps(tried(name, int(every), Path(place))))
