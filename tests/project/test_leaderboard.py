"""The tables of the leaderboard are those that the script makes of the files."""

import json

import gymnasium as gym
import pytest

from benchmarks.leaderboard import leaderboard
from benchmarks.leaderboard.leaderboard import Leaderboard


def test_the_pages_show_what_the_files_hold():
    assert leaderboard.TABLE.read_text() == leaderboard.tables()
    readme = leaderboard.README.read_text()
    assert leaderboard.BEGIN in readme
    assert leaderboard.with_overview(readme) == readme


def test_every_file_was_made_within_its_budgets():
    for one in leaderboard.entries():
        steps, solves = one["budget"]["env_steps"], one["budget"]["follower_solves"]
        assert len(one["values"]) == leaderboard.SEEDS
        assert max(one["env_steps"]) <= steps
        assert max(one["follower_solves"]) <= solves
        assert (steps, solves) == (leaderboard.ENVS[one["environment"]][2], leaderboard.SOLVES)


def test_every_environment_is_there_or_left_out_with_a_reason():
    there = {env_id for env_id, _, _ in leaderboard.ENVS.values()}
    names = {one for one in gym.registry if one.startswith("BiLevel/")}
    left_out = {one for one in names if any(one.removeprefix("BiLevel/") in told for told in leaderboard.LEFT_OUT)}
    assert there | left_out == names
    assert not there & left_out


def test_an_entry_is_repeated_and_a_value_that_differs_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leaderboard, "HERE", tmp_path)
    monkeypatch.setattr(leaderboard, "SOLVES", 3)
    again = Leaderboard(("toll-bridge",), ("exact",), again=True)
    with pytest.raises(SystemExit, match="nothing to repeat"):
        again.run()
    told = leaderboard.entry("toll-bridge", "exact")
    path = tmp_path / "raw" / "toll-bridge--exact.json"
    path.parent.mkdir()
    path.write_text(json.dumps(told))
    again.run()
    assert "1 of 1 entries repeated, all values within 1e-06" in capsys.readouterr().out
    told["values"][3] += 1e-5
    path.write_text(json.dumps(told))
    with pytest.raises(SystemExit, match=r"toll-bridge, exact: values of seed 3: 0\.\d+ there, 0\.\d+ now"):
        again.run()
    assert json.loads(path.read_text()) == told
