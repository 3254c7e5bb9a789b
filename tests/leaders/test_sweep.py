"""Studies: what a file says, which jobs follow, and that nothing is lost, renumbered or hidden on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from leaders.cli import sweep as sweeps
from leaders.cli.main import main
from leaders.cli.sweep import SETTINGS, run_job
from leaders.cli.train import Train
from leaders.experiments.lock import LOCK, OWNER, hold
from leaders.experiments.report.page import find_runs
from leaders.experiments.results import RESULT, Table, read_result
from leaders.experiments.run_directory import RunDirectory, read_config
from leaders.experiments.sweep import runner
from leaders.experiments.sweep.arrange import arranged
from leaders.experiments.sweep.engines import DONE, FAILED, STOPPED, Outcome, Processes
from leaders.experiments.sweep.search import Optuna, best_of, search_of
from leaders.experiments.sweep.study import Job, Range, Tune, study_of

TOLL = "BiLevel/TollBridge-v0"
COMMAND = [sys.executable, "-c", "import sys; from leaders.cli.main import main; main(sys.argv[1:])"]
STUDY = """
env: BiLevel/TollBridge-v0
iterations: 3
runs: 2
batch: 40
leader: [bchg, naive-pgd]
learning_rate: [0.05, 1e-1]
"""

ONE = STUDY.replace("[bchg, naive-pgd]", "bchg").replace("[0.05, 1e-1]", "0.1")


def jobs_of(**settings):
    return [cell.job() for cell in study_of({"env": TOLL, **settings}, SETTINGS).cells]


def sweep(folder, *arguments, study=STUDY):
    (folder / "study.yaml").write_text(study)
    main(["sweep", str(folder / "study.yaml"), "--out", str(folder / "out"), "--no-progress", *map(str, arguments)])


def lines(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def bytes_of(folder):
    """The results of a study: histories, θ, tables."""
    kept = ("history.csv", "theta.csv", "result.json", "results.csv", "summary.csv")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in kept}


# What a file says


def test_a_list_is_an_axis_and_the_last_setting_varies_fastest():
    got = [
        (job.config["leader"], job.config["learning_rate"]) for job in jobs_of(leader=["a", "b"], learning_rate=[1, 2])
    ]
    assert got == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_blocks_have_what_the_top_has_and_settings_of_their_own():
    jobs = jobs_of(runs=2, blocks=[{"leader": "bchg", "iterations": 5}, {"leader": "mbhg", "runs": 3}])
    assert [job.config for job in jobs] == [
        {"env": TOLL, "runs": 2, "leader": "bchg", "iterations": 5},
        {"env": TOLL, "runs": 3, "leader": "mbhg"},
    ]


def test_tables_become_pairs_and_may_have_axes_inside():
    jobs = jobs_of(env_args={"size": [4, 5], "name": "a", "shape": {"value": [1, 2]}})
    assert [job.config["env_args"] for job in jobs] == [
        ["size=4", "name=a", "shape=[1, 2]"],
        ["size=5", "name=a", "shape=[1, 2]"],
    ]


def test_numbers_that_yaml_reads_as_words_are_numbers():
    assert [job.config["learning_rate"] for job in jobs_of(learning_rate=["1e-3", "5e-2"])] == [0.001, 0.05]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "got 'learning_rat' (did you mean 'learning_rate'?)"),
        ({"learning_rate": []}, "`learning_rate` must have a value or a list of them, got an empty list"),
        ({"learning_rate": [1, 1]}, "`learning_rate` must name each value once"),
        ({"learning_rate": {"low": 1, "high": 2}}, "`learning_rate` must be a number or a word"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be finite, got nan"),
        ({"env_args": ["size=4"]}, "`env_args` must be a table"),
        ({"blocks": []}, "`blocks` must be a list of tables"),
        ({"blocks": [{"leader": "bchg"}, {"leader": "bchg"}]}, "`blocks` must not describe the same job twice"),
        ({"stack": 1}, "`stack` must be true or false, got 1"),
        (
            {"env": [f"{index}" for index in range(1000)], "seed": list(range(1000))},
            "at most 100,000 jobs, got 1,000,000",
        ),
        ({"tune": [1]}, "`tune` must be a table"),
        ({"tune": {"search": "grid"}}, "`tune` must name settings and their values, got none"),
        ({"tune": {"learning_rate": {"low": 1, "high": 2}}}, "must be a list of values in a grid; for a range take"),
        ({"tune": {"search": "random", "learning_rate": {"low": 2, "high": 1}}}, "must have low < high"),
        ({"tune": {"search": "random", "learning_rate": {"low": 0, "high": 1, "log": True}}}, "both above 0"),
        ({"tune": {"search": "random", "learning_rate": {"low": 0}}}, "or a range {low: , high: "),
        ({"tune": {"search": "best", "learning_rate": [1]}}, "`search` must be one of 'grid', 'random', 'optuna'"),
        ({"tune": {"seed": 5, "learning_rate": [1]}}, "`tune` must use other seeds than the evaluation, 0 to 9"),
        ({"tune": {"skip_failed": 1, "learning_rate": [1]}}, "`skip_failed` must be true or false, got 1"),
        ({"tune": {"seed": [5], "learning_rate": [1]}}, "`seed` must be a whole number"),
    ],
)
def test_what_is_no_study_is_refused_by_name(settings, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        jobs_of(**settings)
    assert message in str(caught.value)


# Which jobs follow


def test_a_job_keeps_its_name_when_the_study_grows():
    before = {job.folder for job in jobs_of(leader=["bchg", "exact"])}
    after = {job.folder for job in jobs_of(leader=["mbhg", "bchg", "naive-pgd", "exact"])}
    assert before < after


def test_runs_that_differ_in_step_sizes_and_seeds_alone_are_stacked():
    jobs = jobs_of(leader=["bchg", "exact"], learning_rate=[0.1, 0.2], runs=2, seed=5)
    run, places = arranged(jobs, lambda job: False, True)
    assert [one.config for one in run.values()] == [
        {"env": TOLL, "leader": name, "learning_rate": [0.1, 0.1, 0.2, 0.2], "runs": 4, "seed": [5, 6, 5, 6]}
        for name in ("bchg", "exact")
    ]
    assert [(place.first, place.count) for job in jobs for place in places[job.folder]] == [(0, 2), (2, 2)] * 2


def test_seeds_of_followers_that_learn_are_jobs_of_their_own():
    (job,) = jobs_of(runs=3, seed=5)
    run, places = arranged([job], lambda job: True, True)
    assert [(one.config["seed"], one.config["runs"]) for one in run.values()] == [(5, 1), (6, 1), (7, 1)]
    assert [place.job for place in places[job.folder]] == list(run.values())


# How settings are chosen


def peak(point):
    return -((np.log10(point["rate"]) + 2) ** 2)  # highest at 0.01


def test_random_points_lie_in_their_range_and_depend_on_the_seed_alone():
    axes = {"rate": Range(1e-4, 1.0, log=True), "size": Range(2, 5, integer=True), "word": ["a", "b"]}
    points = search_of(Tune(axes, "random", count=400, seed=3)).next()
    assert points == search_of(Tune(axes, "random", count=400, seed=3)).next()
    assert {point["size"] for point in points} == {2, 3, 4, 5}
    assert {point["word"] for point in points} == {"a", "b"}
    logs = np.log10([point["rate"] for point in points])
    assert logs.min() > -4
    assert logs.max() < 0
    assert logs.mean() == pytest.approx(-2, abs=4 * 4 / 12**0.5 / 20)


def test_optuna_finds_a_peak_and_the_same_points_after_a_restart():
    tune = Tune({"rate": Range(1e-4, 1.0, log=True)}, "optuna", count=30, batch=5, seed=1)
    search, points, scores = Optuna(tune), [], []
    while batch := search.next():
        points += batch
        scores += [peak(point) for point in batch]
        search.tell(batch, scores[-len(batch) :])
    assert len(points) == 30
    assert abs(np.log10(best_of(points, scores)["rate"]) + 2) < 0.15

    again = Optuna(tune)  # of a command that was killed; the scores are in its jobs' files
    for first in range(0, 30, 5):
        batch = again.next()
        assert batch == points[first : first + 5]
        again.tell(batch, scores[first : first + 5])


def test_points_that_failed_are_never_the_best():
    points = [{"rate": 1}, {"rate": 2}, {"rate": 3}]
    assert best_of(points, [np.nan, -5.0, -6.0]) == {"rate": 2}
    assert best_of(points, [np.nan] * 3) is None


# What came of it


@pytest.mark.slow
def test_the_table_of_a_study_is_what_the_histories_say(tmp_path):
    sweep(tmp_path, "--processes", 1)
    rows = lines(tmp_path / "out" / "results.csv")
    assert [(row["leader"], row["learning_rate"], row["seed"]) for row in rows] == [
        (leader, rate, seed) for leader in ("bchg", "naive-pgd") for rate in ("0.05", "0.1") for seed in ("0", "1")
    ]
    for row in rows:
        history = [one for one in lines(tmp_path / "out" / row["folder"] / "history.csv") if one["run"] == row["run"]]
        assert float(row["score"]) == float(
            history[-1]["leader_value"]
        )  # the last tenth of three iterations is the last
        assert float(row["start"]) == float(history[0]["leader_value"])
        assert row["env_steps"] == history[-1]["env_steps"]
        assert float(row["gap"]) == pytest.approx(float(row["best_known"]) - float(row["score"]))
    summaries = lines(tmp_path / "out" / "summary.csv")
    assert [float(one["mean"]) for one in summaries] == pytest.approx(
        [np.mean([float(row["score"]) for row in rows[i : i + 2]]) for i in range(0, 8, 2)]
    )
    # a run of the table is the run of `bilevel train` with these settings
    alone = ["train", "--env", TOLL, "--iterations", "3", "--runs", "2", "--batch", "40", "--learning-rate", "0.1"]
    main([*alone, "--out", str(tmp_path / "alone"), "--no-progress"])
    theirs = lines(tmp_path / "alone" / "history.csv")
    assert [float(row["score"]) for row in rows[2:4]] == pytest.approx(
        [float(one["leader_value"]) for one in theirs if one["iteration"] == "2"], rel=1e-12
    )


def test_parquet_and_data_frames_hold_the_same_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    rows = [{"env": "a", "seed": 0, "score": 1.5, "why": "x"}, {"env": "a", "seed": 1, "score": None, "why": 2.0}]
    table = Table(rows)
    assert table.columns == ["env", "why", "seed", "score"]
    assert table.write_parquet(tmp_path / "t.parquet")
    got = pandas.read_parquet(tmp_path / "t.parquet")
    assert got["why"].tolist() == ["x", "2.0"]
    assert table.to_pandas()["score"].tolist()[0] == 1.5
    assert np.isnan(got["score"].tolist()[1])


@pytest.mark.slow
def test_a_study_is_idempotent_and_another_one_in_its_folder_is_refused(tmp_path, capsys):
    sweep(tmp_path, "--processes", 1)
    before = bytes_of(tmp_path / "out")
    sweep(tmp_path, "--processes", 1)
    assert "2 jobs are done already" in capsys.readouterr().out
    assert bytes_of(tmp_path / "out") == before
    other = STUDY.replace("[bchg, naive-pgd]", "[bchg, naive-pgd, hpgd]")
    with pytest.raises(SystemExit, match="2"):
        sweep(tmp_path, "--processes", 1, study=other)
    said = capsys.readouterr().err
    assert "must hold this study" in said
    assert 'where `leader` is ["bchg", "naive-pgd"] in place of ["bchg", "naive-pgd", "hpgd"]' in said
    assert bytes_of(tmp_path / "out") == before
    sweep(tmp_path, "--processes", 1, "--extend", study=other)
    after = bytes_of(tmp_path / "out")
    assert {name: after[name] for name in before if "/" in name} == {n: b for n, b in before.items() if "/" in n}
    assert len(lines(tmp_path / "out" / "results.csv")) == 12


@pytest.mark.parametrize("stranger", ["notes.txt", "history.csv"])
def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys, stranger):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / stranger).write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        sweep(tmp_path)
    assert f"{stranger}, which is no part of one" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "out").iterdir()] == [stranger]


def test_what_a_job_would_refuse_is_refused_before_anything_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep(tmp_path, study=STUDY + "critic: [empirical, nonsense]\n")
    told = capsys.readouterr().err
    assert "cannot be run" in told
    assert "nonsense" in told
    assert not (tmp_path / "out").exists()


def test_code_from_outside_the_library_runs_only_when_it_is_trusted(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(SystemExit, match="2"):
        sweep(tmp_path, study=STUDY + "follower: evil:Follower\n")
    assert "--trust evil:Follower" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ("leader: bchgg", "`leader` must be one of 'bchg'"),
        ("env: BiLevel/TollBrige-v0", "`env` must be one of 'BiLevel/BilevelLQR-v0'"),
        ("follower: sb4", "`follower` must be one of"),
        ("learning_rate: 0.1\nlearning_rate: 0.2", "learning_rate is given twice"),
    ],
)
def test_a_slip_in_a_name_is_told_as_one(tmp_path, capsys, slip, said):
    name = slip.partition(":")[0]
    study = "".join(line + "\n" for line in ONE.splitlines() if not line.startswith(name)) + slip + "\n"
    with pytest.raises(SystemExit, match="2"):
        sweep(tmp_path, study=study)
    told = capsys.readouterr().err
    assert said in told
    assert "trust" not in told


def test_no_process_is_no_pool(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep(tmp_path, "--processes", 0)
    assert "`processes` must be at least 1, got 0" in capsys.readouterr().err


def test_the_batch_of_a_search_and_that_of_a_leader_are_told_apart():
    def tune(**settings):
        (cell,) = study_of({"env": TOLL, "seed": 0, "tune": {"search": "random", **settings}}, SETTINGS).cells
        return cell.tune

    ranged = tune(batch={"low": 20, "high": 60, "integer": True})
    assert ranged.axes == {"batch": Range(20, 60, integer=True)}
    assert tune(batch=[20, 40]).axes == {"batch": [20, 40]}
    assert tune(batch=2, learning_rate=[0.1, 0.2]).batch == 2


def test_a_study_that_grows_counts_each_seed_once(tmp_path):
    """A stacked job with one step size more is another job, whose runs are in the folder twice."""
    sweep(tmp_path, "--processes", 1, study=ONE.replace("learning_rate: 0.1", "learning_rate: [0.1, 0.3]"))
    grown = ONE.replace("learning_rate: 0.1", "learning_rate: [0.1, 0.3, 1.0]").replace("runs: 2", "runs: 3")
    sweep(tmp_path, "--processes", 1, "--extend", study=grown)
    seeds = [(float(row["learning_rate"]), int(row["seed"])) for row in find_runs(tmp_path / "out", {}).table.rows]
    assert sorted(seeds) == [(rate, seed) for rate in (0.1, 0.3, 1.0) for seed in range(3)]
    assert {row["seeds"] for row in lines(tmp_path / "out" / "summary.csv")} == {"3"}


def test_seeds_that_two_jobs_have_in_common_are_counted_once(tmp_path):
    sweep(tmp_path, "--processes", 1, study=ONE + "seed: [0, 1]\n")
    assert [row["seed"] for row in lines(tmp_path / "out" / "results.csv")] == ["0", "1", "2"]
    (row,) = lines(tmp_path / "out" / "summary.csv")
    assert row["seeds"] == "3"


def test_runs_of_another_length_are_another_setting(tmp_path):
    sweep(tmp_path, "--processes", 1, study=ONE.replace("iterations: 3", "iterations: [3, 6]"))
    rows = lines(tmp_path / "out" / "summary.csv")
    assert [(row["iterations"], row["seeds"], row["env_steps"]) for row in rows] == [
        ("3", "2", "120.0"),
        ("6", "2", "240.0"),
    ]


@pytest.mark.slow
def test_settings_of_the_command_line_go_over_those_of_the_file(tmp_path):
    sweep(tmp_path, "--settings", "leader=hpgd", "learning_rate=0.2", "--processes", "1")
    (row,) = {(row["leader"], row["learning_rate"]) for row in lines(tmp_path / "out" / "results.csv")}
    assert row == ("hpgd", "0.2")


@pytest.mark.slow
def test_a_result_cut_short_at_any_byte_is_damaged_or_missing_never_another(tmp_path):
    sweep(tmp_path, "--processes", 1, study=STUDY + "blocks: [{leader: bchg, learning_rate: 0.1}]\n")
    (folder,) = (tmp_path / "out" / "jobs").iterdir()
    whole = (folder / RESULT).read_bytes()
    good = read_result(folder)
    for length in range(len(whole)):
        (folder / RESULT).write_bytes(whole[:length])
        if length == len(whole) - 1:
            assert read_result(folder) == good  # without its last newline
            continue
        with pytest.raises(ValueError, match="result.json is damaged"):
            read_result(folder)
    (folder / RESULT).write_bytes(whole[: len(whole) // 2])
    sweep(tmp_path, "--processes", 1, study=STUDY + "blocks: [{leader: bchg, learning_rate: 0.1}]\n")
    assert (folder / RESULT).read_bytes() == whole


@pytest.mark.slow
def test_what_a_dead_process_left_behind_does_not_make_a_study_wait(tmp_path):
    out = tmp_path / "out"
    sweep(tmp_path, "--processes", 1)
    before = bytes_of(out)
    job = next((out / "jobs").iterdir())
    for folder in (out, job):  # as a kill leaves them
        (folder / LOCK).touch()
        (folder / OWNER).write_text(json.dumps({"process": os.getpid(), "host": "gone", "since": "2026-01-01"}))
        (folder / f".{RESULT}.123.part").write_text("{")
    (out / "logs" / f"{job.name}.running").touch()
    (out / ".stop").touch()
    (job / RESULT).unlink()
    began = time.monotonic()
    sweep(tmp_path, "--processes", 1)
    assert time.monotonic() - began < 50  # BUSY, for which a folder that is held is waited for, is 60
    assert bytes_of(out) == before
    assert not (out / ".stop").exists()


def test_a_study_killed_at_its_first_write_can_be_begun_again(tmp_path, monkeypatch):
    def killed(path, content):
        raise KeyboardInterrupt

    replace_file = runner.replace_file
    monkeypatch.setattr(runner, "replace_file", killed)
    with pytest.raises(SystemExit, match="3"):
        sweep(tmp_path, "--processes", 1, study=ONE)
    assert not (tmp_path / "out" / "study.json").exists()
    monkeypatch.setattr(runner, "replace_file", replace_file)
    sweep(tmp_path, "--processes", 1, study=ONE)


def test_a_study_in_one_process_keeps_its_folder_from_job_to_job(tmp_path, monkeypatch):
    seen, ended = [], runner.Told.ended

    def looking(self, job, outcome):
        ended(self, job, outcome)
        with pytest.raises(BlockingIOError, match="is written to by process"):
            hold(tmp_path / "out")
        seen.append(job)

    monkeypatch.setattr(runner.Told, "ended", looking)
    sweep(tmp_path, "--processes", 1)
    assert len(seen) == 2


def job_of(folder, **further):
    """The outcome of a small job."""
    (folder / "logs").mkdir(exist_ok=True)
    job = Job({"env": TOLL, "iterations": 2, "runs": 1, "batch": 40})
    return run_job(job, out=folder, here=folder, every=0.0, **further)


def test_a_job_whose_sweep_is_gone_ends_before_it_begins(tmp_path):
    assert job_of(tmp_path, starter=os.getppid() + 1).status == STOPPED
    assert not (tmp_path / "jobs").exists()
    assert job_of(tmp_path, starter=os.getppid()).status == DONE


def test_a_sweep_of_one_process_goes_on_when_its_shell_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "POLL", 0.0)
    parents = iter(range(2, 1000))  # of a command under nohup whose terminal is closed
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    sweep(tmp_path, "--processes", 1, study=ONE)
    assert len(lines(tmp_path / "out" / "results.csv")) == 2


def test_a_job_that_was_overtaken_tries_again_and_does_not_wait_for_itself(tmp_path, monkeypatch):
    files, calls = RunDirectory._files, []

    def changing(self):
        calls.append(self)
        return files(self) | ({"leader.zip": (0, 0)} if len(calls) == 1 else {})

    monkeypatch.setattr(RunDirectory, "_files", changing)
    monkeypatch.setattr(sweeps, "BUSY", 1.0)
    assert job_of(tmp_path) == Outcome(DONE, "", pytest.approx(0, abs=60))
    assert len(calls) == 4


FAILING = """
from pathlib import Path

