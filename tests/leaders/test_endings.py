"""However a run ends, what was learnt is saved, the folder has one writer, and the status says what happened."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import gymnasium as gym
import pytest
from matplotlib.figure import Figure

from bilevel_envs.envs.toll_bridge import TollBridge
from bilevel_envs.followers import SoftValueIteration
from leaders.cli import train
from leaders.cli.main import main
from leaders.experiments import lock, run_directory
from leaders.experiments.lock import hold, release_all

RUN = ["train", "--env", "BiLevel/TollBridge-v0", "--runs", "2", "--batch", "40", "--no-progress"]
COMMAND = [sys.executable, "-c", "import sys; from leaders.cli.main import main; main(sys.argv[1:])"]
HOLDS = "import sys, time, pathlib; from leaders.experiments.lock import hold; "
HOLDS += "hold(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"

FAILING = '''
import gymnasium as gym
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.envs.toll_bridge import TollBridge
from bilevel_envs.gym_env import make_env


class Failing(TollBridge):
    """Fails at its fortieth model."""

    calls = 0

    def model(self, theta):
        Failing.calls += 1
        if Failing.calls == 40:
            FAILURE
        return super().model(theta)


gym.register("Failing-v0", "bilevel_envs.gym_env:make_env", max_episode_steps=10, kwargs={"problem": "failing:Failing"})
'''


@pytest.fixture(autouse=True)
def released():
    yield
    release_all()


@pytest.fixture
def holder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield out, process
    process.kill()
    process.wait()
    process.stdout.close()


def ended(arguments, capsys):
    """The status of a command and what it said."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_another_command_writes_to_is_refused_by_name(holder, capsys):
    out, process = holder
    for further in ([], ["--resume"]):
        status, said = ended([*RUN, "--iterations", "2", "--out", str(out), *further], capsys)
        assert status == 2
        assert f"is written to by process {process.pid} on " in said
        assert "Wait for it, or choose another --out" in said
    assert {path.name for path in out.iterdir()} == {".lock", ".owner.json"}


@pytest.mark.slow
def test_a_checkpoint_is_read_only_by_the_one_command_that_writes_to_its_folder(tmp_path, capsys):
    out = tmp_path / "out"
    main([*RUN, "--iterations", "2", "--out", str(out)])
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        (out / "leader.zip").write_bytes(b"as another command may have left it for a moment")
        status, said = ended([*RUN, "--iterations", "4", "--out", str(out), "--resume"], capsys)
    finally:
        holder.kill()
        holder.communicate()
    assert status == 2
    assert f"is written to by process {holder.pid} on " in said


@pytest.mark.slow
@pytest.mark.parametrize("further", [[], ["--resume"]])
def test_a_command_that_came_and_went_since_the_check_is_not_written_over(tmp_path, monkeypatch, capsys, further):
    out, check = tmp_path / "out", run_directory.RunDirectory.check
    if further:
        main([*RUN, "--iterations", "2", "--out", str(out)])

    def overtaken(self, resume):
        check(self, resume)
        monkeypatch.setattr(run_directory.RunDirectory, "check", check)
        main([*RUN, "--iterations", "4", "--out", str(out), *further])

    monkeypatch.setattr(run_directory.RunDirectory, "check", overtaken)
    status, said = ended([*RUN, "--iterations", "5", "--out", str(out), *further], capsys)
    assert status == 2
    assert "was written to by another command a moment ago" in said
    assert len((out / "history.csv").read_text().splitlines()) == 1 + 2 * 4


@pytest.mark.slow
def test_a_dead_owner_leaves_a_folder_that_can_be_used(holder):
    out, process = holder
    process.kill()
    process.wait()
    main([*RUN, "--iterations", "2", "--out", str(out)])
    assert (out / "leader.zip").is_file()
    assert not (out / ".owner.json").exists()


