"""Checkpoints of a run under way: their history is beside them, and what each one adds does not grow."""

import json
import os
import zipfile

import numpy as np
import pytest

from leaders import BCHG
from leaders.experiments.run_directory import RunDirectory
from leaders.training.checkpoint import read, rows_beside
from tests.helpers import toll_bridge


def led(iterations=4):
    return BCHG(toll_bridge(), runs=2, batch_size=40).learn(iterations)


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path, {})
    leader = led()
    directory.save_checkpoint(leader)
    return directory, leader, tmp_path / "leader.zip"


def test_a_checkpoint_is_the_leader_and_the_whole_one_after_it_too(run):
    directory, leader, path = run
    with zipfile.ZipFile(path) as archive:
        assert "history.npy" not in archive.namelist()
    for more in (0, 3, 2):
        leader.learn(more)
        directory.save_checkpoint(leader)
        again = BCHG.load(path, toll_bridge())
        np.testing.assert_array_equal(again.history.state(), leader.history.state())
        np.testing.assert_array_equal(again.learn(2).theta, BCHG.load(path, toll_bridge()).learn(2).theta)
    directory.save(leader)
    assert not rows_beside(path).exists()
    np.testing.assert_array_equal(BCHG.load(path, toll_bridge()).history.state(), leader.history.state())


def test_a_checkpoint_adds_the_new_rows_alone(run):
    directory, leader, path = run
    row = leader.history.state()[:1].nbytes
    inode = rows_beside(path).stat().st_ino
    before = rows_beside(path).read_bytes()
    assert len(before) == 4 * row
    leader.learn(3)
    directory.save_checkpoint(leader)
    after = rows_beside(path).read_bytes()
    assert len(after) == 7 * row
    assert after[: 4 * row] == before
    assert rows_beside(path).stat().st_ino == inode  # added to, not written anew
    assert path.stat().st_size < 30_000


def test_what_a_kill_between_rows_and_checkpoint_leaves_is_passed_over(run):
    _, leader, path = run
    with open(rows_beside(path), "ab") as file:
        file.write(b"\1" * 57)  # rows of the next checkpoint, cut short
    again = BCHG.load(path, toll_bridge())
    np.testing.assert_array_equal(again.history.state(), leader.history.state())
    other = RunDirectory(path.parent, {})  # of the process that goes on
    again.learn(2)
    other.save_checkpoint(again)
    np.testing.assert_array_equal(BCHG.load(path, toll_bridge()).history.state(), led(6).history.state())


def test_the_first_checkpoint_of_a_process_that_goes_on_replaces_the_rows_at_once(run):
    _, _, path = run
    rows, beside = rows_beside(path), path.parent / "kept"
    before = rows.read_bytes()
    os.link(rows, beside)  # what leader.zip counts until it is replaced, should a kill come between
    RunDirectory(path.parent, {}).save_checkpoint(BCHG.load(path, toll_bridge()).learn(2))
    assert beside.read_bytes() == before
    assert rows.read_bytes()[: len(before)] == before
    np.testing.assert_array_equal(BCHG.load(path, toll_bridge()).history.state(), led(6).history.state())


@pytest.mark.parametrize("damage", ["short", "flipped", "gone", "shape", "huge"])
def test_rows_that_do_not_belong_to_a_checkpoint_are_refused_by_name(run, damage):
    _, _, path = run
    rows = rows_beside(path)
    content = bytearray(rows.read_bytes())
    if damage == "short":
        rows.write_bytes(content[:-1])
    elif damage == "flipped":
        content[100] ^= 1
        rows.write_bytes(content)
    elif damage == "gone":
        rows.unlink()
    else:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        described = json.loads(parts["leader.json"])
        described["history"]["shape"] = [10**12, 18, 2] if damage == "huge" else [-1, 2]
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in (parts | {"leader.json": json.dumps(described)}).items():
                archive.writestr(name, part)
    with pytest.raises(ValueError, match=r"`path` must be a file that `save` wrote; .*history"):
        BCHG.load(path, toll_bridge())


def test_a_history_cut_short_at_any_byte_is_damaged_never_another(run):
    _, _, path = run
    rows = rows_beside(path)
    whole = rows.read_bytes()
    for length in range(0, len(whole), 3):
        rows.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="leader.history, .* is missing or cut short"):
            read(path)


def test_a_data_frame_of_a_history_is_its_csv_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    history = led(3).history
    history.write_csv(tmp_path / "history.csv")
    pandas.testing.assert_frame_equal(history.to_pandas(), pandas.read_csv(tmp_path / "history.csv"), check_exact=True)
