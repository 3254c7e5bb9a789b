"""`bilevel check`: whether an environment, a game or a follower keeps the contract that leaders rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from leaders.cli.arguments import KeyValues, Text, follower_of, key_values, subject_of


@dataclass(frozen=True)
class CheckContract:
    """Check an environment, and a follower if one is named; prints a line per check and ends with 1 if one fails.

    Example: bilevel check BiLevel/TollBridge-v0
    """

    env: Annotated[str, tyro.conf.Positional]
    """id of the environment, or one of yours: MODULE:ID, or MODULE:CLASS of an environment, a problem or a game"""
    env_args: KeyValues = ()
    """arguments of the environment; values are JSON, or text"""
    follower: Text = None
    """a follower by name, or one of yours, MODULE:CLASS, which is checked in the environment instead of it"""
    follower_args: KeyValues = ()
    """arguments of the follower"""
    steps: int = 4_000
    """that are compared with the model"""
    seed: int = 0
    """of all that is drawn"""

    def run(self) -> None:
        """Prints what holds, what does not, and what could not be looked at."""
        import torch

        from bilevel_envs.testing import check_bilevel_env, check_follower
        from bilevel_envs.testing.env import env_of

        torch.set_num_threads(1)  # the matrices are small: threads cost more than they bring
        subject = subject_of(self.env, key_values(self.env_args, "env_args"))
        follower = follower_of(self.follower, self.follower_args)
        if follower is None:
            report = check_bilevel_env(subject, steps=self.steps, seed=self.seed, raises=False)
        else:
            report = check_follower(follower, env_of(subject), seed=self.seed, raises=False)
        print(report.subject)
        waiting = [result for result in report.results if result.waits_for]
        for result in report.results:
            if result not in waiting:
                print(result)
        if waiting:
            print(f"skip  {len(waiting)} checks that need what failed: mend that first, and check again")
        print(report.verdict)
        if not report.ok:
            raise SystemExit(1)
