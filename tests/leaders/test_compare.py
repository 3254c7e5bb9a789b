import csv

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import Mixture, SB3Follower, Truncated
from leaders import BCHG, NaivePGD
from leaders.cli.main import main
from leaders.experiments import compare
from leaders.experiments.run_directory import read_config

GRID = {"learning_rate": [0.5, 0.01], "critic_learning_rate": [0.3, 0.9]}


def test_a_grid_point_is_what_it_would_be_alone(make):
    env = make("FourRooms")
    result = compare.run_grid(env, "bchg", grid=GRID, runs=2, iterations=8, seed=3, preset="paper")
    assert result.value.shape == (8, 4, 2)
    assert result.points[2] == {"learning_rate": 0.01, "critic_learning_rate": 0.3}
    alone = BCHG(env, preset="paper", seed=4, learning_rate=0.01, critic_learning_rate=0.3).learn(8)
    np.testing.assert_allclose(result.value[:, 2, 1], alone.history["leader_value"][:, 0], atol=1e-9)
    assert result.env_steps[:, 3].tolist() == [100.0 * k for k in range(1, 9)]
    assert result.follower_solves[:, 0].tolist() == list(range(1, 9))


def test_settings_that_a_leader_does_not_take_are_left_out_of_its_grid(make):
    env = make("FourRooms")
    for name, points in (("naive-pgd", 2), ("hpgd-mc", 2), ("hpgd-sa", 4), ("exact", 2)):
        result = compare.run_grid(env, name, grid=GRID, runs=2, iterations=2, preset="paper", batch_size=100)
        assert len(result.points) == points


def test_the_best_point_is_chosen_by_the_last_tenth():
    value = np.zeros((20, 2, 3))
    value[:18, 0] = 10.0  # early success does not count
    value[18:, 1] = 1.0
    points = [{"learning_rate": 1.0}, {"learning_rate": 2.0}]
    result = compare.Result("bchg", points, value, *[np.zeros((20, 2))] * 3)
    assert result.best == 1
    np.testing.assert_array_equal(result.scores, [[0, 0, 0], [1, 1, 1]])
    assert result.summary().mean == 1.0


def test_further_seeds_choose_the_best_point_and_judge_nothing(make, tmp_path):
    """The second point is better on the seeds that are judged, the first on those that choose."""
    value = np.stack([np.zeros((20, 3)), np.ones((20, 3))], 1)
    points = [{"learning_rate": 1.0}, {"learning_rate": 2.0}]
    spent = [np.zeros((20, 2))] * 3
    result = compare.Result("bchg", points, value, *spent, choosing=np.array([[5.0, 5.0], [4.0, 4.0]]))
    assert (result.best, result.summary().mean) == (0, 0.0)
    compare.save_result(result, tmp_path / "r.npz")
    assert compare.load_result(tmp_path / "r.npz").best == 0
    (_, row) = compare.write_table([result], tmp_path / "results.csv")
    assert row[:4] == ["bchg", "learning_rate=1", "2 seeds", "3"]

    grid = {"learning_rate": [0.5, 0.01]}
    apart = compare.run_grid(make("TollBridge"), "naive-pgd", grid=grid, runs=(2, 3), iterations=10, seed=4)
    whole = compare.run_grid(make("TollBridge"), "naive-pgd", grid=grid, runs=5, iterations=10, seed=4)
    np.testing.assert_array_equal(apart.value, whole.value[:, :, :2])
    np.testing.assert_array_equal(apart.choosing, whole.scores[:, 2:])
    one = compare.run_grid(make("TollBridge"), "naive-pgd", runs=(2, 3), iterations=2)
    assert one.value.shape == (2, 1, 2)  # nothing to choose, no further seeds


def test_results_survive_a_file(tmp_path, make):
    for grid in (GRID, {}):
        result = compare.run_grid(make("TollBridge"), "bchg", grid=grid, runs=2, iterations=3)
        compare.save_result(result, tmp_path / "r.npz")
        again = compare.load_result(tmp_path / "r.npz")
        assert [sorted(p.items()) for p in again.points] == [sorted(p.items()) for p in result.points]
        np.testing.assert_array_equal(again.value, result.value)


