"""What `bilevel doctor` tells, and what the command says to what does not exist."""

import importlib.metadata

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


@pytest.mark.parametrize(
    ("command", "meant"),
    [(["trian"], "train"), (["train", "--itertions", "3", "--env", "x", "--out", "y"], "--iterations")],
)
def test_what_is_misspelt_is_answered_with_what_is_spelt_alike(command, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert meant in "".join(capsys.readouterr())