def test_leftovers_of_a_kill_do_not_block_a_run(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in (".config.json.123.part", ".lock", ".owner.json", ".leader.zip.9.part"):
        (out / name).write_bytes(b"\x00")
    main([*RUN, "--iterations", "2", "--out", str(out)])
    assert not list(out.glob(".*.part"))


def test_a_run_that_was_killed_while_it_drew_has_no_result_and_leaves_no_part_of_a_picture(tmp_path, monkeypatch):
    out = tmp_path / "out"
    savefig = Figure.savefig

    def killed(self, file, **further):
        savefig(self, file, **further)
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", killed)
    with pytest.raises(SystemExit, match="3"):
        main([*RUN, "--iterations", "2", "--out", str(out)])
    assert not (out / "result.json").exists()
    assert not [path.name for path in out.iterdir() if path.name.endswith("png")]
    monkeypatch.setattr(Figure, "savefig", savefig)
    main([*RUN, "--iterations", "2", "--out", str(out), "--resume"])
    assert (out / "result.json").is_file()
    assert (out / "curve.png").is_file()


def test_a_folder_with_anything_else_is_left_alone(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".hidden").write_text("mine")
    status, said = ended([*RUN, "--iterations", "2", "--out", str(out)], capsys)
    assert status == 2
    assert "must be empty or hold a run" in said
    assert {path.name for path in out.iterdir()} == {".hidden"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_run_that_can_be_resumed(tmp_path, how):
    out = tmp_path / "out"
    arguments = [*RUN, "--iterations", "100000", "--out", str(out)]
    heard = partial(signal.signal, how, signal.SIG_DFL)  # tests in the background may have it ignored
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while not (out / "tensorboard").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2.0)
    process.send_signal(how)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3, said
    assert "Traceback" not in said
    assert "outer iterations; go on with --resume" in said
    done = int(said.split("stopped after ")[1].split()[0])
    main([*RUN, "--iterations", str(done + 1), "--out", str(out), "--resume"] if done < 100_000 else [])


SLOW = FAILING.replace("Failing.calls += 1", "Failing.calls += Path('out/tensorboard').exists()").replace(
    "FAILURE", "Path('now').touch(); time.sleep(60)"
).replace("import gymnasium", "import time\nfrom pathlib import Path\n\nimport gymnasium")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 20])
def test_a_second_signal_ends_a_run_within_its_iteration_and_keeps_all_before(tmp_path, monkeypatch, call):
    """The model takes a minute at its first call while the run learns, or at its twentieth."""
    (tmp_path / "failing.py").write_text(SLOW.replace("== 40", f"== {call}"))
    run = ["train", "--env", "failing:Failing-v0", "--runs", "1", "--batch", "40", "--no-progress"]
    run += ["--iterations", "30", "--resume", "--out"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [*COMMAND, *run, "out"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    while not (tmp_path / "now").exists() and process.poll() is None:
        time.sleep(0.05)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # as from the terminal and from what passes it on: one signal
        time.sleep(run_directory.AGAIN / 2)
        assert process.poll() is None
        time.sleep(run_directory.AGAIN)
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 3, said
    assert "Traceback" not in said
    if call == 1:
        assert "stopped at once in the first outer iteration, before anything was learnt" in said
    else:
        assert re.search(r"stopped at once; out/leader.zip holds the first [1-9]\d* outer iterations, go on with", said)
    (tmp_path / "failing.py").write_text(SLOW.replace("== 40", "== -1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    gym.registry.pop("Failing-v0", None)
    for out in ("out", "whole"):
        main([*run, out])
    assert (tmp_path / "out" / "history.csv").read_bytes() == (tmp_path / "whole" / "history.csv").read_bytes()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_learning_ends_at_once_and_says_that_all_is_saved(tmp_path, monkeypatch, capsys, how):
    def drawing(self, leader):
        os.kill(os.getpid(), how)
        raise AssertionError("it went on drawing")

    out = tmp_path / "out"
    before = signal.signal(how, signal.default_int_handler)  # tests in the background may have it ignored
    with monkeypatch.context() as patch:
        patch.setattr(train.Train, "_draw", drawing)
        status, said = ended([*RUN, "--iterations", "2", "--out", str(out)], capsys)
    signal.signal(how, before)
    assert status == 3
    assert f"after all 2 outer iterations, which are in {out / 'leader.zip'}; --resume draws the pictures" in said
    main([*RUN, "--iterations", "2", "--out", str(out), "--resume"])
    assert (out / "result.json").is_file()


class Forgetful(SoftValueIteration):
    """A follower that is saved, as one that learns, and fails at one of its calls."""

    fails_at, calls = 0, 0

    @property
    def capabilities(self):
        return replace(super().capabilities, saves=True)

    def best_response(self, *given, **further):
        self.calls += 1
        if self.calls == Forgetful.fails_at:
            raise ZeroDivisionError("out of patience")
        return super().best_response(*given, **further)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


@pytest.mark.parametrize(("call", "status"), [(1, 2), (4, 3)])
def test_a_follower_that_fails_while_it_learns_says_what_is_lost_with_it(tmp_path, monkeypatch, capsys, call, status):
    monkeypatch.setattr(run_directory, "CHEAP", 1e9)
    monkeypatch.setattr(Forgetful, "fails_at", call)
    run = [*RUN, "--follower", f"{__name__}:Forgetful", "--iterations", "5", "--out", str(tmp_path / "out")]
    got, said = ended(run, capsys)
    assert got == status
    assert f"outer iteration {call - 1}: the follower failed (ZeroDivisionError: out of patience)" in said
    if status == 2:
        assert "no checkpoint yet, the same command begins anew" in said
    else:
        assert "its last checkpoint is whole, --resume goes on from there, after 1 outer iterations of 3" in said
        assert "the rest is lost with the follower, which failed while it learnt" in said
    monkeypatch.setattr(Forgetful, "fails_at", 0)
    main([*run, "--resume"])
    assert len((tmp_path / "out" / "history.csv").read_text().splitlines()) == 1 + 2 * 5


def test_a_signal_that_is_ignored_from_outside_ends_nothing(tmp_path, monkeypatch):
    on_step = run_directory.Checkpoint._on_step

    def hung_up(self):
        os.kill(os.getpid(), signal.SIGHUP)
        return on_step(self)

    monkeypatch.setattr(run_directory.Checkpoint, "_on_step", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        main([*RUN, "--iterations", "3", "--out", str(tmp_path / "out")])
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len((tmp_path / "out" / "history.csv").read_text().splitlines()) == 1 + 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ('raise RuntimeError("out of prices")', "out of prices"),
        ('raise KeyError("price")', "KeyError: 'price'"),
        ("theta = theta * float('nan')", "must be finite"),
    ],
)
def test_a_model_that_fails_leaves_what_was_learnt(tmp_path, monkeypatch, capsys, failure, said):
    (tmp_path / "failing.py").write_text(FAILING.replace("FAILURE", failure))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    gym.registry.pop("Failing-v0", None)
    run = ["train", "--env", "failing:Failing-v0", "--runs", "1", "--batch", "40", "--no-progress", "--out", "out"]
    status, line = ended([*run, "--iterations", "50"], capsys)
    assert status == 3
    assert said in line
    assert "its last checkpoint is whole, --resume goes on from there" in line
    assert "Traceback" not in line
    main([*run, "--iterations", "50", "--resume"])
    assert len((tmp_path / "out" / "history.csv").read_text().splitlines()) == 51


def test_a_full_disk_is_named_and_the_last_checkpoint_kept(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    main([*RUN, "--iterations", "2", "--out", str(out)])
    before = (out / "leader.zip").read_bytes()

    def full(self, leader):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "leader.zip"))

    for save in ("save", "save_checkpoint"):
        monkeypatch.setattr(run_directory.RunDirectory, save, full)
    status, said = ended([*RUN, "--iterations", "4", "--out", str(out), "--resume"], capsys)
    assert status == 3
    assert "No space left on device" in said
    assert str(out / "leader.zip") in said
    assert "--resume goes on from there" in said
    assert (out / "leader.zip").read_bytes() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_a_folder_of_tensorboard_that_vanishes_ends_nothing_that_was_learnt(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    log = train.Train._log_to

    def vanishing(self, leader):
        log(self, leader)
        shutil.rmtree(out / "tensorboard")

    monkeypatch.setattr(train.Train, "_log_to", vanishing)
    status, said = ended([*RUN, "--iterations", "5", "--out", str(out)], capsys)
    assert status == 3
    assert "tensorboard" in said
    assert "--resume goes on from there" in said
    monkeypatch.setattr(train.Train, "_log_to", log)
    main([*RUN, "--iterations", "5", "--out", str(out), "--resume"])


def test_a_fault_of_ours_ends_with_one_line(tmp_path, monkeypatch, capsys):
    def broken(self):
        raise LookupError("nobody thought of this")

    monkeypatch.setattr(train.Train, "run", broken)
    status, said = ended([*RUN, "--out", str(tmp_path / "out")], capsys)
    assert (status, said) == (1, "bilevel: LookupError: nobody thought of this (--traceback shows where)\n")
    with pytest.raises(LookupError):
        main([*RUN, "--out", str(tmp_path / "out"), "--traceback"])


def test_a_mistake_ends_with_status_2(tmp_path, capsys):
    assert ended([*RUN, "--iterations", "0", "--out", str(tmp_path / "out")], capsys)[0] == 2
    assert not (tmp_path / "out").exists()


def test_a_lock_tells_who_holds_it(tmp_path):
    hold(tmp_path)
    owner = json.loads((tmp_path / ".owner.json").read_text())
    assert owner["process"] == os.getpid()
    release_all()
    assert not (tmp_path / ".owner.json").exists()
    hold(tmp_path)  # and can be held again


def test_an_owner_gives_signs_of_life_until_it_gives_up_its_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        hold(tmp_path / name)
        os.utime(tmp_path / name / ".owner.json", (0, 0))
    ends = time.monotonic() + 20
    while not all(0 <= lock.seconds_since_heartbeat(tmp_path / name) < 20 for name in ("one", "two")):
        assert time.monotonic() < ends
        time.sleep(0.02)
    release_all()
    (tmp_path / "one" / ".owner.json").touch()
    os.utime(tmp_path / "one" / ".owner.json", (0, 0))
    time.sleep(0.2)
    assert lock.seconds_since_heartbeat(tmp_path / "one") > 1e9  # nobody beats any more


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("silent", [10.0, 1_000.0])
def test_without_flock_an_owner_elsewhere_is_taken_for_dead_after_ten_minutes_of_silence(tmp_path, monkeypatch, silent):
    def missing(*_):
        raise OSError(errno.ENOSYS, "no flock here")

    monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setattr(socket, "gethostname", lambda: "far")
    hold(tmp_path)
    lock._held.clear()  # it dies there, and leaves both files behind
    monkeypatch.undo()
    monkeypatch.setattr(fcntl, "flock", missing)
    then = time.time() - silent
    os.utime(tmp_path / ".owner.json", (then, then))
    if silent < lock.SILENCE:
        with pytest.raises(
            BlockingIOError, match=r"written to by process \d+ on far, since \S+, last heartbeat 1\d s ago"
        ):
            hold(tmp_path)
    else:
        hold(tmp_path)
        assert json.loads((tmp_path / ".owner.json").read_text())["host"] == socket.gethostname()
        release_all()


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_flock_an_owner_that_was_taken_over_leaves_the_folder_alone(tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "no flock here")

    monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setattr(socket, "gethostname", lambda: "far")
    hold(tmp_path)
    lock.check_held(tmp_path)
    [asleep] = lock._held
    lock._held.clear()
    (tmp_path / ".owner.json").unlink()  # the age of the lock counts
    then = time.time() - 1_000
    os.utime(tmp_path / ".lock", (then, then))
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    hold(tmp_path)
    [awake] = lock._held
    lock._held[:] = [asleep]
    with pytest.raises(BlockingIOError, match="was taken over by process .* on here"):
        lock.check_held(tmp_path)
    release_all()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".owner.json"]
    assert (tmp_path / ".owner.json").read_bytes() == awake.owner
    lock._held[:] = [awake]
    release_all()
    assert not (tmp_path / ".owner.json").exists()
    lock._held[:] = [asleep]
    with pytest.raises(BlockingIOError, match="was taken over by another process"):  # which is done by now
        lock.check_held(tmp_path)
    release_all()


@pytest.mark.slow
def test_a_reader_that_has_read_enough_ends_a_command_without_a_word():
    process = subprocess.Popen([*COMMAND, "envs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 3)
    process.stderr.close()


def test_a_run_that_was_begun_in_another_world_says_how_to_begin_anew(tmp_path, capsys, monkeypatch):
    arguments = ["train", "--env", "BiLevel/TollBridge-v0", "--runs", "1", "--batch", "40", "--no-progress"]
    main([*arguments, "--iterations", "1", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(TollBridge, "model", changed_model(TollBridge.model))
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--iterations", "2", "--out", str(tmp_path / "out"), "--resume"])
    told = capsys.readouterr().err
    assert "`env` must be the task that the leader was saved in" in told
    assert f"Take another --out, or delete {tmp_path / 'out'} to begin anew" in told


def changed_model(model):
    """A model whose leader is paid twice as much."""

    def changed(self, *arguments):
        found = model(self, *arguments)
        return replace(found, r_leader=2 * found.r_leader)

    return changed
