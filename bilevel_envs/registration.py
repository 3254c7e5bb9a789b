"""Which id belongs to which problem."""

from __future__ import annotations

import gymnasium as gym
import pettingzoo

PROBLEMS = {
    "BiLevel/TollBridge-v0": ("bilevel_envs.envs.toll_bridge:TollBridge", 10),
    "BiLevel/FourRooms-v0": ("bilevel_envs.envs.four_rooms:FourRooms", 200),
    "BiLevel/BuildingThermalControl-v0": (
        "bilevel_envs.envs.building_thermal_control:BuildingThermalControl",
        100,
    ),
    "BiLevel/TaxDesign-v0": ("bilevel_envs.envs.tax_design:TaxDesign", 200),
    "BiLevel/TaxDesign-small-v0": ("bilevel_envs.envs.tax_design:TaxDesignSmall", 200),
    "BiLevel/ToyMarkovGame-v0": ("bilevel_envs.markov_games.toy_markov_game_v0:ToyMarkovGame", 150),
    "BiLevel/BilevelLQR-v0": ("bilevel_envs.markov_games.bilevel_lqr_v0:BilevelLQR", 100),
    "BiLevel/GuidedCartPole-v0": ("bilevel_envs.markov_games.guided_cartpole_v0:GuidedCartPole", 200),
    "BiLevel/GuidedPendulum-v0": ("bilevel_envs.markov_games.guided_pendulum_v0:GuidedPendulum", 200),
    "BiLevel/Warehouse-v0": ("bilevel_envs.envs.warehouse:Warehouse", 200),
    "BiLevel/RandomMDP-v0": ("bilevel_envs.envs.random_mdp:RandomMDP", 100),
}

GAMES = {
    "BiLevel/ToyMarkovGame-v0": "bilevel_envs.markov_games.toy_markov_game_v0",
    "BiLevel/BilevelLQR-v0": "bilevel_envs.markov_games.bilevel_lqr_v0",
    "BiLevel/GuidedCartPole-v0": "bilevel_envs.markov_games.guided_cartpole_v0",
    "BiLevel/GuidedPendulum-v0": "bilevel_envs.markov_games.guided_pendulum_v0",
}


def register_all() -> None:
    """Registers every id, games with PettingZoo, too; entry points are strings, so that nothing heavy is imported."""
    for name, module in GAMES.items():
        pettingzoo.register("aec", name, f"{module}:env")
        pettingzoo.register("parallel", name, f"{module}:parallel_env")
    for name, (problem, max_episode_steps) in PROBLEMS.items():
        gym.register(
            name,
            entry_point="bilevel_envs.gym_env:make_env",
            vector_entry_point="bilevel_envs.gym_env:make_vector_env",
            max_episode_steps=max_episode_steps,
            kwargs={"problem": problem},
        )
