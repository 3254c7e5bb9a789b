"""What `bilevel doctor` tells, and what the command says to what does not exist."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from leaders.cli import doctor
from leaders.cli.main import main


def test_versions_threads_cache_and_what_is_missing_are_told(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", doctor.OPTIONAL | {"no_such_package": ("flying", "wings")})
    main(["doctor"])
    told = capsys.readouterr().out
    assert f"torch {importlib.metadata.version('torch')}" in told
    assert "no_such_package: missing, for flying (pip install 'bilevel-envs[wings]')" in told
    assert "machine code is kept in" in told


def test_a_place_that_cannot_be_written_to_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "gone"))
    main(["doctor"])
    assert "each process compiles anew; set NUMBA_CACHE_DIR" in capsys.readouterr().out


TRAIN = "train --env BiLevel/TollBridge-v0 --out y"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("trian", "no command trian (did you mean 'train'?)"),
        ("reproduce four-room", "no figure four-room (did you mean 'four-rooms'?)"),
        (f"{TRAIN} --itertions 3", "no flag --itertions (did you mean '--iterations'?)"),
        (f"{TRAIN} --critic_learning_rte=3", "no flag --critic-learning-rte (did you mean '--critic-learning-rate'?)"),
        (f"{TRAIN} --no-progres", "no flag --no-progres (did you mean '--no-progress'?)"),
        ("train --leder bchg", "no flag --leder (did you mean '--leader'?)"),  # --env and --out are missing, too
        ("reproduce four-rooms --out y --leders bchg", "no flag --leders (did you mean '--leaders'?)"),
        ("best-known x --drws 3", "no flag --drws (did you mean '--draws'?)"),
        (f"{TRAIN} --leader bcgh", "got 'bcgh' (did you mean 'bchg'?)"),
        (f"{TRAIN} --leader BCHG", "got 'BCHG' (did you mean 'bchg'?)"),
        (f"{TRAIN} --preset papre", "got 'papre' (did you mean 'paper'?)"),
        (f"{TRAIN} --follower ricati", "got 'ricati' (did you mean 'riccati'?)"),
        (f"{TRAIN} --track wandbb", "got 'wandbb' (did you mean 'wandb'?)"),
        (f"{TRAIN} --leader-args bacth_size=3", "no argument 'bacth_size' (did you mean 'batch_size'?)"),
        (f"{TRAIN} --env-args fery=3", "no argument 'fery' (did you mean 'ferry'?)"),
        (f"{TRAIN} --follower quantal --follower-args folower=x", "no argument 'folower' (did you mean 'follower'?)"),
        ("train --env BiLevel/TolBridge-v0 --out y", "Did you mean: `TollBridge`?"),  # Gymnasium's words
        ("compare --env x --out y --leaders bcgh", "got 'bcgh' (did you mean 'bchg'?)"),
        ("reproduce four-rooms --out y --leaders bcgh", "no curve of 'bcgh' (did you mean 'bchg'?)"),
    ],
)
def test_what_is_misspelt_is_answered_with_what_is_spelt_alike(command, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    assert said in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_what_is_like_nothing_is_answered_with_the_usual_message_alone(capsys):
    for command in ("xyzzy", f"{TRAIN} --xyzzy 3", ""):
        with pytest.raises(SystemExit, match="2"):
            main(command.split())
        assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(("shell", "line"), [("bash", "complete .*-F .*bilevel"), ("zsh", "#compdef bilevel$")])
def test_a_completion_script_knows_commands_and_flags(shell, line, capsys):
    page = (Path(__file__).parents[2] / "docs/command_line.md").read_text()
    assert f"bilevel --tyro-print-completion {shell} > " in page
    with pytest.raises(SystemExit) as ended:
        main(["--tyro-print-completion", shell])
    assert not ended.value.code
    script = capsys.readouterr().out
    assert re.search(f"(?m)^ *{line}", script)
    assert "best-known" in script
    assert "--leader" in script
