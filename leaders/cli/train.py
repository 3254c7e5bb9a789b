"""`bilevel train`: a leader in an environment, into a run directory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from bilevel_envs.core.checks import check_count, check_number, unknown_names
from leaders.cli.arguments import (
    KeyValues,
    Text,
    config_of,
    env_arguments,
    env_of,
    follower_of,
    key_values,
    leader_class,
)
from leaders.cli.flags import with_flags_of_leaders
from leaders.cli.track import log_folder, trackers_of
from leaders.experiments.lock import Stopped
from leaders.keywords import parameters_of

if TYPE_CHECKING:
    from leaders.experiments.run_directory import Checkpoint, RunDirectory
    from leaders.leader import Leader
    from leaders.training.tracker import Tracker

ANEW = "the same command begins anew, with --resume or without"
RUNS_SHOWN = 10  # runs whose θ is printed
NOT_FOR_THE_CONSTRUCTORS = (
    "env",
    "leader",
    "iterations",
    "out",
    "resume",
    "checkpoint_every",
    "track",
    "progress",
    "env_args",
    "leader_args",
    "follower",
    "follower_args",
)


@dataclass(frozen=True, kw_only=True)
@with_flags_of_leaders
class Train:
    """Train a leader and leave a run directory: config.json, history.csv, theta.csv, leader.zip, curve.png, ...

    Example: bilevel train --env BiLevel/FourRooms-v0 --leader bchg --runs 10 --iterations 2231 --out runs/rooms
    """

    env: str
    """id of the environment, such as BiLevel/FourRooms-v0, or one of yours, MODULE:ID"""
    out: Path
    """the run directory; must not exist, be empty, or hold this run (with --resume)"""
    leader: str = "bchg"
    """who leads: a name of the page "Leaders", such as bchg, hpgd, naive-pgd or exact, or one of yours, MODULE:CLASS"""
    preset: Text = None
    """"paper" for the published code, choice by choice"""
    iterations: int = 3000
    """outer iterations in all"""
    runs: int = 10
    """stacked runs"""
    batch: int | None = None
    """transitions per outer iteration and run (the leader's own if not given)"""
    seed: int = 0
    """run i uses seed + i"""
    beta: float | None = None
    """the follower's entropy coefficient; the environment's own if not given"""
    dynamics: Text = None
    """of FourRooms: published, classic or mismatched; the leader's own is --leader-args dynamics=learnt"""
    follower: Text = None
    """who answers: soft_value_iteration, riccati, sb3, observed, quantal, ..., or one of yours, MODULE:CLASS; the
    environment's own if not given"""
    follower_args: KeyValues = ()
    """its arguments; values are JSON, or text"""
    env_args: KeyValues = ()
    """further arguments of the environment; values are JSON, or text"""
    leader_args: KeyValues = ()
    """further arguments of the leader"""
    resume: bool = False
    """go on with the run in --out"""
    checkpoint_every: float = 15.0
    """least seconds between two checkpoints, but for the first and those of long iterations"""
    track: Text = None
    """tracker that the run is written to beside TensorBoard: mlflow, wandb, or both, mlflow,wandb"""
    progress: bool = True
    """show a progress bar"""

    def run(self, stop: Callable[[], bool] | None = None) -> None:
        """Trains, saves and draws; nothing is written before every argument is known to be good.

        Args:
          stop: asked after each iteration whether to end early; None for never.
        """
        import torch

        from bilevel_envs.wrapper import BilevelWrapper
        from leaders.experiments.results import RESULT, write_result
        from leaders.experiments.run_directory import Checkpoint, RunDirectory, on_signals
        from leaders.training.checkpoint import AnotherTask, Damaged

        torch.set_num_threads(1)  # the matrices are small: threads cost more than they bring
        check_count(self.iterations, "iterations")
        check_number(self.checkpoint_every, "checkpoint_every", at_least=0)
        env, kind, arguments = self.resolved()
        directory = RunDirectory(self.out, config_of(self))
        trackers = trackers_of(self.track, self.out, config_of(self))
        wrapped = BilevelWrapper(env, follower_of(self.follower, self.follower_args))
        leader = kind(wrapped, **arguments)
        directory.check(self.resume)
        if directory.checkpoint:
            directory.claim()
            asked = leader.arguments
            try:
                leader = kind.load(directory.checkpoint, wrapped)
            except Damaged as error:
                raise ValueError(f"{error}. Put it back, or delete {self.out}: the run then begins anew") from error
            except AnotherTask as error:
                raise ValueError(f"{error}. Take another --out, or delete {self.out} to begin anew") from error
            self._check_same(leader.arguments, asked, directory.checkpoint)
            done = leader.progress.iterations
            if self.iterations < done:
                raise ValueError(f"`iterations` must be at least {done}, which the run in {self.out} has done")
            print(f"resuming after {done} outer iterations")
        directory.begin()
        self._log_to(leader)
        checkpoint = Checkpoint(directory, self.checkpoint_every, stop)
        with on_signals(checkpoint.interrupt):
            with ExitStack() as tracked:
                for tracker in trackers:
                    tracked.enter_context(tracker)
                self._learn(leader, directory, checkpoint, trackers)
                self._draw(leader)
                log_folder(trackers, leader, self.out, config_of(self))
            write_result(leader, config_of(self), self.out / RESULT)  # last: a run with a result is whole
        self._report(leader)

    def _check_same(self, saved: dict[str, object], asked: dict[str, object], path: Path) -> None:
        """Refuses a checkpoint that says another thing of its leader than this command does."""
        for name in sorted(saved.keys() | asked.keys()):
            if saved.get(name) != asked.get(name):
                raise ValueError(
                    f"{path} holds a leader with another `{name}`, {saved.get(name)!r} there, {asked.get(name)!r} "
                    "here: its folder was edited; choose another --out"
                )

    def _learn(self, leader: Leader, directory: RunDirectory, checkpoint: Checkpoint, trackers: list[Tracker]) -> None:
        """Learns and saves; whatever ends it early, what was learnt is saved."""
        from leaders.training.tracker import KILLED

        left = self.iterations - leader.progress.iterations
        bar = self.progress and sys.stderr.isatty()
        often = min(100, max(1, self.iterations // 10))  # ten points at least in TensorBoard
        try:
            leader.learn(left, callback=[checkpoint, *trackers], log_interval=often, progress_bar=bar)
            directory.save(leader)
        except KeyboardInterrupt:  # within an iteration, which the last checkpoint knows nothing of
            raise KeyboardInterrupt(f"stopped at once{self._kept(directory, checkpoint.saved)}") from None
        except Exception as error:
            raise self._ended(error, leader, directory, checkpoint.saved) from error
        finally:
            with suppress(OSError):  # TensorBoard's folder may be gone, or the disk full
                leader.logger.close()
        checkpoint.saved = leader.progress.iterations
        if checkpoint.interrupted:
            for tracker in trackers:
                tracker.end(KILLED)
            raise Stopped(f"stopped after {checkpoint.saved} outer iterations; go on with --resume")
        checkpoint.learnt = True

    def _kept(self, directory: RunDirectory, saved: int) -> str:
        """What is left of a run that ended within an iteration."""
        if directory.checkpoint is None:
            return f" in the first outer iteration, before anything was learnt: {ANEW}"
        return f"; {directory.checkpoint} holds the first {saved} outer iterations, go on with --resume"

    def _ended(self, error: Exception, leader: Leader, directory: RunDirectory, saved: int) -> Exception:
        """What is raised when learning failed; saves before what was learnt, unless a follower may have spoilt it."""
        from bilevel_envs.core.follower import FollowerError, capabilities_of

        done, lost = leader.progress.iterations, ""
        if isinstance(error, FollowerError) and capabilities_of(leader.env.follower).saves:
            lost = f" of {done}: the rest is lost with the follower, which failed while it learnt" * (done > saved)
        elif done:
            try:
                directory.save(leader)
                saved = done
            except OSError as full:
                lost = f" ({full})"
        name = "" if isinstance(error, (ValueError, TypeError, OSError, RuntimeError)) else f"{type(error).__name__}: "
        if directory.checkpoint is None:
            return ValueError(f"{name}{error}. {self.out}: no checkpoint yet{lost}, {ANEW}")
        kept = f"its last checkpoint is whole, --resume goes on from there, after {saved} outer iterations"
        return Stopped(f"{name}{error}. {self.out}: {kept}{lost}")

    def resolved(self) -> tuple[gym.Env, type[Leader], dict[str, Any]]:
        """The environment, the leader's class and its arguments."""
        made = leader_class(self.leader)
        env = env_of(self.env, env_arguments(self))
        given = {
            name: value
            for name, value in asdict(self).items()
            if value is not None and name not in (*NOT_FOR_THE_CONSTRUCTORS, "batch", "beta", "dynamics")
        }
        allowed = [one.name for one in parameters_of(made) if one.name not in ("self", "env")]
        if self.batch is not None:
            given["batch_size"] = self.batch
        further = key_values(self.leader_args, "leader_args")
        flags = sorted(set(further) & ({*asdict(self)} - {"dynamics"} | {"batch_size"}))
        if flags:
            own = ", ".join(f"--{'batch' if name == 'batch_size' else name.replace('_', '-')}" for name in flags)
            raise ValueError(f"`leader_args` must not repeat what has a flag of its own: take {own}")
        given |= further
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            named = unknown_names(unknown, allowed)
            raise ValueError(f"the leader {self.leader!r} has no argument {named}; it takes {', '.join(allowed)}")
        return env, made, given

    def _log_to(self, leader: Leader) -> None:
        from stable_baselines3.common.logger import configure

        leader.set_logger(configure(str(self.out / "tensorboard"), ["tensorboard"]))

    def _draw(self, leader: Any) -> None:
        from leaders.cli.runs import published_curve
        from leaders.experiments import plots

        preferences = leader.env.preferences
        published, batch = published_curve(self, leader)
        title = f"{self.env}, β = {preferences.beta:g}" + (f", preset {self.preset}" if self.preset else "")
        plots.save(plots.curve_figure(leader, title, published, batch), self.out / "curve.png")
        figure = plots.incentives_figure(leader)
        if figure is not None:
            plots.save(figure, self.out / "incentives.png")

    def _report(self, leader: Leader) -> None:
        from leaders.experiments.run_directory import THETA
        from leaders.training.theta import one_line

        value, what = leader.history.filled("leader_value"), "value"
        if np.isnan(value).all():
            value, what = leader.history["leader_return"], "sampled return"
        tail = value[-max(1, len(value) // 10) :].mean(0)
        spread = f" ± {tail.std(ddof=1) / len(tail) ** 0.5:.4f} s.e." if len(tail) > 1 else ""
        best = leader.env.best_known
        followed = leader.history.filled("leader_value_actual")[-max(1, len(value) // 10) :].mean(0)
        print(f"\nwrote to {self.out}:")
        for path in sorted(self.out.iterdir()):
            if not path.name.startswith("."):
                print(f"  {path.name}")
        print(f"\nleader's {what} over the last tenth of {len(value)} iterations:")
        if len(tail) > 1:
            print(f"  mean of {len(tail)} runs: {tail.mean():.4f}{spread}")
        print(f"  best run: {tail.max():.4f} (run {tail.argmax()}); at the start: {value[0].mean():.4f}")
        if what == "value" and not np.allclose(followed, tail, equal_nan=True):
            known = "not known" if np.isnan(followed).all() else f"{followed.mean():.4f}"
            print(f"  with the follower as it is, not an optimal one: {known}")
        print("  best known: " + ("none recorded" if best is None else f"{best:.4f} ({best.proof}; {best.source})"))
        print(f"\nθ after {leader.progress.iterations} iterations (every entry: {self.out / THETA}):")
        thetas = leader.theta.reshape(leader.runs, *leader.env.theta_space.shape)
        for run, theta in enumerate(thetas[:RUNS_SHOWN]):
            print(f"  run {run}: {one_line(theta)}")
        if leader.runs > RUNS_SHOWN:
            print(f"  and {leader.runs - RUNS_SHOWN} more")