COMMAND = [
    "compare",
    "--env",
    "BiLevel/TollBridge-v0",
    "--leaders",
    "bchg,naive-pgd",
    "--runs",
    "3",
    "--iterations",
    "40",
]


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_figure(tmp_path, capsys):
    out = tmp_path / "out"
    main([*COMMAND, "--grid", "learning_rate=0.5,0.001", "--out", str(out)])
    with open(out / "results.csv") as file:
        rows = {row["leader"]: row for row in csv.DictReader(file)}
    assert rows["bchg"]["hyper-parameters"] == "learning_rate=0.5"
    assert float(rows["bchg"]["mean"]) > 0.85 > 0.3 > float(rows["naive-pgd"]["mean"])
    assert rows["bchg"]["env_steps"] == "4000"
    assert (out / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "bchg" in capsys.readouterr().out
    before = (out / "results.csv").read_bytes()
    told = (out / "config.json").read_bytes()
    for arguments, message in ((["--iterations", "50"], "holds 40 iterations of bchg, wanted are 50 of bchg"),):
        with pytest.raises(SystemExit):
            main([*COMMAND, "--grid", "learning_rate=0.5,0.001", *arguments, "--out", str(out), "--resume"])
        assert message in capsys.readouterr().err
    whole = (out / "bchg.npz").read_bytes()
    (out / "bchg.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit):
        main([*COMMAND, "--grid", "learning_rate=0.5,0.001", "--out", str(out), "--resume"])
    assert "bchg.npz is damaged or no result" in capsys.readouterr().err
    assert (out / "config.json").read_bytes() == told
    (out / "bchg.npz").write_bytes(whole)
    main([*COMMAND, "--grid", "learning_rate=0.5,0.001", "--out", str(out), "--resume"])
    assert (out / "results.csv").read_bytes() == before


def test_a_comparison_that_is_stopped_says_how_it_goes_on(tmp_path, capsys, monkeypatch):
    run_grid, out = compare.run_grid, tmp_path / "out"

    def stopped(env, name, **further):
        if name == "naive-pgd" and further["iterations"] > 1:
            raise KeyboardInterrupt
        return run_grid(env, name, **further)

    monkeypatch.setattr(compare, "run_grid", stopped)
    with pytest.raises(SystemExit, match="3"):
        main([*COMMAND, "--out", str(out)])
    assert "stopped; what has been saved is kept, and the same command with --resume goes on" in capsys.readouterr().err
    monkeypatch.setattr(compare, "run_grid", run_grid)
    done = (out / "bchg.npz").stat().st_mtime_ns
    main([*COMMAND, "--out", str(out), "--resume"])
    assert (out / "bchg.npz").stat().st_mtime_ns == done
    assert (out / "naive-pgd.npz").exists()


@pytest.mark.slow
def test_leaders_are_compared_with_the_follower_that_is_there(tmp_path, make):
    """On the toll bridge half of what a follower does at random crosses the bridge, whatever the toll."""
    found = {}
    for value in ("leader_value", "leader_value_actual"):
        told = ["--follower", "mixture", "--follower-args", "share=0.5", "--value", value]
        main([*COMMAND, "--leaders", "naive-pgd", *told, "--out", str(tmp_path / value)])
        found[value] = compare.load_result(tmp_path / value / "naive-pgd.npz").value
    leader = NaivePGD(BilevelWrapper(make("TollBridge").env, Mixture(0.5)), runs=3, seed=[0, 1, 2]).learn(40)
    for value, curves in found.items():
        np.testing.assert_array_equal(curves[:, 0], leader.history[value])
    assert np.abs(found["leader_value"] - found["leader_value_actual"]).max() > 0.01


@pytest.mark.slow
def test_values_that_are_not_known_are_refused_in_a_comparison():
    env = BilevelWrapper(gym.make("BiLevel/GuidedPendulum-v0"), SB3Follower("SAC", 60, learning_starts=20))
    how = {"runs": 2, "iterations": 1, "batch_size": 40}
    with pytest.raises(ValueError, match="`value` must be one that is known here, leader_return; got 'leader_value'"):
        compare.run_grid(env, "naive-pgd", **how)
    assert np.isfinite(compare.run_grid(env, "naive-pgd", value="leader_return", **how).value).all()


def test_returns_are_compared_where_no_model_is_solved(tmp_path):
    how = ["--follower-args", "algorithm=SAC", "steps=60", "learning_starts=20"]
    world = ["--env", "BiLevel/GuidedPendulum-v0", "--follower", "sb3", *how, "--batch", "40"]
    out = tmp_path / "out"
    main(["compare", *world, "--leaders", "naive-pgd", "--iterations", "1", "--runs", "2", "--out", str(out)])
    assert compare.load_result(out / "naive-pgd.npz").column == "leader_return"
    assert read_config(out)["value"] == "leader_return"


@pytest.mark.slow
def test_each_leader_has_a_follower_of_its_own(tmp_path):
    told = ["--follower", "sb3", "--follower-args", "algorithm=SoftDQN", "steps=40", "learning_starts=10"]
    for leaders in ("naive-pgd,bchg", "bchg"):
        out = ["--out", str(tmp_path / leaders)]
        main([*COMMAND, *told, "--iterations", "3", "--value", "leader_value_actual", "--leaders", leaders, *out])
    second, alone = (compare.load_result(tmp_path / leaders / "bchg.npz") for leaders in ("naive-pgd,bchg", "bchg"))
    np.testing.assert_array_equal(second.value, alone.value)
    assert second.follower_steps[-1, 0] == 3 * 40
    table = (tmp_path / "bchg" / "results.csv").read_text().splitlines()
    assert table[0].endswith("env_steps,follower_solves,follower_steps,value")
    assert table[1].endswith(",300,3,120,leader_value_actual")


def test_the_figure_says_what_it_shows():
    curves = np.zeros((4, 1, 3))
    spent = np.arange(4.0)[:, None]
    for column, known in (("leader_value", True), ("leader_return", False)):
        figure = compare.comparison_figure(
            [compare.Result("bchg", [{}], curves, spent, spent, spent, column)], "t", 1.0
        )
        left, right = figure.axes
        assert left.get_ylabel() == compare.VALUES[column]
        assert right.get_xlabel() == "steps of the follower per run"
        assert (len(left.lines) == 2) == known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--leaders", "bchg,sgd"], "`leaders` must be one of 'bchg'"),
        (["--grid", "batch_size=10,20"], "`grid` must be one of 'learning_rate', 'critic_learning_rate'"),
        (["--grid", "learning_rate=fast"], "`grid` must be KEY=NUMBER,NUMBER,..., got 'learning_rate=fast'"),
        (["--grid", "learning_rate=-1"], "`learning_rate` must be above 0"),
        (["--runs", "1"], "`runs` must be at least 2"),
        (["--selection-seeds", "-1"], "`selection_seeds` must be at least 0"),
        (["--seed", "-1"], "`seed` must be at least 0"),
        (["--leaders", "bchg,bchg"], "`leaders` must name each leader once"),
        (["--leaders", "exact", "--preset", "papers"], "`preset` must be one of None, 'paper'"),
        (["--grid", "learning_rate=0.1", "learning_rate=0.2"], "`grid` must give each key once"),
        (["--follower", "sb4"], "`follower` must be one of"),
        (["--follower-args", "share=0.1"], "`follower_args` need a --follower, got share"),
        (["--value", "reward"], "`value` must be one of 'leader_value', 'leader_value_actual', 'leader_return'"),
        (
            ["--follower", "sb3", "--follower-args", "algorithm=PPO"],
            "bchg cannot take part: V_F is not available",
        ),
        (
            ["--follower", "sb3", "--follower-args", "algorithm=SAC"],
            "`algorithm` must be one of SoftDQN, DQN, PPO, A2C for discrete actions, got SAC",
        ),
        (["--follower", "observed", "--follower-args", "method=linear"], '`method` must be "counts" or "network" here'),
        (["--follower", "nobody:Follower"], "`follower` must be MODULE:CLASS that can be imported"),
        (["--follower", "mixture", "--follower-args", "share=1", "share=2"], "`follower_args` must give each key once"),
        (["--leaders", "naive-pgd,exact", "--value", "leader_return"], "`value` must be one that is known here"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main([*COMMAND, *arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_grid_points_share_the_noise_of_a_truncated_follower(make):
    env = BilevelWrapper(make("FourRooms", beta=3e-3).env, Truncated(rounds=2))
    grid = {"learning_rate": [0.1, 0.1 + 1e-15]}
    result = compare.run_grid(env, "bchg", grid=grid, runs=2, iterations=4, preset="paper")
    np.testing.assert_allclose(result.value[:, 0], result.value[:, 1], atol=1e-9)
