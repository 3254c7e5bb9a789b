"""The figures of `bilevel reproduce`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from bilevel_envs.core.checks import check_choice, check_count, check_seed, unknown_names
from leaders.cli.arguments import config_of, names_in

if TYPE_CHECKING:
    from leaders.experiments.reproduce.games import Form, Returns


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """What every figure takes; subclasses say how many outer iterations are a first part, and how many are all."""

    first_part: ClassVar[int]
    complete: ClassVar[int]

    out: Path
    """a directory; must not exist, be empty, or hold this figure (with --resume)"""
    leaders: str
    """names, separated by commas"""
    iterations: int | None = None
    """outer iterations; by default the first part of the figure's, with --full all of them"""
    full: bool = False
    """all of the figure's outer iterations (which the games run anyway)"""
    runs: int = 10
    """seeds"""
    seed: int = 0
    """the first seed"""
    resume: bool = False
    """go on with the figure in --out: leaders that are done are not run again"""
    progress: bool = True
    """show a progress bar"""

    def checked_iterations(self) -> int:
        """How many outer iterations are wanted; raises ValueError if these flags are out of range."""
        check_count(self.runs, "runs", at_least=2)
        check_seed(self.seed)
        if self.iterations is not None and self.full:
            raise ValueError(f"`iterations` must be left out with --full, got {self.iterations}")
        wanted = self.complete if self.full else self.first_part
        return check_count(wanted if self.iterations is None else self.iterations, "iterations")


@dataclass(frozen=True, kw_only=True)
class FourRoomsFigure(PaperFigure):
    """Figure 2: the four rooms, one picture and one table per β.

    Example: bilevel reproduce four-rooms --beta 5e-3 --leaders bchg,naive-pgd --out runs/figure2
    """

    first_part, complete = 2_000, 10_000

    beta: tuple[float, ...] = (5e-3,)
    """one or more of 1e-3, 3e-3, 5e-3"""
    batch: int = 100
    """100, 200, 400 or 1000 transitions per outer iteration"""
    leaders: str = "bchg,hpgd-mc,hpgd-sa,sobirl,naive-pgd"
    """names, separated by commas; hpgd-oracle draws a hundred times as much and takes its time"""

    def run(self) -> None:
        """Writes one picture and one table per β, and an .npz per leader."""
        import torch

        from leaders.experiments import compare, plots
        from leaders.experiments.reproduce import four_rooms as reproduce
        from leaders.experiments.run_directory import RunDirectory
        from leaders.published import four_rooms
        from leaders.training.history import replace_file

        torch.set_num_threads(1)
        iterations, bar = self.checked_iterations(), self.progress and sys.stderr.isatty()
        names = self._published_names()
        directory = RunDirectory(self.out, config_of(self))
        directory.check(self.resume)
        paths = {beta: {name: self.out / f"{name}-beta{beta:g}.npz" for name in names} for beta in self.beta}
        kept = {beta: compare.kept_results(paths[beta], iterations) for beta in self.beta}
        directory.begin()
        for beta in self.beta:
            results, comparisons = [], []
            for name in names:
                result = kept[beta].get(name)
                if result is None:
                    result = reproduce.four_rooms_runs(
                        name, beta, self.batch, runs=self.runs, iterations=iterations, seed=self.seed, progress_bar=bar
                    )
                    compare.save_result(result, paths[beta][name])
                curve = four_rooms(name, beta, self.batch)
                assert curve is not None
                results.append(result)
                comparisons += reproduce.compared(result, curve)
            plots.save(reproduce.figure_of(results, beta, self.batch), self.out / f"four-rooms-beta{beta:g}.png")
            table = reproduce.table_of(comparisons)
            replace_file(self.out / f"four-rooms-beta{beta:g}.md", table.encode())
            print(f"\nβ = {beta:g}, batch {self.batch}, {self.runs} seeds\n\n{table}")
            differing = sorted({c.leader for c in comparisons if not c.agrees})
            said = f"differ from the published curves: {', '.join(differing)}" if differing else "all agree"
            print(f"{said} (within 3 combined standard errors or 0.01)")
        print(f"wrote {self.out}")

    def _published_names(self) -> list[str]:
        """The leaders' names; a ValueError for what the paper does not show."""
        from leaders.published import METHODS, four_rooms

        names = names_in(self.leaders)
        if not self.beta or len(set(self.beta)) < len(self.beta):
            raise ValueError(f"`beta` must be one or more different values, got {list(self.beta)}")
        check_choice(self.batch, [100, 200, 400, 1000], "batch")
        for beta in self.beta:
            check_choice(beta, [1e-3, 3e-3, 5e-3], "beta")
            for name in names:
                if four_rooms(name, beta, self.batch) is None:
                    named = unknown_names([name], METHODS)
                    raise ValueError(f"the paper shows no curve of {named} at β = {beta:g} and batch {self.batch}")
        return names


