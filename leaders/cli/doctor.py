"""`bilevel doctor`: what is installed, what is missing and for what."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("bilevel-envs", "gymnasium", "pettingzoo", "stable-baselines3", "numpy", "scipy", "torch", "numba", "joblib")
OPTIONAL = {
    "pygame": ("windows, and pictures of Gymnasium's own environments", "render"),
    "moviepy": ("films: bilevel video", "video"),
    "pandas": ("data frames: to_pandas", "tables"),
    "pyarrow": ("results.parquet of studies", "tables"),
    "optuna": ("search: optuna in studies", "optuna"),
    "ray": ("studies on a cluster: bilevel sweep --ray", "ray"),
    "submitit": ("studies on Slurm: bilevel sweep --slurm", "slurm"),
    "mlflow": ("a tracker: --track mlflow", "mlflow"),
    "wandb": ("a tracker: --track wandb", "wandb"),
    "mujoco": ("examples/real/reacher.py", "real"),
    "mo_gymnasium": ('examples/real: pip install --no-deps "mo-gymnasium==1.3.2"', ""),
}  # module: what it is for, and the extra that brings it


@dataclass(frozen=True)
class Doctor:
    """Tell versions, threads, caches, and what is missing for what.

    Example: bilevel doctor
    """

    def run(self) -> None:
        """Prints what it finds; nothing is changed."""
        print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
        print("\n".join(f"{name} {_version(name)}" for name in NEEDED))
        for line in (*_threads(), *_cache(), *_extras()):
            print(line)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is MISSING: pip install -e . again"


def _threads() -> Iterator[str]:
    """How many threads the libraries take."""
    import torch

    count, told = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    yield f"threads of torch: {count}, OMP_NUM_THREADS {told or 'not set'}"
    if count > 1 and told is None:
        yield "  matrices are small here: OMP_NUM_THREADS=1 is faster, and results then do not depend on the machine"


def _cache() -> Iterator[str]:
    """Whether machine code can be kept."""
    import bilevel_envs

    kept = os.environ.get("NUMBA_CACHE_DIR") or Path(bilevel_envs.__file__).parent / "worlds" / "tabular"
    try:
        with tempfile.TemporaryFile(dir=kept):
            yield f"machine code is kept in {kept}"
    except OSError as error:
        yield f"machine code cannot be kept ({error}): each process compiles anew; set NUMBA_CACHE_DIR to a folder"


def _extras() -> Iterator[str]:
    """What is there and what is missing."""
    for module, (purpose, extra) in OPTIONAL.items():
        if module in sys.modules or find_spec(module) is not None:
            yield f"{module}: there ({purpose.partition(': pip')[0]})"
        else:
            yield f"{module}: missing, for {purpose}" + (f" (pip install 'bilevel-envs[{extra}]')" if extra else "")
