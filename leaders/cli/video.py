"""`bilevel video`: a film of the follower before and after a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bilevel_envs.core.checks import check_count, check_seed
from leaders.cli.arguments import Trusted


@dataclass(frozen=True)
class Video:
    """Film the follower before and after a run's leader has learnt, side by side.

    Example: bilevel video runs/rooms --steps 100
    """

    directory: Annotated[Path, tyro.conf.Positional]
    """a run directory"""
    steps: int = 200
    """longest episode shown"""
    fps: int = 10
    """steps per second"""
    seed: int = 0
    """of the world and the follower's draws"""
    trust: Trusted = ()
    """environments, leaders and followers from outside the library that the directory names and that may be run"""

    def run(self) -> None:
        """Writes follower.mp4 into the run directory."""
        from leaders.cli.runs import loaded
        from leaders.experiments import plots
        from leaders.experiments.video import follower_film

        check_count(self.steps, "steps")
        check_count(self.fps, "fps")
        check_seed(self.seed)
        command, leader, fresh = loaded(self.directory, self.trust)
        wrapped = leader.env
        if wrapped.problem.draw is None:
            raise ValueError(
                f"`directory` must hold a run in a world that the library can draw; the problem of {command.env} has "
                "no `draw(state, theta)`. Write one, or, where the environment draws itself, film it in Python with "
                "`leaders.experiments.video.episode_frames`, as on the page about environments of your own"
            )
        run = plots.best_run(leader)
        path = self.directory / "follower.mp4"
        how = {"steps": self.steps, "fps": self.fps, "seed": self.seed, "run": run}
        context = None if leader.contexts is None else int(leader.contexts.now[run])
        before, after = (one.theta if context is None else one.theta_in([context])[0] for one in (fresh, leader))
        with wrapped.in_context(context):
            frames = follower_film(wrapped, before, after, path, **how)
        where = "" if context is None else f" in context {context}, its last"
        print(f"wrote {path}: run {run}{where}, {frames} frames")
