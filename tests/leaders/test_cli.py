"""The command line, its run directory, and what survives a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from leaders import BCHG
from leaders.cli.main import main
from leaders.experiments import plots

QUICK = [
    "train",
    "--env",
    "BiLevel/FourRooms-v0",
    "--preset",
    "paper",
    "--runs",
    "2",
    "--iterations",
    "30",
    "--no-progress",
]


def files_in(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()} if path.exists() else {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    main([*QUICK, "--out", str(out)])
    return out


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_done(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", "import sys; from leaders.cli.main import main; main(sys.argv[1:])", *QUICK]
    process = subprocess.Popen(
        [*command, "--iterations", "100000", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background may have it ignored
    )
    while not (out / "tensorboard").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "go on with --resume" in error
    done = int(error.split("stopped after ")[1].split()[0])
    assert len(history(out).splitlines()) == 1 + 2 * done > 1


def test_a_resumed_run_cannot_be_shorter(finished, capsys):
    with pytest.raises(SystemExit):
        main([*QUICK, "--out", str(finished), "--iterations", "10", "--resume"])
    assert "`iterations` must be at least 30" in capsys.readouterr().err


def test_a_damaged_directory_is_named(finished, tmp_path, capsys):
    for name, content in (("config.json", b"\xff"), ("config.json", b'{"arguments": [1]}'), ("leader.zip", b"PK")):
        out = tmp_path / f"{name}{len(content)}"
        shutil.copytree(finished, out)
        (out / name).write_bytes(content)
        with pytest.raises(SystemExit):
            main([*QUICK, "--out", str(out), "--resume"])
        assert str(out / name) in capsys.readouterr().err


def test_envs_are_listed(capsys):
    main(["envs"])
    out = capsys.readouterr().out
    for words in (
        "BiLevel/FourRooms-v0",
        "1.6227 (multi-start of the exact gradient)",
        "BiLevel/TollBridge-v0",
        "0.8995 (closed form)",
        "RandomMDP",
    ):
        assert words in out


def test_a_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.json",
        "history.csv",
        "theta.csv",
        "leader.zip",
        "curve.png",
        "incentives.png",
        "tensorboard",
    }
    assert any("tfevents" in path.name for path in (finished / "tensorboard").iterdir())
    with open(finished / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert list(rows[0])[:7] == [
        "run", "iteration", "env_steps", "follower_solves", "leader_value", "leader_return", "grad_norm",
    ]  # fmt: skip
    assert rows[29]["iteration"] == "29"
    assert rows[29]["env_steps"] == "3000"
    assert float(rows[0]["leader_value"]) == pytest.approx(-0.6674, abs=1e-3)
    told = json.loads((finished / "config.json").read_text())["arguments"]
    assert told["preset"] == "paper"
    for picture in ("curve.png", "incentives.png"):
        assert (finished / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_curves_of_several_runs_go_into_one_picture(finished, tmp_path, capsys):
    other = tmp_path / "mbhg"
    command = ["train", "--env", "BiLevel/FourRooms-v0", "--leader", "mbhg", "--runs", "1", "--iterations", "1"]
    main([*command, "--leader-args", "draws=0", "vertices=false", "--out", str(other)])
    main(["curves", str(finished), str(other), "--out", str(tmp_path / "curves.png")])
    assert f"wrote {tmp_path / 'curves.png'}" in capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_curves_are_drawn_over_the_steps_that_each_leader_took(make):
    one, other = (
        BCHG(make("TollBridge"), batch_size=50, runs=2).learn(4),
        BCHG(make("TollBridge"), batch_size=200).learn(2),
    )
    (axes,) = plots.curves_figure([one, other], "toll").axes
    first, second, _ = axes.get_lines()
    np.testing.assert_array_equal(first.get_xdata(), [50, 100, 150, 200])
    np.testing.assert_array_equal(second.get_xdata(), [200, 400])
    np.testing.assert_allclose(first.get_ydata(), one.history["leader_value"].mean(1))
    np.testing.assert_allclose(second.get_ydata(), other.history["leader_value"][:, 0])


@pytest.mark.parametrize(
    ("directories", "message"),
    [([], "at least one run directory"), (["nowhere"], "`directory` must hold a run with config.json")],
)
def test_curves_of_no_runs_are_refused(directories, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["curves", *(str(tmp_path / name) for name in directories), "--out", str(tmp_path / "curves.png")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.slow
def test_the_film_shows_both_episodes(finished):
    main(["video", str(finished), "--steps", "20"])
    from moviepy import VideoFileClip

    with VideoFileClip(str(finished / "follower.mp4")) as clip:
        frame = clip.get_frame(0.5)
        assert clip.duration > 2.0
    height, width = frame.shape[:2]
    assert width > 2 * (height - 60)  # two pictures side by side
    left, right = frame[60:, : width // 2 - 20], frame[60:, width // 2 + 20 :]
    assert left.std() > 10
    assert right.std() > 10


def test_an_agent_that_learnt_is_filmed_in_the_run_it_belongs_to(tmp_path, monkeypatch):
    out, shown = tmp_path / "agents", []
    follower = ["--follower", "sb3", "--follower-args", "algorithm=SoftDQN", "steps=60", "learning_starts=20"]
    env = ["--env", "BiLevel/TollBridge-v0", *follower, "--batch", "60"]
    main(["train", *env, "--iterations", "2", "--runs", "2", "--out", str(out)])
    sample = BoltzmannPolicy.sample
    monkeypatch.setattr(
        BoltzmannPolicy,
        "sample",
        lambda self, state, uniform: shown.append(len(self.log_probs)) or sample(self, state, uniform),
    )
    main(["video", str(out), "--steps", "10"])
    assert set(shown) == {2}  # both runs' agents are asked; one is shown
    assert (out / "follower.mp4").stat().st_size > 1000


@pytest.mark.slow
def test_a_continuous_world_is_trained_and_filmed(tmp_path):
    out = tmp_path / "building"
    env = ["--env", "BiLevel/BuildingThermalControl-v0", "--batch", "200"]
    main(["train", *env, "--iterations", "2", "--runs", "2", "--out", str(out)])
    main(["video", str(out), "--steps", "10"])
    assert (out / "follower.mp4").stat().st_size > 1000
    assert (out / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def history(out):
    return (out / "history.csv").read_bytes()


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_shorter_one(finished, tmp_path):
    at_once, in_two = tmp_path / "one", tmp_path / "two"
    main([*QUICK, "--out", str(at_once), "--iterations", "50"])
    main([*QUICK, "--out", str(in_two)])
    main([*QUICK, "--out", str(in_two), "--iterations", "50", "--resume"])
    assert history(in_two) == history(at_once)
    assert history(in_two).startswith(b"run,iteration,")


@pytest.mark.slow
@pytest.mark.parametrize("delays", [(0.2, 1.7, 0.05), (2.6,), (3.1, 0.4)])
def test_a_killed_run_resumes_to_the_same_history(tmp_path, delays):
    arguments = [*QUICK[:-1], "--no-progress", "--iterations", "400", "--seed", "5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main([*arguments, "--out", str(whole)])
    # checkpoints at every iteration, so that a kill finds the writer at work
    code = (
        "import sys, leaders.experiments.run_directory as run; run.Checkpoint.__init__.__defaults__ = (0.0,);"
        "from leaders.cli.main import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *arguments, "--out", str(killed), "--resume"]
    for delay in delays:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while not (killed / "leader.zip").exists() and process.poll() is None and time.monotonic() - started < 60:
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    main([*arguments, "--out", str(killed), "--resume"])
    assert history(killed) == history(whole)
    assert (killed / "theta.csv").read_bytes() == (whole / "theta.csv").read_bytes()
    assert not [path for path in killed.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "BiLevel/FiveRooms-v0"], "`env` must be a registered id"),
        (["--leader", "bchgg"], "`leader` must be one of 'bchg'"),
        (["--beta", "0"], "`beta` must be above 0"),
        (["--dynamics", "odd"], "`dynamics` must be one of"),
        (["--preset", "papers"], "`preset` must be one of None, 'paper'"),
        (["--learning-rate", "-1"], "`learning_rate` must be above 0"),
        (["--iterations", "0"], "`iterations` must be at least 1"),
        (["--batch", "0"], "`batch_size` must be at least 1"),
        (
            ["--env-args", "colour=red"],
            "FourRooms has no argument 'colour'; it takes dynamics, closing, beta",
        ),
        (["--env-args", "colour"], "`env_args` must be KEY=VALUE, got 'colour'"),
        (["--leader-args", "depth=3"], "the leader 'bchg' has no argument 'depth'; it takes preset, shared, critic"),
        (["--leader-args", "runs=3"], "`leader_args` must not repeat what has a flag of its own: take --runs"),
        (["--leader", "exact"], "the leader 'exact' has no argument 'preset'"),
        (["--env", "CartPole-v1"], "must be configurable by a leader"),
    ],
)
def test_bad_arguments_end_in_one_line_and_write_nothing(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main([*QUICK, *arguments, "--out", str(out)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_directory_that_holds_something_else_is_left_alone(finished, tmp_path, capsys):
    before = files_in(finished)
    for arguments, message in (
        ([], "already holds this run; add --resume"),
        (["--seed", "9", "--resume"], "another configuration (seed: 0 there, 9 here)"),
        (["--beta", "1e-3", "--resume"], "beta: None there, 0.001 here"),
    ):
        with pytest.raises(SystemExit):
            main([*QUICK, *arguments, "--out", str(finished)])
        assert message in capsys.readouterr().err
    assert files_in(finished) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(SystemExit):
        main([*QUICK, "--out", str(other)])
    assert "has files but no config.json" in capsys.readouterr().err
    assert files_in(other) == {"thesis.tex": b"precious"}
    with pytest.raises(SystemExit):
        main(["video", str(other)])
    assert "must hold a run" in capsys.readouterr().err


def test_other_worlds_and_leaders_train_too(tmp_path):
    for env, leader in (("TollBridge", "naive-pgd"), ("RandomMDP", "exact"), ("RandomMDP", "bchg")):
        out = tmp_path / f"{env}-{leader}"
        main(
            [
                "train",
                "--env",
                f"BiLevel/{env}-v0",
                "--leader",
                leader,
                "--runs",
                "2",
                "--iterations",
                "5",
                "--out",
                str(out),
            ]
        )
        assert (out / "curve.png").exists()
        assert not (out / "incentives.png").exists()


def test_env_arguments_reach_the_environment(tmp_path):
    out = tmp_path / "out"
    mdp = ["train", "--env", "BiLevel/RandomMDP-v0", "--iterations", "2", "--runs", "1", "--out", str(out)]
    main([*mdp, "--env-args", "states=6", "seed=3", "--score-weight", "value", "--rows", "2"])
    told = json.loads((out / "config.json").read_text())["arguments"]
    assert told["env_args"] == ["states=6", "seed=3"]
    assert np.isfinite(float((out / "history.csv").read_text().splitlines()[1].split(",")[4]))


@pytest.mark.slow
def test_a_follower_that_fails_stops_the_run_and_nothing_is_lost(tmp_path, capsys):
    from bilevel_envs import BilevelWrapper
    from bilevel_envs.followers import SB3Follower

    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), SB3Follower("SoftDQN", 100, learning_starts=10))
    env.best_response(np.array([0.5]))
    agent, hidden = tmp_path / "agent.zip", tmp_path / "hidden.zip"
    env.follower.agents[0].save(agent)
    follower = ["algorithm=SoftDQN", "steps=60", "learning_starts=10", "start=cold", f"model_file={agent}"]
    command = ["train", "--env", "BiLevel/TollBridge-v0", "--runs", "1", "--no-progress", "--follower", "sb3"]
    command += ["--follower-args", *follower]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    main([*command, "--iterations", "4", "--out", str(straight)])
    main([*command, "--iterations", "2", "--out", str(broken)])
    agent.rename(hidden)
    before = {name: content for name, content in files_in(broken).items() if "tensorboard" not in name}
    with pytest.raises(SystemExit) as stop:
        main([*command, "--iterations", "4", "--out", str(broken), "--resume"])
    assert stop.value.code == 3
    error = capsys.readouterr().err
    assert "outer iteration 2: the follower failed (FileNotFoundError: `model_file` must be a zip" in error
    assert "its last checkpoint is whole, --resume goes on from there" in error
    after = files_in(broken)
    assert all(after[name] == content for name, content in before.items() if name != "config.json")
    hidden.rename(agent)
    main([*command, "--iterations", "4", "--out", str(broken), "--resume"])
    assert history(broken) == history(straight)


def test_a_follower_of_ones_own_is_named_by_its_module_and_its_failure_costs_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from bilevel_envs.followers import SoftValueIteration\n\n\n"
        "class Failing:\n"
        "    beta, left = None, 3\n\n"
        "    def best_response(self, model, preferences, start=None):\n"
        "        Failing.left -= 1\n"
        "        if Failing.left < 0:\n"
        "            raise ZeroDivisionError('its own reasons')\n"
        "        return SoftValueIteration().best_response(model, preferences, start)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = ["train", "--env", "BiLevel/TollBridge-v0", "--runs", "1", "--no-progress", "--iterations", "5"]
    command += ["--follower", "mine:Failing", "--out"]
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "broken")])
    error = capsys.readouterr().err
    assert "outer iteration 3: the follower failed (ZeroDivisionError: its own reasons)" in error
    assert "its last checkpoint is whole, --resume goes on from there" in error
    import mine

    mine.Failing.left = 100
    main([*command, str(tmp_path / "broken"), "--resume"])
    assert "resuming after 3 outer iterations" in capsys.readouterr().out
    main([*command, str(tmp_path / "straight")])
    assert history(tmp_path / "broken") == history(tmp_path / "straight")


def test_the_report_tells_what_the_follower_as_it_is_brings(tmp_path, capsys):
    command = ["train", "--env", "BiLevel/TollBridge-v0", "--runs", "2", "--no-progress", "--iterations", "3"]
    main([*command, "--follower", "mixture", "--follower-args", "share=.5", "--out", str(tmp_path / "a")])
    assert "with the follower as it is, not an optimal one: 0." in capsys.readouterr().out
    main([*command, "--out", str(tmp_path / "b")])
    assert "with the follower as it is" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--follower", "sb33"], "`follower` must be one of 'committed'"),
        (["--follower-args", "steps=3"], "`follower_args` need a --follower"),
        (
            ["--follower", "sticky", "--follower-args", "shares=1"],
            "the follower 'sticky' has no argument 'shares'",
        ),
        (["--follower", "sticky", "--follower-args", "share=2"], "`share` must be at least 0 and below 1"),
        (["--follower", "sticky"], "missing a required argument: 'share'"),
    ],
)
def test_followers_are_checked_before_anything_is_written(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["train", "--env", "BiLevel/TollBridge-v0", *arguments, "--out", str(tmp_path / "out"), "--no-progress"])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
