"""`bilevel best-known`: the best value known of an environment, found again."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Annotated

import gymnasium as gym
import tyro

from leaders.cli.arguments import KeyValues, Text, env_arguments, env_of

SLACK = 1e-3  # share by which a value at its θ may fall short of what is recorded


@dataclass(frozen=True)
class BestKnownValue:
    """Repeat an environment's best known leader value: by multi-start of the exact gradient, or at the recorded θ.

    Ends with 1 where the recorded θ falls short of the recorded value by more than 0.1 %.

    Example: bilevel best-known BiLevel/FourRooms-v0 --beta 1e-3 --seed 1
    """

    env: Annotated[str, tyro.conf.Positional]
    """id of the environment, such as BiLevel/FourRooms-v0, or one of yours, MODULE:ID"""
    seed: int = 0
    """of the random draws among the starts"""
    beta: float | None = None
    """the follower's entropy coefficient; the environment's own if not given"""
    dynamics: Text = None
    """of FourRooms: published, classic or mismatched"""
    env_args: KeyValues = ()
    """further arguments of the environment; values are JSON, or text"""
    draws: int = 128
    """random draws among the starts, beside the default θ and the vertices"""
    schedule: tuple[tuple[int, int], ...] = ((32, 30), (8, 100), (2, 300))
    """starts kept, and steps of each, rung by rung"""
    learning_rate: tuple[float, float] = (0.2, 0.05)
    """of Adam in the first and in the last rung"""

    def run(self) -> None:
        """Prints the recorded value, the one found, and the difference."""
        import torch

        from bilevel_envs.core.foreign import configurable
        from bilevel_envs.core.mdp import REPEATABLE, recorded_best
        from leaders import exact

        torch.set_num_threads(1)  # the matrices are small: threads cost more than they bring
        env = env_of(self.env, env_arguments(self))
        problem = configurable(env.unwrapped).problem
        recorded = recorded_best(problem, problem.preferences)
        print(f"{self.env}, β = {problem.preferences.beta:g}")
        print(
            "  recorded   "
            + ("nothing" if recorded is None else f"{recorded:.7g}  {recorded.proof}; {recorded.source}")
        )
        found, short = None, False
        if recorded is not None and recorded.theta is not None:
            found = exact.objective(env, recorded.theta)
            print(f"  at its θ   {found:.7g}")
            short = recorded - found > SLACK * max(abs(recorded), SLACK)
        if recorded is None or recorded.proof == REPEATABLE:
            found = self._searched(env)
        if recorded is not None and found is not None:
            share = f" ({100 * (found - recorded) / abs(recorded):+.2g} %)" if recorded else ""
            print(f"  difference {found - recorded:+.2g}{share}")
        if short:
            print("  the value that the environment records is not reached at the θ that it records", file=sys.stderr)
            raise SystemExit(1)

    def _searched(self, env: gym.Env) -> float:
        """What `multi_start` finds."""
        from leaders import exact
        from leaders.training.theta import one_line

        started = time.perf_counter()
        found = exact.multi_start(
            env, seed=self.seed, draws=self.draws, schedule=self.schedule, learning_rate=self.learning_rate
        )
        spent = time.perf_counter() - started
        print(f"  found      {found.value:.7g}  start: {found.start}, {found.evaluations:,} evaluations, {spent:.1f} s")
        print(f"  last rung  {', '.join(f'{value:.7g}' for value in found.last_values)}")
        print(f"  θ          {one_line(found.theta)}")
        return found.value