@dataclass(frozen=True, kw_only=True)
class BuildingFigure(PaperFigure):
    """Figure 3: building thermal control, with its parts, θ, the exact optimum and the random-search study.

    Example: bilevel reproduce building-thermal-control --leaders bchg,naive-pgd --out runs/figure3
    """

    first_part, complete = 500, 2_000

    leaders: str = "bchg,bchg-pathwise,bchg-score,naive-pgd"
    """names, separated by commas: bchg, bchg-pathwise, bchg-score, naive-pgd, exact; the published forms with quadratic
    critics bchg-paper, naive-pgd-paper, hpgd-mc-paper, hpgd-td-paper; and with the published networks, minutes per
    iteration and run, bchg-networks, naive-pgd-networks, hpgd-mc-networks, hpgd-td-networks"""
    batch: int = 10_000
    """transitions per outer iteration and run, a multiple of 1000"""
    search: int = 10_000
    """random configurations for the histogram; 0 for none"""

    def run(self) -> None:
        """Writes pictures of the objective, of its parts and of θ, tables, and an .npz per leader."""
        import gymnasium as gym
        import torch

        from leaders.experiments import plots
        from leaders.experiments.reproduce import building as building
        from leaders.experiments.run_directory import RunDirectory
        from leaders.training.history import replace_file

        torch.set_num_threads(1)
        iterations = self.checked_iterations()
        check_count(self.search, "search", at_least=0)
        if check_count(self.batch, "batch") % 1000:
            raise ValueError(f"`batch` must be a multiple of 1000, ten whole episodes, got {self.batch}")
        names = names_in(self.leaders)
        for name in names:
            check_choice(name, building.FORMS, "leaders")
        directory = RunDirectory(self.out, config_of(self))
        directory.check(self.resume)
        paths = {name: self.out / f"{name}.npz" for name in names}
        kept = {n: building.load_curves(path, n, iterations) for n, path in paths.items() if path.is_file()}
        directory.begin()
        results = []
        for name in names:
            curves = kept.get(name)
            if curves is None:
                bar = self.progress and sys.stderr.isatty()
                curves = building.building_runs(
                    name,
                    batch_size=self.batch,
                    runs=self.runs,
                    iterations=iterations,
                    seed=self.seed,
                    progress_bar=bar,
                )
                building.save_curves(curves, paths[name])
            results.append(curves)
        best = gym.make(building.ENV).unwrapped.best_known  # type: ignore[attr-defined]
        plots.save(building.objective_figure(results, best), self.out / "objective.png")
        plots.save(building.parts_figure(results), self.out / "parts.png")
        plots.save(building.theta_figure(results), self.out / "theta.png")
        text = building.table_of(results, best)
        replace_file(self.out / "building-thermal-control.md", text.encode())
        print(text)
        if self.search:
            found = building.random_search(self.search)
            plots.save(building.search_figure(found, best), self.out / "random-search.png")
            text = building.search_table(found)
            replace_file(self.out / "random-search.md", text.encode())
            print(text)
        print(f"wrote {self.out}")