import gymnasium as gym
from bilevel_envs.envs.toll_bridge import TollBridge
from bilevel_envs.gym_env import make_env


class Failing(TollBridge):
    calls = 0

    def model(self, theta):
        Failing.calls += any(Path("out/logs").glob("Failing*.running"))  # in the job alone
        if Failing.calls == 6:
            raise ZeroDivisionError("the bridge is closed")
        return super().model(theta)


gym.register("Failing-v0", "bilevel_envs.gym_env:make_env", max_episode_steps=10, kwargs={"problem": "failing:Failing"})
"""
WITH_A_FAILURE = STUDY.replace(
    "env: BiLevel/TollBridge-v0", "env: ['failing:Failing-v0', BiLevel/TollBridge-v0]"
).replace("leader: [bchg, naive-pgd]", "leader: bchg")


WAITING = (
    "import time\n"
    + FAILING
    + """

class Waiting(TollBridge):
    def model(self, theta):
        while any(Path("out/logs").glob("Waiting*.running")) and not Path("go").exists():
            time.sleep(0.05)
        return super().model(theta)


gym.register("Waiting-v0", "bilevel_envs.gym_env:make_env", max_episode_steps=10, kwargs={"problem": "failing:Waiting"})
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_job_is_told_while_a_later_one_is_under_way_and_is_tried_again(tmp_path, processes):
    """The later job goes on only after the failure was read from the command's output."""
    (tmp_path / "failing.py").write_text(WAITING)
    names = ["failing:Failing-v0", "failing:Waiting-v0"]
    (tmp_path / "study.yaml").write_text(ONE.replace("env: BiLevel/TollBridge-v0", f"env: {names}"))
    command = [*COMMAND, "sweep", "study.yaml", "--out", "out", "--processes", str(processes), "--trust", *names]
    sweeping = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(240, (tmp_path / "go").touch)  # fails, and does not hang, where nothing is told
    watchdog.start()
    told = next(line for line in sweeping.stdout if "failed" in line)
    at_once = not (tmp_path / "go").exists()
    watchdog.cancel()
    ended = list((tmp_path / "out" / "jobs").glob(f"Waiting*/{RESULT}"))
    (tmp_path / "go").touch()
    _, said = sweeping.communicate()
    assert at_once
    assert not ended
    assert "jobs/Failing-v0-bchg" in told
    assert "the bridge is closed" in told
    assert sweeping.returncode == 3, said
    assert "1 job failed" in said
    (log,) = (tmp_path / "out" / "logs").glob("Failing*.log")
    assert "ZeroDivisionError: the bridge is closed" in log.read_text()
    (tmp_path / "failing.py").write_text(WAITING.replace("== 6", "== -1"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {row["env"] for row in lines(tmp_path / "out" / "results.csv")} == set(names)


def test_one_failed_job_hides_no_result_of_another(tmp_path, monkeypatch, capsys):
    run = Train.run

    def failing(self, stop=None):
        if self.leader == "bchg":
            raise ZeroDivisionError("the bridge is closed")
        return run(self, stop)

    monkeypatch.setattr(Train, "run", failing)
    with pytest.raises(SystemExit, match="3"):
        sweep(tmp_path, "--processes", 1)
    told = capsys.readouterr()
    assert "naive-pgd" in told.out
    assert f"wrote {tmp_path / 'out'}/results.csv" in told.out
    assert "1 job failed" in told.err
    for name in ("results.csv", "summary.csv"):
        assert {row["leader"] for row in lines(tmp_path / "out" / name)} == {"naive-pgd"}
    assert len(find_runs(tmp_path / "out", {}).table.rows) == 4  # two seeds of two step sizes


@pytest.mark.slow
def test_fail_fast_stops_everything_and_leaves_it_resumable(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    (tmp_path / "study.yaml").write_text(WITH_A_FAILURE)
    command = [*COMMAND, "sweep", "study.yaml", "--out", "out", "--processes", "1", "--trust", "failing:Failing-v0"]
    done = subprocess.run([*command, "--fail-fast"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert not (tmp_path / "out" / "results.csv").exists()  # the first job failed, the second was not begun
    (tmp_path / "failing.py").write_text(FAILING.replace("== 6", "== -1"))
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    assert len(lines(tmp_path / "out" / "results.csv")) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "skip"), [(ZeroDivisionError, False), (KeyboardInterrupt, False), (ZeroDivisionError, True)]
)
def test_a_search_that_was_stopped_or_failed_in_a_job_ends_as_if_it_had_not(tmp_path, monkeypatch, capsys, error, skip):
    """The first job of the second batch; where failures are skipped the search goes on without it."""
    tune = "tune: {learning_rate: {low: 0.01, high: 1, log: true}, search: optuna, count: 4, batch: 2, runs: 2"
    study = ONE.replace("learning_rate: 0.1", f"stack: false\n{tune}{', skip_failed: true' * skip}}}")
    run, calls = Train.run, []

    def failing(self, stop=None):
        calls.append(self)
        if len(calls) == 5:
            raise error("the bridge is closed")
        return run(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Train, "run", failing)
        with pytest.raises(SystemExit, match="3"):
            sweep(tmp_path, "--processes", 1, study=study)
    waits = "for which 1 of the study's searches wait (`tune: skip_failed` goes on without)"
    assert (waits in capsys.readouterr().err) == (error is ZeroDivisionError and not skip)
    assert (tmp_path / "out" / "jobs").exists() == skip
    if not skip:
        sweep(tmp_path, "--processes", 1, study=study)
        (tmp_path / "whole").mkdir()
        sweep(tmp_path / "whole", "--processes", 1, study=study)
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole" / "out")


@pytest.mark.parametrize(("name", "read"), [("study.json", runner.read_source), ("config.json", read_config)])
def test_a_study_or_a_configuration_cut_short_at_any_byte_is_damaged_never_another(tmp_path, name, read):
    sweep(tmp_path, "--processes", 1, study=ONE)
    (path,) = (tmp_path / "out").rglob(name)
    whole, good = path.read_bytes(), read(path.parent)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length == len(whole) - 1:
            assert read(path.parent) == good  # without its last newline
            continue
        with pytest.raises(ValueError, match=f"{name} is (damaged|not a run's)"):
            read(path.parent)


@pytest.mark.slow
def test_one_process_and_two_give_the_same_tables(tmp_path):
    study = STUDY.replace("leader:", "tune: {learning_rate: {low: 0.01, high: 1, log: true}, search: optuna, count: 4, "
                          "batch: 2, runs: 2}\nleader:").replace("learning_rate: [0.05, 1e-1]", "")  # fmt: skip
    found = []
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        sweep(tmp_path / str(processes), "--processes", processes, study=study)
        found.append(bytes_of(tmp_path / str(processes) / "out"))
    assert found[0] == found[1]
    rows = lines(tmp_path / "1" / "out" / "results.csv")
    assert {row["phase"] for row in rows} == {"selection", "evaluation"}
    assert not {r["seed"] for r in rows if r["phase"] == "selection"} & {
        r["seed"] for r in rows if r["phase"] == "evaluation"
    }
    for leader in ("bchg", "naive-pgd"):  # what is evaluated is what the selection liked best
        mine = [row for row in rows if row["leader"] == leader]
        (rate,) = {row["learning_rate"] for row in mine if row["phase"] == "evaluation"}
        tried = {row["learning_rate"] for row in mine if row["phase"] == "selection"}
        mean = {
            one: np.mean([float(r["score"]) for r in mine if r["phase"] == "selection" and r["learning_rate"] == one])
            for one in tried
        }
        assert mean[rate] == max(mean.values())


@pytest.mark.slow
def test_a_job_whose_process_dies_is_tried_again_and_given_up_after_five_deaths(tmp_path):
    jobs = [Job({"env": f"{index}"}) for index in range(4)]
    deadly = Deadly(tmp_path)
    ended = {job.config["env"]: outcome for job, outcome in Processes(2)(jobs, deadly, deadly.under_way)}
    assert ended["0"].status == FAILED
    assert "ended 5 times before the job did" in ended["0"].message
    assert [ended[name].message for name in ("1", "2", "3")] == ["1", "2", "3"]


@pytest.mark.slow
def test_no_process_of_a_pool_outlives_a_command_that_is_killed(tmp_path):
    code = (
        "import pathlib, sys; from leaders.experiments.sweep.engines import Processes;"
        "from leaders.experiments.sweep.study import Job; from tests.leaders.test_sweep import Telling;"
        "jobs = [Job({'env': str(one)}) for one in range(5)];"
        "list(Processes(2)(jobs, Telling(pathlib.Path(sys.argv[1])), lambda job: False))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.done"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(workers) == 2
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    begun = {path.stem for path in tmp_path.glob("*.begun")}
    assert begun == {path.stem for path in tmp_path.glob("*.done")}  # what was under way came to its end


@pytest.mark.slow
def test_a_process_of_a_pool_without_a_job_does_not_outlive_its_command(tmp_path):
    """The command is killed as soon as it has a child, which has imported nothing and has no job yet."""
    (tmp_path / "study.yaml").write_text(STUDY)
    arguments = ["sweep", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--processes", "2"]
    process = subprocess.Popen([*COMMAND, *arguments, "--no-progress"])
    deadline = time.monotonic() + 120
    while not (workers := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert workers
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def children(process):
    """Processes that a process has started for a pool."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == process and b"popen_loky" in path.with_name("cmdline").read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it is gone
            continue
    return found


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Telling:
    """A job that tells in which process it is and when it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, job):
        name = job.config["env"]
        (self.folder / f"{os.getpid()}.pid").touch()
        (self.folder / f"{name}.begun").touch()
        time.sleep(4.0 if name in "34" else 0.1)
        (self.folder / f"{name}.done").touch()
        return Outcome(DONE)


class Deadly:
    """Job 0 kills its process; the others do not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, job):
        name = job.config["env"]
        (self.folder / name).touch()
        if name == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / name).unlink()
        return Outcome("done", name)

    def under_way(self, job):
        return (self.folder / job.config["env"]).exists()
