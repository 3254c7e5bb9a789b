"""Machine code on disk: damaged files are passed over and written anew."""

import os
import subprocess
import sys

import pytest

CALL = """
import numpy as np
from bilevel_envs.worlds.tabular.kernels.drawing import outcome
print(outcome(np.array([0.25, 0.5, 0.25]), 0.3))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "length"), [("nbi", 20), ("nbi", 0), ("nbc", 200), ("nbc", 0)])
def test_a_damaged_cache_is_rebuilt(tmp_path, ending, length):
    def call():
        env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", CALL], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    expected = call()
    assert expected == "1\n"
    files = list(tmp_path.rglob(f"*.{ending}"))
    assert files
    for path in files:
        os.truncate(path, length)
    assert call() == expected
    if length == 0:  # written anew
        assert all(path.stat().st_size > 0 for path in tmp_path.rglob("*.nbi"))
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
        assert call() == expected
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")} == times
