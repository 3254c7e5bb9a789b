"""`import bilevel_envs` registers environments, and loads nothing that an environment may never need."""

import subprocess
import sys

import pytest

CODE = """
import sys, time
began = time.perf_counter()
import gymnasium, pettingzoo, torch
before = time.perf_counter()
import bilevel_envs
after = time.perf_counter()
assert "BiLevel/FourRooms-v0" in gymnasium.registry
print((after - before) / (before - began), *sorted({name.partition(".")[0] for name in sys.modules}))
"""
NOT_AT_ONCE = {"stable_baselines3", "numba", "scipy", "matplotlib", "pandas", "pygame", "moviepy", "tensorboard"}
NOT_AT_ONCE |= {"leaders", "joblib", "ray", "optuna", "mlflow", "wandb", "submitit", "tyro", "rich", "jinja2", "cmaes"}


@pytest.mark.slow
def test_the_import_adds_a_tenth_to_that_of_gymnasium_and_torch_and_loads_no_other_package():
    told = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    assert float(told[0]) < 0.1  # measured: 0.01; a ratio of one process, so that a busy machine does not matter
    assert {"bilevel_envs", "torch"} <= set(told[1:])
    assert not NOT_AT_ONCE & set(told[1:])
