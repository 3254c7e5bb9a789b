"""`bilevel compare`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bilevel_envs.core.checks import check_choice, check_count, check_number, check_seed
from leaders.cli.arguments import KeyValues, Text, config_of, env_arguments, env_of, follower_of, names_in

if TYPE_CHECKING:
    from bilevel_envs.wrapper import BilevelWrapper


@dataclass(frozen=True)
class Compare:
    """Compare leaders at equal iterations, each over a grid with all seeds stacked; a table with budgets, a figure.

    Example: bilevel compare --env BiLevel/TollBridge-v0 --leaders bchg,naive-pgd --runs 5 --out runs/compare
    """

    env: str
    """id of the environment, or one of yours, MODULE:ID"""
    out: Path
    """a directory; must not exist, be empty, or hold this comparison (with --resume)"""
    leaders: str = "bchg,hpgd-mc,naive-pgd"
    """names, separated by commas: bchg, mbhg, hpgd-mc, hpgd-sa, hpgd-oracle, sobirl, naive-pgd, bi-ac, exact,
    zeroth-order, cmaes, random-search"""
    follower: Text = None
    """who answers, one of its own for each leader; as in train"""
    follower_args: KeyValues = ()
    """its arguments"""
    value: Text = None
    """what is compared: leader_value, under the optimal follower; leader_value_actual, under the one that answers; or
    leader_return, as sampled. If not given, leader_value where the world has a model that is solved exactly, else
    leader_return"""
    grid: KeyValues = ()
    """values to try, such as learning_rate=0.5,0.1,0.05,0.01 critic_learning_rate=0.5,1.0"""
    preset: Text = None
    """"paper" for the published code, choice by choice"""
    iterations: int = 1000
    """outer iterations"""
    runs: int = 10
    """seeds per grid point"""
    selection_seeds: int = 0
    """further seeds per grid point, by which each leader's best point is chosen, and nothing else; with 0 the point is
    chosen by the seeds that judge it, hence too well"""
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

        from leaders.experiments import compare, plots
        from leaders.experiments.run_directory import RunDirectory
        from leaders.training.task import task_of

        torch.set_num_threads(1)
        check_count(self.iterations, "iterations")
        check_count(self.runs, "runs", at_least=2)
        check_count(self.selection_seeds, "selection_seeds", at_least=0)
        check_seed(self.seed)
        names = names_in(self.leaders)
        for name in names:
            check_choice(name, compare.CONTENDERS, "leaders")
        check_choice(self.preset, [None, "paper"], "preset")
        grid = _grid(self.grid)
        compare.grid_points(grid)
        value = self.value or compare.value_of(self._world())
        check_choice(value, compare.VALUES, "value")
        arguments: dict[str, object] = {"preset": self.preset} | (
            {} if self.batch is None else {"batch_size": self.batch}
        )
        for name in names:  # refuses bad settings before anything is written
            world = self._world()
            try:
                compare.rehearse(world, name, value, grid=grid, **arguments)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(f"{name} cannot take part: {error}") from error
        # ids and names may come to mean other data, and arrays have no flags
        directory = RunDirectory(self.out, config_of(replace(self, value=value)) | {"task": task_of(self._world())})
        directory.check(self.resume)
        paths = {name: self.out / f"{name}.npz" for name in names}
        kept = compare.kept_results(paths, self.iterations)
        directory.begin()
        for name in names:
            if kept.get(name) is None:
                bar = self.progress and sys.stderr.isatty()
                kept[name] = compare.run_grid(
                    self._world(),
                    name,
                    grid=grid,
                    runs=(self.runs, self.selection_seeds),
                    iterations=self.iterations,
                    seed=self.seed,
                    value=value,
                    progress_bar=bar,
                    **arguments,
                )
                compare.save_result(kept[name], paths[name])
        results = [kept[name] for name in names]
        lines = compare.write_table(results, self.out / "results.csv")
        env = self._world()
        figure = compare.comparison_figure(results, self._title(env.preferences.beta), env.best_known)
        plots.save(figure, self.out / "comparison.png")
        self._print(lines, value)
        if any(len(result.points) > 1 and not result.choosing.size for result in results):
            print("each point was chosen by the seeds that are shown, hence too high: --selection-seeds takes others")

    def _print(self, lines: list[list[str]], value: str) -> None:
        """The table, and where the rest is."""
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        print(f"\n{value}: mean over seeds of the last tenth of {self.iterations} iterations, best grid points")
        print(f"wrote {self.out}/results.csv, comparison.png and one .npz per leader")

    def _title(self, beta: float) -> str:
        """What was compared."""
        title = f"{self.env}, β = {beta:g}, {self.runs} seeds"
        title += f", {' '.join([self.follower, *self.follower_args])}" if self.follower else ""
        title += f", batch {self.batch}" if self.batch else ""
        return title + (f", preset {self.preset}" if self.preset else "")

    def _world(self) -> BilevelWrapper:
        """The environment with a follower that knows nothing of other leaders."""
        from bilevel_envs.wrapper import BilevelWrapper

        return BilevelWrapper(env_of(self.env, env_arguments(self)), follower_of(self.follower, self.follower_args))


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
