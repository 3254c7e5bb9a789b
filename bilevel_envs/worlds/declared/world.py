"""Worlds without a known model: trajectories come from `reset` and `step`, and followers learn."""

from __future__ import annotations

from bilevel_envs.core.follower import Policy
from bilevel_envs.worlds.declared.model import SimulatedModel
from bilevel_envs.worlds.world import World


class DeclaredWorld(World[SimulatedModel, Policy]):
    """Of the model only the terms that depend on θ are known."""

    name = "declared"
    environment = "bilevel_envs.worlds.declared.env:SimulatedEnv"


WORLD = DeclaredWorld()
