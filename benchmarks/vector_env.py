"""Environment steps per CPU second of vector environments of tables, driven from Python, one thread.

Four rooms, and Gymnasium's slippery FrozenLake (where one step in ten ends an episode) as a table of ours, against
another version of this code, Gymnasium's `SyncVectorEnv` and EnvPool. Each is timed in a process of its own, in turn.
EnvPool is no dependency: `pip install --no-deps --target DIR envpool dm-env dm-tree optree`.

Run: python benchmarks/vector_env.py [--before CHECKOUT] [--envpool DIR]
Results: `vector_env.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROUNDS, SECONDS, COPIES = 3, 0.4, (256, 4096)
HERE = Path(__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", help="another version of the code, to compare with")
    parser.add_argument("--envpool", help="a folder that holds EnvPool")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        kind, name, copies = arguments.worker.split(",")
        print(json.dumps(MADE[kind](name, int(copies))))
        return
    places = {"ours": str(HERE.parents[1]), "sync": str(HERE.parents[1])}
    places |= {"before": arguments.before} if arguments.before else {}
    places |= {"envpool": arguments.envpool} if arguments.envpool else {}
    for name in ("FourRooms", "FrozenLake"):
        for copies in COPIES:
            kinds = [kind for kind in places if name == "FrozenLake" or kind in ("ours", "before")]
            rates: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(ROUNDS):
                for kind in kinds:
                    rates[kind].append(timed(kind, name, copies, places[kind]))
            told = (f"{kind} {max(row):.2f} (median {sorted(row)[ROUNDS // 2]:.2f})" for kind, row in rates.items())
            print(f"{name}, {copies} copies, M steps per CPU second: " + ", ".join(told), flush=True)


def timed(kind: str, name: str, copies: int, place: str) -> float:
    """Millions of steps per CPU second, in a process of its own."""
    variables = os.environ | {"PYTHONPATH": place, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE), "--worker", f"{kind},{name},{copies}"]
    return float(json.loads(subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout))


def rate(step: Callable[[object], object], actions: list, copies: int) -> float:
    """Millions of steps per CPU second; what compiles or warms up is not timed."""
    for action in actions:
        step(action)
    calls, began = 0, time.process_time()
    while time.process_time() - began < SECONDS:
        for action in actions:
            step(action)
        calls += len(actions)
    return calls * copies / (time.process_time() - began) / 1e6


def actions_for(copies: int) -> list:
    import numpy as np

    return list(np.random.default_rng(0).integers(4, size=(32, copies)))


def ours(name: str, copies: int) -> float:
    import gymnasium as gym

    import bilevel_envs  # noqa: F401  (registers BiLevel/*)
    from bilevel_envs import TabularVectorEnv

    if name == "FourRooms":
        envs = gym.make_vec("BiLevel/FourRooms-v0", num_envs=copies)
    else:
        envs = TabularVectorEnv(frozen_lake(), copies, max_episode_steps=100)
    envs.reset(seed=0)
    return rate(envs.step, actions_for(copies), copies)


def sync(name: str, copies: int) -> float:
    import gymnasium as gym

    envs = gym.make_vec("FrozenLake-v1", num_envs=copies, vectorization_mode="sync")
    envs.reset(seed=0)
    return rate(envs.step, actions_for(copies), copies)


def envpool(name: str, copies: int) -> float:
    from types import ModuleType

    import numpy as np

    sys.modules["envpool.entry"] = ModuleType("envpool.entry")  # registers all kinds, which need assets of their own
    import envpool
    import envpool.toy_text.registration

    envs = envpool.make_gymnasium("FrozenLake-v1", num_envs=copies, num_threads=1, seed=0)
    envs.reset()
    return rate(envs.step, [action.astype(np.int32) for action in actions_for(copies)], copies)


MADE = {"ours": ours, "before": ours, "sync": sync, "envpool": envpool}


def frozen_lake() -> object:
    """Gymnasium's 4 x 4 lake as a table; the leader owns one number that does nothing."""
    import gymnasium as gym
    import numpy as np
    import torch
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

    from bilevel_envs.core.mdp import ConfigurableMDP, Preferences
    from bilevel_envs.worlds.tabular.model import TabularModel

    rows = FrozenLakeEnv(map_name="4x4", is_slippery=True).P
    transition, reward, continues = np.zeros((1, 16, 4, 16)), np.zeros((1, 16, 4)), np.ones((1, 16, 4))
    # Gymnasium pays and ends on arrival; here a step's reward and end are those of the state where it begins.
    for state, actions in rows.items():
        for action, outcomes in actions.items():
            for probability, following, _, _ in outcomes:
                transition[0, state, action, following] += probability
    holes = [state for state, actions in rows.items() if all(row[3] for row in actions[0])]
    reward[0, 15], continues[0, holes] = 1.0, 0.0  # the goal is among the "holes", too
    initial = np.eye(16)[:1]
    tables = [torch.from_numpy(table) for table in (transition, initial, np.zeros((1, 16, 4)), reward, continues)]

    @dataclass
    class Lake(ConfigurableMDP):
        theta_space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
        default_theta = np.zeros(1)
        preferences = Preferences(0.99, 0.99, 0.1)

        def model(self, theta: torch.Tensor) -> TabularModel:
            return TabularModel(*tables)

        def parameterization(self, runs: int, noise: object) -> object:
            raise NotImplementedError

    return Lake()


if __name__ == "__main__":
    main()
