"""Environments whose world a leader configures, and followers that respond to it.

Importing this package registers the ``BiLevel/*`` ids with Gymnasium and loads neither torch nor
Stable-Baselines3: entry points are strings, and the names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bilevel_envs.registration import register_all

if TYPE_CHECKING:
    from bilevel_envs.core.batch import Rollout, Terms
    from bilevel_envs.core.contexts import Contexts
    from bilevel_envs.core.follower import BestResponse, Follower
    from bilevel_envs.core.mdp import BestKnown, ConfigurableMDP, Parameterization, Preferences
    from bilevel_envs.core.noise import Noise
    from bilevel_envs.envs.tax_env import TaxEnv, TaxVectorEnv
    from bilevel_envs.games.game import Game
    from bilevel_envs.games.pettingzoo_env import GameEnv, ParallelGameEnv
    from bilevel_envs.games.tables import GameTables
    from bilevel_envs.games.tabular import FiniteGame, TabularGame
    from bilevel_envs.leader_env import LeaderEnv
    from bilevel_envs.worlds.declared.dynamics import ConfigurableDynamics
    from bilevel_envs.worlds.declared.env import SimulatedEnv, SimulatedVectorEnv
    from bilevel_envs.worlds.declared.model import SimulatedModel
    from bilevel_envs.worlds.declared.rewards import ConfigurableRewards
    from bilevel_envs.worlds.linear_quadratic.env import LinearEnv, LinearVectorEnv
    from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
    from bilevel_envs.worlds.linear_quadratic.policy import GaussianPolicy
    from bilevel_envs.worlds.tabular.env import TabularEnv, TabularVectorEnv
    from bilevel_envs.worlds.tabular.model import Table, TabularModel
    from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
    from bilevel_envs.worlds.tabular.transitions import Transitions
    from bilevel_envs.wrapper import BilevelWrapper

__version__ = "0.1.0"

_HOME = {
    "BestKnown": "core.mdp",
    "BestResponse": "core.follower",
    "BilevelWrapper": "wrapper",
    "BoltzmannPolicy": "worlds.tabular.policy",
    "ConfigurableDynamics": "worlds.declared.dynamics",
    "ConfigurableMDP": "core.mdp",
    "ConfigurableRewards": "worlds.declared.rewards",
    "Contexts": "core.contexts",
    "FiniteGame": "games.tabular",
    "Follower": "core.follower",
    "Game": "games.game",
    "GameEnv": "games.pettingzoo_env",
    "GameTables": "games.tables",
    "GaussianPolicy": "worlds.linear_quadratic.policy",
    "LeaderEnv": "leader_env",
    "LinearEnv": "worlds.linear_quadratic.env",
    "LinearQuadraticModel": "worlds.linear_quadratic.model",
    "LinearVectorEnv": "worlds.linear_quadratic.env",
    "Noise": "core.noise",
    "ParallelGameEnv": "games.pettingzoo_env",
    "Parameterization": "core.mdp",
    "Preferences": "core.mdp",
    "Rollout": "core.batch",
    "SimulatedEnv": "worlds.declared.env",
    "SimulatedModel": "worlds.declared.model",
    "SimulatedVectorEnv": "worlds.declared.env",
    "Table": "worlds.tabular.model",
    "TabularEnv": "worlds.tabular.env",
    "TabularGame": "games.tabular",
    "TabularModel": "worlds.tabular.model",
    "TabularVectorEnv": "worlds.tabular.env",
    "TaxEnv": "envs.tax_env",
    "TaxVectorEnv": "envs.tax_env",
    "Terms": "core.batch",
    "Transitions": "worlds.tabular.transitions",
}

__all__ = [
    "BestKnown",
    "BestResponse",
    "BilevelWrapper",
    "BoltzmannPolicy",
    "ConfigurableDynamics",
    "ConfigurableMDP",
    "ConfigurableRewards",
    "Contexts",
    "FiniteGame",
    "Follower",
    "Game",
    "GameEnv",
    "GameTables",
    "GaussianPolicy",
    "LeaderEnv",
    "LinearEnv",
    "LinearQuadraticModel",
    "LinearVectorEnv",
    "Noise",
    "ParallelGameEnv",
    "Parameterization",
    "Preferences",
    "Rollout",
    "SimulatedEnv",
    "SimulatedModel",
    "SimulatedVectorEnv",
    "Table",
    "TabularEnv",
    "TabularGame",
    "TabularModel",
    "TabularVectorEnv",
    "TaxEnv",
    "TaxVectorEnv",
    "Terms",
    "Transitions",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


register_all()
