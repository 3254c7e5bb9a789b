"""Environments whose world a leader configures, and the followers that live in them.

Importing this package registers the ``BiLevel/*`` ids with Gymnasium and loads neither torch nor
Stable-Baselines3: entry points are strings, and the names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bilevel_envs.registration import register_all

if TYPE_CHECKING:
    from bilevel_envs.follower import BestResponse, Follower
    from bilevel_envs.leader_env import LeaderEnv
    from bilevel_envs.linear_env import LinearEnv, LinearVectorEnv
    from bilevel_envs.linear_quadratic import LinearQuadraticModel
    from bilevel_envs.model import BestKnown, ConfigurableMDP, Parameterization, Preferences, Rollout, Terms
    from bilevel_envs.simulated import SimulatedModel
    from bilevel_envs.simulated_env import SimulatedEnv, SimulatedVectorEnv
    from bilevel_envs.tabular import TabularModel
    from bilevel_envs.tabular_env import TabularEnv, TabularVectorEnv
    from bilevel_envs.tax_env import TaxEnv, TaxVectorEnv
    from bilevel_envs.wrapper import BilevelWrapper

__version__ = "0.1.0"

_HOME = {
    "BestKnown": "model",
    "BestResponse": "follower",
    "BilevelWrapper": "wrapper",
    "ConfigurableMDP": "model",
    "Follower": "follower",
    "LeaderEnv": "leader_env",
    "LinearEnv": "linear_env",
    "LinearQuadraticModel": "linear_quadratic",
    "LinearVectorEnv": "linear_env",
    "Parameterization": "model",
    "Preferences": "model",
    "Rollout": "model",
    "SimulatedEnv": "simulated_env",
    "SimulatedModel": "simulated",
    "SimulatedVectorEnv": "simulated_env",
    "TabularEnv": "tabular_env",
    "TabularModel": "tabular",
    "TabularVectorEnv": "tabular_env",
    "TaxEnv": "tax_env",
    "TaxVectorEnv": "tax_env",
    "Terms": "model",
}

__all__ = [
    "BestKnown",
    "BestResponse",
    "BilevelWrapper",
    "ConfigurableMDP",
    "Follower",
    "LeaderEnv",
    "LinearEnv",
    "LinearQuadraticModel",
    "LinearVectorEnv",
    "Parameterization",
    "Preferences",
    "Rollout",
    "SimulatedEnv",
    "SimulatedModel",
    "SimulatedVectorEnv",
    "TabularEnv",
    "TabularModel",
    "TabularVectorEnv",
    "TaxEnv",
    "TaxVectorEnv",
    "Terms",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


register_all()
