"""Leader trainers: each estimates how the leader's return changes with θ, the follower's reaction included."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from leaders import exact
from leaders.algorithms.bchg import BCHG
from leaders.algorithms.bi_ac import BiAC
from leaders.algorithms.cmaes import CMAES
from leaders.algorithms.exact_gradient import ExactGradient
from leaders.algorithms.hpgd import HPGD
from leaders.algorithms.mbhg import MBHG, FollowerNotAskedWarning
from leaders.algorithms.naive_pgd import NaivePGD
from leaders.algorithms.random_search import RandomSearch
from leaders.algorithms.registry import LEADERS
from leaders.algorithms.sobirl import SoBiRL
from leaders.algorithms.zeroth_order import ZerothOrder
from leaders.leader import Leader
from leaders.training.history import History

if TYPE_CHECKING:
    from leaders.training.mlflow_callback import MLflowCallback
    from leaders.training.wandb_callback import WandbCallback

LAZY = {
    "MLflowCallback": "leaders.training.mlflow_callback",
    "WandbCallback": "leaders.training.wandb_callback",
}  # names that load Stable-Baselines3, with their modules

__all__ = [
    "BCHG",
    "CMAES",
    "HPGD",
    "LEADERS",
    "MBHG",
    "BiAC",
    "ExactGradient",
    "FollowerNotAskedWarning",
    "History",
    "Leader",
    "MLflowCallback",
    "NaivePGD",
    "RandomSearch",
    "SoBiRL",
    "WandbCallback",
    "ZerothOrder",
    "exact",
]


def __getattr__(name: str) -> ModuleType | type:
    """`plots`, which loads Matplotlib, and trackers' callbacks on first use."""
    if name == "plots":
        return import_module("leaders.experiments.plots")
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
