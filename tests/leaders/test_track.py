"""`--track` and the key `track` of studies: what is refused, and that no result depends on them."""

import sys

import pytest

from leaders.cli.main import main
from leaders.cli.sweep import SETTINGS
from leaders.experiments.sweep.study import study_of

TOLL = "BiLevel/TollBridge-v0"
RUN = ["train", "--env", TOLL, "--runs", "2", "--batch", "40", "--no-progress"]


@pytest.mark.parametrize(("kind", "module"), [("mlflow", "mlflow.tracking"), ("wandb", "wandb")])
def test_without_the_package_the_error_names_the_extra_before_anything_is_written(
    tmp_path, monkeypatch, capsys, kind, module
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match="2"):
        main([*RUN, "--iterations", "2", "--out", str(tmp_path / "out"), "--track", kind])
    assert f"pip install 'bilevel-envs[{kind}]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("track", "message"),
    [("tensorbord", "`track` must be one of 'mlflow', 'wandb'"), ("mlflow,mlflow", "must name each tracker once")],
)
def test_what_is_no_tracker_is_refused(tmp_path, capsys, track, message):
    with pytest.raises(SystemExit, match="2"):
        main([*RUN, "--iterations", "2", "--out", str(tmp_path / "out"), "--track", track])
    assert message in capsys.readouterr().err


def test_a_study_with_a_tracker_is_the_same_study():
    found = {"env": TOLL, "leader": "bchg"}
    plain, tracked = study_of(found, SETTINGS), study_of({**found, "track": ["mlflow", "wandb"]}, SETTINGS)
    assert (plain.track, tracked.track) == (None, "mlflow,wandb")
    assert tracked.source == plain.source
    assert [cell.job() for cell in tracked.cells] == [cell.job() for cell in plain.cells]
    with pytest.raises(ValueError, match=r"`track` must be a tracker's name or a list of them, got \[1\]"):
        study_of({**found, "track": [1]}, SETTINGS)