@dataclass(frozen=True, kw_only=True)
class ToyFigure(PaperFigure):
    """Figure 4: the toy Markov game, both variants and both units, with exact ceilings and J against f(0|A).

    Example: bilevel reproduce toy-markov-game --variants R2 --leaders bchg,bi-ac-paper --out runs/figure4
    """

    first_part = complete = 500  # of 450 steps each

    variants: str = "R1,R2"
    """R1, R2 or both, separated by a comma"""
    leaders: str = "bchg,bchg-paper,naive-pgd-paper,bi-ac-paper"
    """names, separated by commas: bchg, naive-pgd, bi-ac; and their published forms, bchg-paper, naive-pgd-paper,
    bi-ac-paper"""

    def run(self) -> None:
        """Writes two pictures and a table per variant, and an .npz per leader."""
        from leaders.experiments import plots
        from leaders.experiments.reproduce import games as games
        from leaders.training.history import replace_file

        variants = names_in(self.variants)
        for variant in variants:
            check_choice(variant, list(games.CEILINGS), "variants")
        names = _begin(self, games.TOY_FORMS)
        for variant in variants:
            results = _returns(self, names, f"{variant}-", partial(games.toy_runs, variant=variant), games.TOY_FORMS)
            plots.save(games.toy_figure(results, variant), self.out / f"toy-{variant}.png")
            plots.save(games.landscape_figure(variant), self.out / f"landscape-{variant}.png")
            text = games.toy_table(results, variant)
            replace_file(self.out / f"toy-{variant}.md", text.encode())
            print(f"\n{text}")
        print(f"wrote {self.out}")


@dataclass(frozen=True, kw_only=True)
class LQRFigure(PaperFigure):
    """Figure 5: the bilevel LQR, with the exact ceiling.

    Example: bilevel reproduce bilevel-lqr --leaders bchg,naive-pgd-paper --out runs/figure5
    """

    first_part = complete = 800  # the published forms stop at the paper's 500

    leaders: str = "bchg,bchg-paper,naive-pgd-paper,naive-pgd-off-paper"
    """names, separated by commas: bchg, bchg-pathwise (batches of 500, a fitted loop), naive-pgd, exact; and the
    published forms bchg-paper, naive-pgd-paper, naive-pgd-off-paper"""
    runs: int = 20
    """seeds"""

    def run(self) -> None:
        """Writes a picture, a table, and an .npz per leader."""
        from leaders.experiments import plots
        from leaders.experiments.reproduce import games as games
        from leaders.training.history import replace_file

        results = _returns(self, _begin(self, games.LQR_FORMS), "", games.lqr_runs, games.LQR_FORMS)
        plots.save(games.lqr_figure(results), self.out / "bilevel-lqr.png")
        text = games.lqr_table(results)
        replace_file(self.out / "bilevel-lqr.md", text.encode())
        print(f"\n{text}\nwrote {self.out}")


def _begin(command: ToyFigure | LQRFigure, forms: Mapping[str, Form]) -> list[str]:
    """Checks the arguments of a game's figure and makes its directory; returns the leaders' names."""
    import torch

    from leaders.experiments.run_directory import RunDirectory

    torch.set_num_threads(1)
    command.checked_iterations()
    names = names_in(command.leaders)
    for name in names:
        check_choice(name, forms, "leaders")
    directory = RunDirectory(command.out, config_of(command))
    directory.check(command.resume)
    directory.begin()
    return names


def _returns(
    command: ToyFigure | LQRFigure,
    names: Sequence[str],
    prefix: str,
    run: Callable[..., Returns],
    forms: Mapping[str, Form],
) -> list[Returns]:
    """The results of a game's leaders, from what is there or run anew."""
    from leaders.experiments.reproduce import games as games

    results, iterations = [], command.checked_iterations()
    for name in names:
        path = command.out / f"{prefix}{name}.npz"
        if path.is_file():
            results.append(games.load_returns(path, name, forms[name].iterations(iterations)))
            continue
        bar = command.progress and sys.stderr.isatty()
        how = {"runs": command.runs, "iterations": iterations, "seed": command.seed}
        results.append(run(name, progress_bar=bar, **how))
        games.save_returns(results[-1], path)
    return results


@dataclass(frozen=True)
class Reproduce:
    """Redraw a figure of the paper: our curves over the published ones, and a table of where they differ.

    Example: bilevel reproduce four-rooms --out runs/figure2
    """

    figure: (
        Annotated[FourRoomsFigure, tyro.conf.subcommand("four-rooms")]
        | Annotated[BuildingFigure, tyro.conf.subcommand("building-thermal-control")]
        | Annotated[ToyFigure, tyro.conf.subcommand("toy-markov-game")]
        | Annotated[LQRFigure, tyro.conf.subcommand("bilevel-lqr")]
    )

    def run(self) -> None:
        """Draws the figure that was asked for."""
        self.figure.run()
