import numpy as np
import pytest

from leaders import reproduce
from leaders.cli import main
from leaders.compare import Result
from leaders.published import Curve


def test_comparison_by_hand():
    c = reproduce.Comparison("bchg", 1000, ours=1.0, ours_error=0.03, published=0.8, published_error=0.04)
    assert c.z == pytest.approx(4.0)  # 0.2 / hypot(0.03, 0.04)
    assert not c.agrees
    assert reproduce.Comparison("x", 1, 1.0, 0.03, 0.9, 0.04).agrees  # two errors
    assert reproduce.Comparison("x", 1, 0.009, 0.0, 0.0, 0.0).agrees  # below the floor


def test_our_curves_go_through_the_papers_filter():
    value = np.zeros((1000, 1, 2))
    value[900:, 0, 0] = 1.0  # the last hundred iterations
    value[950:, 0, 1] = 1.0  # the last fifty
    result = Result("bchg", [{}], value, np.zeros((1000, 1)), np.zeros((1000, 1)))
    curve = Curve(np.array([1000]), np.array([0.7]), np.array([0.1]))
    (found,) = reproduce.compared(result, curve)
    assert found.ours == pytest.approx(0.75)
    assert found.ours_error == pytest.approx(0.25)
    assert found.published == 0.7
    assert found.published_error == pytest.approx(0.1 * (10 / 9) ** 0.5)  # sample form


def test_the_command_refuses_what_the_paper_does_not_show(tmp_path, capsys):
    for arguments, message in (
        (["--beta", "2e-3"], "`beta` must be one of 0.001, 0.003, 0.005, got 0.002"),
        (["--batch", "150"], "`batch` must be one of 100, 200, 400, 1000, got 150"),
        (["--beta", "5e-3", "5e-3"], "`beta` must be one or more different values"),
        (["--leaders", "cmaes"], "the paper shows no curve of 'cmaes'"),
        (["--runs", "1"], "`runs` must be at least 2"),
    ):
        with pytest.raises(SystemExit):
            main(["reproduce", "four-rooms", *arguments, "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reproduce", "five-rooms", "--out", str(tmp_path / "out")])
    assert "`figure` must be one of 'four-rooms'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_naive_leaders_fall_on_the_published_plateau(tmp_path, capsys):
    out = tmp_path / "out"
    main(["reproduce", "four-rooms", "--leaders", "naive-pgd,sobirl", "--out", str(out), "--no-progress"])
    said = capsys.readouterr().out
    assert "all agree" in said
    table = (out / "four-rooms-beta0.005.md").read_text()
    assert table.count("agrees") == 4
    assert (out / "four-rooms-beta0.005.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
