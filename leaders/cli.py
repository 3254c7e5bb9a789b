"""The command `bilevel`."""

from __future__ import annotations

import inspect
import json
import signal
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro

import bilevel_envs  # registers BiLevel/*
from bilevel_envs._checks import check_choice, check_count, check_number
from bilevel_envs.registration import PROBLEMS
from leaders.cli_reproduce import BuildingFigure, FourRoomsFigure, LQRFigure, ToyFigure
from leaders.words import names_in, told

NOT_FOR_THE_CONSTRUCTORS = (
    "env",
    "leader",
    "iterations",
    "out",
    "resume",
    "progress",
    "env_args",
    "leader_args",
    "follower",
    "follower_args",
)
Text = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
KeyValues = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")]


@dataclass(frozen=True)
class Envs:
    """List the environments, with the size of θ and the best value known."""

    def run(self) -> None:
        """Prints one line per environment."""
        width = max(map(len, PROBLEMS))
        for name in PROBLEMS:
            face: Any = gym.make(name).unwrapped
            p, best = face.preferences, face.best_known
            known = "-" if best is None else f"{best:.4f} ({'optimum' if best.exact else 'best known'})"
            size = str(list(face.theta_space.shape))
            print(f"{name:{width}s} θ {size:7s} β {p.beta:<7g} γ_L {p.gamma_leader:g}  J_L {known}")
            print(f"{'':{width}s} {inspect.getdoc(type(face.problem)).splitlines()[0]}")  # type: ignore[union-attr]


