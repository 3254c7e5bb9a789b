"""`bilevel video`: a film of the follower before and after a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bilevel_envs.core.checks import check_count
from leaders.cli.arguments import follower_of
from leaders.cli.train import Train


@dataclass(frozen=True)
class Video:
    """Film the follower before and after a run's leader has learnt, side by side."""

    directory: Annotated[Path, tyro.conf.Positional]
    """a run directory"""
    steps: int = 200
    """longest episode shown"""
    fps: int = 10
    """steps per second"""
    seed: int = 0
    """of the world and the follower's draws"""

    def run(self) -> None:
        """Writes follower.mp4 into the run directory."""
        from bilevel_envs.wrapper import BilevelWrapper
        from leaders.experiments import plots
        from leaders.experiments.run_directory import CONFIG, LEADER, read_config
        from leaders.experiments.video import follower_film

        check_count(self.steps, "steps")
        check_count(self.fps, "fps")
        check_count(self.seed, "seed", at_least=0)
        if not (self.directory / CONFIG).is_file() or not (self.directory / LEADER).is_file():
            raise ValueError(f"`directory` must hold a run with {CONFIG} and {LEADER}; {self.directory} does not")
        kept = read_config(self.directory).items()
        config: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept}
        train = Train(**{**config, "out": self.directory})
        env, leader_class, arguments = train.resolved()
        wrapped = BilevelWrapper(env, follower_of(train.follower, train.follower_args))
        if wrapped.problem.draw is None:
            raise ValueError(f"{train.env} cannot be drawn")
        if wrapped.problem.on_grid:
            raise ValueError(f"{train.env} cannot be filmed: its follower answers on a grid, its world is continuous")
        leader = leader_class.load(self.directory / LEADER, wrapped)
        run = plots.best_run(leader)
        fresh = leader_class(wrapped, **arguments)
        path = self.directory / "follower.mp4"
        how = {"steps": self.steps, "fps": self.fps, "seed": self.seed, "run": run}
        frames = follower_film(wrapped, fresh.theta, leader.theta, path, **how)
        print(f"wrote {path}: run {run}, {frames} frames")
