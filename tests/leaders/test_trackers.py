"""Runs in MLflow and in Weights & Biases: what is logged, how they end, and that they never end the learning."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext

import numpy as np
import pytest

from leaders import BCHG, MLflowCallback, WandbCallback
from leaders.cli.main import main
from leaders.experiments.lock import release_all
from leaders.training.tracker import TrackerWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their own imports
    mlflow = pytest.importorskip("mlflow.tracking")
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

TOLL = "BiLevel/TollBridge-v0"
RUN = ["train", "--env", TOLL, "--runs", "2", "--batch", "40", "--no-progress", "--resume"]
COMMAND = [sys.executable, "-c", "import sys; from leaders.cli.main import main; main(sys.argv[1:])"]
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
}  # nothing leaves this machine
pytestmark = [
    pytest.mark.slow,  # MLflow's import and its tables take seconds
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # of the trackers' own
]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A database with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def store(template, tmp_path, monkeypatch):
    """A client of a database of the test's own, which is the default one."""
    for name, text in QUIET.items():
        monkeypatch.setenv(name, text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(template)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow.MlflowClient()
    release_all()


@pytest.fixture
def leader(make):
    return BCHG(make("TollBridge"), runs=2, seed=0, batch_size=40)


def runs_of(store):
    return [run for one in store.search_experiments() for run in store.search_runs([one.experiment_id])]


def only_run(store):
    (run,) = runs_of(store)
    return run


def steps(store, run, metric="leader_value"):
    return [one.step for one in store.get_metric_history(run.info.run_id, metric)]


def records(folder):
    """The records of W&B's offline runs below a folder, by run id; its files are logs of LevelDB's kind."""
    found = {}
    for path in sorted(folder.rglob("offline-run-*/run-*.wandb")):
        data, at, part = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, size, kind = struct.unpack("<IHB", data[at : at + 7])
            part += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last part
                found.setdefault(path.stem, []).append(wandb_internal_pb2.Record.FromString(part))
                part = b""
    return found


def exit_codes(folder, count):
    """Of so many runs; W&B's own process writes them a moment after a run ended."""
    found = []
    for _ in range(100):
        found = [one.exit.exit_code for each in records(folder).values() for one in each if one.HasField("exit")]
        if len(found) == count:
            break
        time.sleep(0.1)
    return found


def ending_with(error, at=3):
    """A callback that ends the learning in its third iteration."""

    def callback(local, _):
        if local["self"].progress.iterations == at:
            raise error

    return callback


def test_mlflow_has_settings_and_the_columns_of_the_history(store, leader):
    leader.learn(7, callback=MLflowCallback(name="toll", parameters={"colour": "red"}), log_interval=3)
    run = only_run(store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "toll")
    told = {"leader": "BCHG", "env": TOLL, "runs": "2", "batch_size": "40", "colour": "red"}
    assert run.data.params == {**run.data.params, **told}
    assert steps(store, run) == [3, 6, 7]
    assert [one.value for one in store.get_metric_history(run.info.run_id, "env_steps")] == [120, 240, 280]
    rows = leader.history["leader_value"][[2, 5, 6]]
    for metric, expected in (("leader_value", rows.mean(1)), ("leader_value/run_1", rows[:, 1])):
        got = [one.value for one in store.get_metric_history(run.info.run_id, metric)]
        np.testing.assert_array_equal(got, expected)
    assert run.data.metrics["theta/0"] == leader.theta[0, 0]
    assert "dynamics_r2" not in run.data.metrics  # not known here


def test_a_tracker_changes_nothing_in_a_run(store, leader, make):
    leader.learn(5, callback=[MLflowCallback()], log_interval=1)
    alone = BCHG(make("TollBridge"), runs=2, seed=0, batch_size=40).learn(5)
    np.testing.assert_array_equal(leader.history.state(), alone.history.state())


def test_metrics_against_environment_steps(store, leader):
    leader.learn(4, callback=MLflowCallback(axis="env_steps"), log_interval=2)
    assert steps(store, only_run(store)) == [80, 160]


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("no"), "FAILED"), (FloatingPointError("nan"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_whatever_ends_the_learning_ends_the_run(store, leader, error, status):
    with pytest.raises(type(error)):
        leader.learn(9, callback=[[MLflowCallback()], ending_with(error)], log_interval=1)
    assert only_run(store).info.status == status
    assert steps(store, only_run(store)) == [1, 2, 3]


def test_a_block_holds_one_run_of_several_learnings_and_its_files(store, leader, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with MLflowCallback() as tracker:
        leader.learn(2, callback=tracker).learn(2, callback=tracker)
        assert only_run(store).info.status == "RUNNING"
        tracker.log_files([tmp_path / "note.txt", tmp_path / "missing.txt"])
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert steps(store, run) == [2, 4]
    assert [one.path for one in store.list_artifacts(run.info.run_id)] == ["note.txt"]


def test_a_later_process_goes_on_in_the_run_that_the_folder_notes(store, leader, make, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        leader.learn(9, callback=[MLflowCallback(folder=tmp_path), ending_with(KeyboardInterrupt())], log_interval=1)
    again = BCHG(make("TollBridge"), runs=2, seed=0, batch_size=40)  # from the beginning: iterations 1 to 3 once more
    again.learn(5, callback=MLflowCallback(folder=tmp_path), log_interval=1)
    assert only_run(store).info.status == "FINISHED"
    assert steps(store, only_run(store)) == [1, 2, 3, 4, 5]


def test_a_run_of_other_settings_is_another_and_ends_the_one_that_was_left(store, leader, make, tmp_path):
    tracker = MLflowCallback(folder=tmp_path)
    tracker.__enter__()  # and never left, as after a SIGKILL
    leader.learn(1, callback=tracker)
    BCHG(make("TollBridge"), seed=5, batch_size=40).learn(1, callback=MLflowCallback(folder=tmp_path))
    assert {run.data.params["seed"]: run.info.status for run in runs_of(store)} == {"0": "KILLED", "5": "FINISHED"}


def test_a_server_that_is_not_there_warns_once_and_learning_goes_on(store, leader, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(TrackerWarning, match="mlflow cannot be reached") as caught:
        leader.learn(5, callback=MLflowCallback(tracking_uri="http://127.0.0.1:1"), log_interval=1)
    assert len(caught) == 1
    assert len(leader.history) == 5


def test_a_database_that_vanishes_warns_once_and_learning_goes_on(store, leader, tmp_path):
    def vanishes(local, _):
        if local["self"].progress.iterations == 2:
            (tmp_path / "mlflow.db").write_bytes(b"no database")

    with pytest.warns(TrackerWarning, match="mlflow cannot be reached") as caught:
        leader.learn(5, callback=[MLflowCallback(), vanishes], log_interval=1)
    assert len(caught) == 1
    assert len(leader.history) == 5


@pytest.mark.parametrize(
    ("error", "status", "code"), [(None, "FINISHED", 0), (ValueError("no"), "FAILED", 1), (SystemExit(), "KILLED", 130)]
)
def test_wandb_has_settings_metrics_and_how_a_run_ended(store, leader, tmp_path, error, status, code):
    callbacks = [WandbCallback(folder=tmp_path), *([] if error is None else [ending_with(error)])]
    with nullcontext() if error is None else pytest.raises(type(error)):
        leader.learn(3, callback=callbacks, log_interval=1)
    assert exit_codes(tmp_path, 1) == [code]
    ((name, found),) = records(tmp_path).items()
    assert name == f"run-{json.loads((tmp_path / 'wandb.json').read_text())['run']}"
    settings = {item.key: item.value_json for one in found if one.HasField("run") for item in one.run.config.update}
    assert settings["batch_size"] == '"40"'
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
        for one in found
        if one.HasField("history")
    ]
    assert [row["iterations"] for row in rows] == [1, 2, 3]
    assert [row["env_steps"] for row in rows] == [40, 80, 120]
    np.testing.assert_array_equal([row["leader_value"] for row in rows], leader.history["leader_value"].mean(1))
    summary = [item for one in found if one.HasField("summary") for item in one.summary.update]
    assert [json.loads(item.value_json) for item in summary if item.key == "ended"] == [status]


def test_wandb_goes_on_in_the_run_that_the_folder_notes(store, leader, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        leader.learn(9, callback=[WandbCallback(folder=tmp_path), ending_with(KeyboardInterrupt())])
    assert exit_codes(tmp_path, 1) == [130]
    time.sleep(1.1)  # W&B's folders are named by the second
    leader.learn(2, callback=WandbCallback(folder=tmp_path))
    assert exit_codes(tmp_path, 2) == [130, 0]
    assert len(records(tmp_path)) == 1  # two files of one id


def test_another_mode_of_wandb_is_refused():
    with pytest.raises(ValueError, match="`mode` must be one of None, 'online', 'offline', 'disabled', got 'off'"):
        WandbCallback(mode="off")


def test_a_study_writes_every_job_to_its_tracker(store, tmp_path):
    study = ["--settings", f"env={TOLL}", "leader=bchg,naive-pgd", "runs=2", "batch=40", "iterations=3", "track=mlflow"]
    main(["sweep", "--out", "study", "--processes", "1", "--no-progress", *study])
    found = {run.info.run_name: run for run in runs_of(store)}
    assert set(found) == {path.name for path in (tmp_path / "study" / "jobs").iterdir()}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    kept = {one.path for one in store.list_artifacts(next(iter(found.values())).info.run_id)}
    assert {"config.json", "history.csv", "theta.csv", "leader.zip", "curve.png", "result.json"} == kept


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, "RUNNING"), (signal.SIGTERM, "KILLED")])
def test_a_run_that_was_killed_goes_on_in_the_same_run_and_ends_finished(store, make, tmp_path, how, status):
    run = [*COMMAND, *RUN, "--out", "out", "--track", "mlflow", "--checkpoint-every", "0.1", "--iterations"]
    process = subprocess.Popen([*run, "100000"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not (found := runs_of(store)) or found[0].data.metrics.get("iterations", 0) < 40:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(how)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert only_run(store).info.status == status
    saved = len(BCHG.load(tmp_path / "out" / "leader.zip", make("TollBridge")).history)
    more = max(saved, int(only_run(store).data.metrics["iterations"])) + 20  # checkpoints are the more frequent ones
    subprocess.run([*run, str(more)], check=True, capture_output=True, env=os.environ)
    done = only_run(store)
    assert done.info.status == "FINISHED"
    assert done.data.metrics["iterations"] == more
    assert len(set(steps(store, done))) == len(steps(store, done))