@dataclass(frozen=True)
class Train:
    """Train a leader and leave a run directory: config.json, history.csv, leader.zip, curve.png, ..."""

    env: str
    """id of the environment, such as BiLevel/FourRooms-v0"""
    out: Path
    """the run directory; must not exist, be empty, or hold this run (with --resume)"""
    leader: str = "bchg"
    """bchg, hpgd, sobirl, naive-pgd, exact, zeroth-order, cmaes or random-search"""
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
    """of FourRooms: published, classic or mismatched"""
    follower: Text = None
    """who answers: soft_value_iteration, riccati, sb3, observed, quantal, ..., or one of yours, MODULE:CLASS; the
    environment's own if not given"""
    follower_args: KeyValues = ()
    """its arguments; values are JSON, or text"""
    learning_rate: float | None = None
    """step size"""
    optimizer: Text = None
    """sgd or adam"""
    max_grad_norm: float | None = None
    """clip of the raw gradient"""
    critic: Text = None
    """expected_sarsa, sarsa, monte_carlo, lstd, td or exact"""
    critic_learning_rate: float | None = None
    """step size of the critic"""
    features: Text = None
    """state control variate: constant, quadratic or none"""
    tail: Text = None
    """drop, keep, bootstrap or reference"""
    knowledge: Text = None
    """in linear-quadratic worlds: simulate, terms or model"""
    env_args: KeyValues = ()
    """further arguments of the environment; values are JSON, or text"""
    leader_args: KeyValues = ()
    """further arguments of the leader"""
    resume: bool = False
    """go on with the run in --out"""
    progress: bool = True
    """show a progress bar"""

    def run(self) -> None:
        """Trains, saves and draws; nothing is written before every argument is known to be good."""
        import torch

        from bilevel_envs.follower import FollowerError
        from bilevel_envs.wrapper import BilevelWrapper
        from leaders.run import Checkpoint, RunDirectory

        torch.set_num_threads(1)  # the matrices are small: threads cost more than they bring
        check_count(self.iterations, "iterations")
        env, leader_class, arguments = self._resolved()
        directory = RunDirectory(self.out, told(self))
        wrapped = BilevelWrapper(env, _follower(self.follower, self.follower_args))
        leader = leader_class(wrapped, **arguments)
        directory.check(self.resume)
        if directory.checkpoint:
            leader = leader_class.load(directory.checkpoint, wrapped)
            done = leader.progress.iterations
            if self.iterations < done:
                raise ValueError(f"`iterations` must be at least {done}, which the run in {self.out} has done")
            print(f"resuming after {done} outer iterations")
        directory.begin()
        self._log_to(leader)
        checkpoint = Checkpoint(directory)
        before = signal.signal(signal.SIGINT, checkpoint.interrupt)
        try:
            left = self.iterations - leader.progress.iterations
            leader.learn(left, callback=checkpoint, progress_bar=self.progress and sys.stderr.isatty())
        except FollowerError as error:
            if leader.progress.iterations and not hasattr(wrapped.follower, "state_dict"):
                directory.save(leader)  # what others have learnt since the last checkpoint may be what failed
            kept = (
                "its last checkpoint is whole, --resume goes on from there"
                if directory.checkpoint
                else "no checkpoint yet"
            )
            raise FollowerError(f"{error}. {self.out}: {kept}") from error
        finally:
            signal.signal(signal.SIGINT, before)
            leader.logger.close()
        directory.save(leader)
        if checkpoint.interrupted:
            raise KeyboardInterrupt(f"stopped after {leader.progress.iterations} outer iterations; go on with --resume")
        self._draw(leader)
        self._report(leader)

    def _resolved(self) -> tuple[gym.Env, Any, dict[str, Any]]:
        """The environment, the leader's class and its arguments."""
        from leaders import LEADERS

        check_choice(self.leader, LEADERS, "leader")
        env = _make(self.env, _env_arguments(self))
        given = {
            name: value
            for name, value in asdict(self).items()
            if value is not None and name not in (*NOT_FOR_THE_CONSTRUCTORS, "batch", "beta", "dynamics")
        }
        leader_class = LEADERS[self.leader]
        allowed = [name for name in inspect.signature(leader_class.__init__).parameters if name not in ("self", "env")]
        if self.batch is not None:
            given["batch_size"] = self.batch
        further = _key_values(self.leader_args, "leader_args")
        flags = sorted(set(further) & ({*asdict(self)} | {"batch_size"}))
        if flags:
            raise ValueError(f"`leader_args` must not repeat what has a flag of its own: {', '.join(flags)}")
        given |= further
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            raise ValueError(
                f"the leader {self.leader!r} has no argument {', '.join(unknown)}; it takes {', '.join(allowed)}"
            )
        return env, leader_class, given

    def _log_to(self, leader: Any) -> None:
        from stable_baselines3.common.logger import configure

        leader.set_logger(configure(str(self.out / "tensorboard"), ["tensorboard"]))

    def _draw(self, leader: Any) -> None:
        from bilevel_envs.envs.four_rooms import FourRooms
        from leaders import plots
        from leaders.published import four_rooms

        preferences = leader.env.preferences
        published = None
        batch = getattr(getattr(leader, "sampling", None), "batch_size", None)
        if leader.env.problem in [FourRooms(dynamics=d, beta=preferences.beta) for d in ("published", "mismatched")]:
            name = f"hpgd-{leader.variant}" if self.leader == "hpgd" else self.leader
            published = four_rooms(name, preferences.beta, batch or 100)
        title = f"{self.env}, β = {preferences.beta:g}" + (f", preset {self.preset}" if self.preset else "")
        plots.save(plots.curve_figure(leader, title, published), self.out / "curve.png")
        figure = plots.incentives_figure(leader)
        if figure is not None:
            plots.save(figure, self.out / "incentives.png")

    def _report(self, leader: Any) -> None:
        value, what = leader.history["leader_value"], "value"
        if np.isnan(value).all():
            value, what = leader.history["leader_return"], "sampled return"
        tail = value[-max(1, len(value) // 10) :].mean(0)
        spread = f" ± {tail.std(ddof=1) / len(tail) ** 0.5:.4f} s.e." if len(tail) > 1 else ""
        best = leader.env.best_known
        followed = leader.history["followed_value"][-max(1, len(value) // 10) :].mean(0)
        print(f"\nwrote to {self.out}:")
        for path in sorted(self.out.iterdir()):
            if not path.name.startswith("."):
                print(f"  {path.name}")
        print(f"\nleader's {what} over the last tenth of {len(value)} iterations:")
        print(f"  mean of {len(tail)} runs: {tail.mean():.4f}{spread}")
        print(f"  best run: {tail.max():.4f}; at the start: {value[0].mean():.4f}")
        if what == "value" and not np.allclose(followed, tail, equal_nan=True):
            known = "not known" if np.isnan(followed).all() else f"{followed.mean():.4f}"
            print(f"  with the follower as it is, not an optimal one: {known}")
        print("  best known: " + ("nobody has looked" if best is None else f"{best:.4f} ({best.source})"))


@dataclass(frozen=True)
class Compare:
    """Compare leaders at equal iterations, each over a grid with all seeds stacked; a table with budgets, a figure."""

    env: str
    """id of the environment"""
    out: Path
    """a directory; must not exist, be empty, or hold this comparison (with --resume)"""
    leaders: str = "bchg,hpgd-mc,naive-pgd"
    """names, separated by commas: bchg, hpgd-mc, hpgd-sa, hpgd-oracle, sobirl, naive-pgd, bi-ac, exact,
    zeroth-order, cmaes, random-search"""
    follower: Text = None
    """who answers, one of its own for each leader; as in train"""
    follower_args: KeyValues = ()
    """its arguments"""
    value: str = "leader_value"
    """what is compared: leader_value, under the optimal follower; followed_value, under the one that answers; or
    leader_return, as sampled, where nobody can compute either"""
    grid: KeyValues = ()
    """values to try, such as learning_rate=0.5,0.1,0.05,0.01 critic_learning_rate=0.5,1.0"""
    preset: Text = None
    """"paper" for the published code, choice by choice"""
    iterations: int = 1000
    """outer iterations"""
    runs: int = 10
    """seeds per grid point"""
    batch: int | None = None
    """transitions per outer iteration and run, for leaders that draw batches (each leader's own if not given)"""
    seed: int = 0
    """the first seed"""
    beta: float | None = None
    """the follower's entropy coefficient; the environment's own if not given"""
    dynamics: Text = None
    """of FourRooms: published, classic or mismatched"""
    env_args: KeyValues = ()
    """further arguments of the environment"""
    resume: bool = False
    """go on with the comparison in --out: leaders that are done are not run again"""
    progress: bool = True
    """show a progress bar"""

    def run(self) -> None:
        """Runs the leaders one after another and writes results.csv, comparison.png and an .npz per leader."""
        import torch

        from leaders import compare, plots
        from leaders.run import RunDirectory

        torch.set_num_threads(1)
        check_count(self.iterations, "iterations")
        check_count(self.runs, "runs", at_least=2)
        check_count(self.seed, "seed", at_least=0)
        names = names_in(self.leaders)
        for name in names:
            check_choice(name, compare.CONTENDERS, "leaders")
        check_choice(self.preset, [None, "paper"], "preset")
        grid = _grid(self.grid)
        compare.grid_points(grid)
        check_choice(self.value, compare.VALUES, "value")
        arguments: dict[str, Any] = {"preset": self.preset} | ({} if self.batch is None else {"batch_size": self.batch})
        for name in names:  # refuses bad settings before anything is written
            try:
                compare.rehearse(self._world(), name, self.value, grid=grid, **arguments)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(f"{name} cannot take part: {error}") from error
        directory = RunDirectory(self.out, told(self))
        directory.check(self.resume)
        paths = {name: self.out / f"{name}.npz" for name in names}
        kept = compare.kept_results(paths, self.iterations)
        directory.begin()
        results = []
        for name in names:
            result = kept.get(name)
            if result is None:
                bar = self.progress and sys.stderr.isatty()
                settings: dict[str, Any] = {"runs": self.runs, "iterations": self.iterations, "seed": self.seed}
                settings["value"] = self.value
                result = compare.run_grid(self._world(), name, grid=grid, progress_bar=bar, **settings, **arguments)
                compare.save_result(result, paths[name])
            results.append(result)
        lines = compare.write_table(results, self.out / "results.csv")
        env = self._world()
        title = f"{self.env}, β = {env.preferences.beta:g}, {self.runs} seeds"
        title += f", {' '.join([self.follower, *self.follower_args])}" if self.follower else ""
        title += f", batch {self.batch}" if self.batch else ""
        title += f", preset {self.preset}" if self.preset else ""
        figure = compare.comparison_figure(results, title, env.best_known)
        plots.save(figure, self.out / "comparison.png")
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        print(f"\n{self.value}: mean over seeds of the last tenth of {self.iterations} iterations, best grid points")
        print(f"wrote {self.out}/results.csv, comparison.png and one .npz per leader")

    def _world(self) -> Any:
        """The environment with a follower that knows nothing of other leaders."""
        from bilevel_envs.wrapper import BilevelWrapper

        return BilevelWrapper(_make(self.env, _env_arguments(self)), _follower(self.follower, self.follower_args))


@dataclass(frozen=True)
class Reproduce:
    """Redraw a figure of the paper: our curves over the published ones, and a table of where they differ."""

    figure: (
        Annotated[FourRoomsFigure, tyro.conf.subcommand("four-rooms")]
        | Annotated[BuildingFigure, tyro.conf.subcommand("building-thermal-control")]
        | Annotated[ToyFigure, tyro.conf.subcommand("toy-markov-game")]
        | Annotated[LQRFigure, tyro.conf.subcommand("bilevel-lqr")]
    )

    def run(self) -> None:
        """Draws the figure that was asked for."""
        self.figure.run()


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
        from leaders import plots
        from leaders.run import CONFIG, LEADER, read_config
        from leaders.video import follower_film

        check_count(self.steps, "steps")
        check_count(self.fps, "fps")
        check_count(self.seed, "seed", at_least=0)
        if not (self.directory / CONFIG).is_file() or not (self.directory / LEADER).is_file():
            raise ValueError(f"`directory` must hold a run with {CONFIG} and {LEADER}; {self.directory} does not")
        told = {k: tuple(v) if isinstance(v, list) else v for k, v in read_config(self.directory).items()}
        train = Train(**{**told, "out": self.directory})  # type: ignore[arg-type]
        env, leader_class, arguments = train._resolved()
        wrapped = BilevelWrapper(env, _follower(train.follower, train.follower_args))
        if not hasattr(wrapped.problem, "draw"):
            raise ValueError(f"{train.env} cannot be drawn")
        if getattr(wrapped.problem, "on_grid", False):
            raise ValueError(f"{train.env} cannot be filmed: its follower answers on a grid, its world is continuous")
        leader = leader_class.load(self.directory / LEADER, wrapped)
        run = plots.best_run(leader)
        fresh = leader_class(wrapped, **arguments)
        path = self.directory / "follower.mp4"
        how = {"steps": self.steps, "fps": self.fps, "seed": self.seed, "run": run}
        frames = follower_film(wrapped, fresh.theta, leader.theta, path, **how)
        print(f"wrote {path}: run {run}, {frames} frames")


def _env_arguments(command: Any) -> dict[str, Any]:
    """The environment's arguments: flags first, then what `--env-args` says."""
    arguments = _key_values(command.env_args, "env_args")
    for name in ("beta", "dynamics"):
        if getattr(command, name) is not None:
            arguments[name] = getattr(command, name)
    return arguments


def _grid(pairs: tuple[str, ...]) -> dict[str, list[float]]:
    grid = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            values = [float(number) for number in text.split(",")]
        except ValueError:
            raise ValueError(f"`grid` must be KEY=NUMBER,NUMBER,..., got {pair!r}") from None
        if key in grid or len(set(values)) < len(values):
            raise ValueError(f"`grid` must give each key once, with different values, got {pair!r}")
        grid[key] = [check_number(value, key, above=0) for value in values]
    return grid


def _follower(name: str | None, pairs: tuple[str, ...]) -> Any:
    """A follower by name, with its arguments; None for the environment's own."""
    further = _key_values(pairs, "follower_args")
    if name is None:
        if further:
            raise ValueError(f"`follower_args` need a --follower, got {', '.join(further)}")
        return None
    make = _follower_class(name)
    inner = {key.partition(".")[2]: further.pop(key) for key in list(further) if key.startswith("follower.")}
    if isinstance(further.get("follower"), str):
        further["follower"] = _follower_class(further["follower"])(**inner)
    elif inner:
        raise ValueError(f"`follower.{next(iter(inner))}` needs follower=NAME, who is watched or errs")
    takes = inspect.signature(make).parameters
    unknown = sorted(set(further) - set(takes))
    if unknown and not any(one.kind == one.VAR_KEYWORD for one in takes.values()):
        raise ValueError(f"the follower {name!r} has no argument {', '.join(unknown)}; it takes {', '.join(takes)}")
    try:
        inspect.signature(make).bind(**further)
    except TypeError as error:
        raise ValueError(f"`follower_args` do not fit the follower {name!r}: {error}") from error
    return make(**further)


def _follower_class(name: str) -> Any:
    """A follower's class by its name here, or by MODULE:CLASS."""
    from bilevel_envs.followers import FOLLOWERS

    module, colon, own = name.partition(":")
    if not colon:
        check_choice(name, FOLLOWERS, "follower")
        return FOLLOWERS[name]
    try:
        return getattr(import_module(module), own)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`follower` must be MODULE:CLASS that can be imported, got {name!r} ({error})") from error


def _make(name: str, kwargs: dict[str, Any]) -> gym.Env:
    try:
        return gym.make(name, **kwargs)
    except gym.error.Error as error:
        raise ValueError(f"`env` must be a registered id; {error}. Known here: {', '.join(PROBLEMS)}") from error


def _key_values(pairs: tuple[str, ...], name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"`{name}` must be KEY=VALUE, got {pair!r}")
        if key in parsed:
            raise ValueError(f"`{name}` must give each key once, got {pair!r} beside {key}={parsed[key]!r}")
        parsed[key] = _value(text)
    return parsed


def _value(text: str) -> Any:
    """JSON, Python's names and numbers, or the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return float(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a bad argument ends with one line and status 2."""
    command = tyro.cli(
        Annotated[Envs, tyro.conf.subcommand("envs")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[
            Reproduce,
            tyro.conf.subcommand("reproduce"),
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
        ]
        | Annotated[Video, tyro.conf.subcommand("video")],
        prog="bilevel",
        description=bilevel_envs.__doc__.splitlines()[0],
        args=arguments,
    )
    try:
        command.run()
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"bilevel: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as stop:
        print(f"\nbilevel: {stop or 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None
