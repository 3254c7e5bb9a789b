"""The model against differences in θ, and the steps of the environment against the model."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.testing.laws import Points, law_of
from bilevel_envs.testing.report import Finding, Skipped
from bilevel_envs.testing.subject import Subject, short

STEP = 2.5e-4  # of central differences, as a share of the way between two θ
AGREEMENT = 1e-4  # of gradients and differences, relative to the largest
ALONG = 0.4  # where on that way
POINTS = 200  # at which functions of vectors are compared
PLACES, FEWER = 129, 33  # on the way from one θ to another at which jumps are looked for; of models that are large
LARGE = 10**5  # numbers in all parts of a model
SIDE_BY_SIDE = 16  # places at once
STEEP = 8.0  # how many times as much as elsewhere a part has to change for a jump


def states_of(subject: Subject, observations: list[object]) -> np.ndarray:
    """The states of a model that stand behind observations: numbers in tables, else what is seen.

    Raises:
      Skipped: if the states of a table cannot be told from what is seen.
    """
    if subject.problem.on_grid:
        raise Skipped("the model is a table on a grid, which `step` does not keep to")
    seen = subject.inside.observations()
    if seen is None:
        return np.array(observations)
    number = {row.tobytes(): state for state, row in enumerate(seen)}
    keys = [np.asarray(one).astype(seen.dtype).tobytes() for one in observations]
    if len(number) < len(seen):
        raise Skipped("several states of the table look alike")
    unknown = [one for one, key in zip(observations, keys, strict=True) if key not in number]
    if unknown:
        raise ValueError(f"the observation {short(unknown[0])} is no state of the model, which has {len(seen)}")
    return np.array([number[key] for key in keys])


def points_of(subject: Subject) -> Points:
    """The sampled steps as the model takes them."""
    return Points(subject.sample, lambda observations: states_of(subject, observations))


def few_points_of(subject: Subject) -> Points:
    """The first of them, for derivatives; what a model on a grid is asked for does not need any."""
    steps = subject.sample
    if subject.problem.on_grid:
        return Points(steps, lambda observations: np.zeros(len(observations), int))
    points = points_of(subject)
    for name in ("state", "action", "following"):
        setattr(points, name, getattr(points, name)[:POINTS])
    points.first = points.first[:POINTS]
    if points.components is not None:
        points.components = points.components[:POINTS]
    return points


def runs(subject: Subject) -> Iterator[Finding]:
    """The model of several θ is that of each, one after another."""
    points = few_points_of(subject)
    thetas = [subject.thetas.default, *subject.thetas.inner[:2]]
    together = law_of(subject.model(np.stack(thetas))).quantities(points)
    for run, theta in enumerate(thetas):
        for name, alone in law_of(subject.model(theta)).quantities(points).items():
            table = together[name]
            mine = table[run] if len(table) > 1 else table[0]
            off = float((mine - alone[0]).abs().max())
            if off > 1e-9 * (1 + float(alone.abs().max())):
                yield Finding(
                    f"{name} of model(θ) with θ of {len(thetas)} runs, [{len(thetas)}, *θ.shape], against that of each "
                    "θ alone",
                    f"in run {run} they differ by up to {off:.6g}",
                    "keep the leading axis of θ: theta[:, i] is entry i of every run, theta[i] is all of run i",
                )
                return


def gradients(subject: Subject) -> Iterator[Finding]:
    """What autograd gives for the derivatives of the model's parts is what differences give."""
    points, thetas = few_points_of(subject), [subject.thetas.default, *subject.thetas.inner]
    if len(thetas) < 3 and np.array_equal(thetas[0], thetas[-1]):
        raise Skipped("only one θ is known")
    reported: set[str] = set()
    for start, end in zip(thetas[:2], thetas[:0:-1], strict=False):
        if np.array_equal(start, end):
            continue
        for name, finding in _along_the_way(subject, points, torch.from_numpy(start), torch.from_numpy(end)):
            if name not in reported:
                reported.add(name)
                yield finding


def jumps(subject: Subject) -> Iterator[Finding]:
    """No part of the model jumps on the way from one θ to another."""
    start, end = subject.thetas.default, subject.thetas.inner[0]
    if np.array_equal(start, end):
        raise Skipped("only one θ is known")
    numbers = sum(part.numel() for part in law_of(subject.model(start)).quantities(few_points_of(subject)).values())
    places = FEWER if numbers > LARGE else PLACES
    values, slopes = _on_the_way(subject, torch.from_numpy(start), torch.from_numpy(end), places)
    for name, value in values.items():
        change, width = value.diff(), 1 / (places - 1)
        off = (change - width * (slopes[name][1:] + slopes[name][:-1]) / 2).abs()
        most = torch.maximum(2 * width * slopes[name].abs().max(), STEEP * change.abs().median())
        if value.isfinite().all() and (off > most + 1e-9 * (1 + value.abs().max())).any():
            at = int(off.argmax())
            place = torch.from_numpy(start + (at + 0.5) * width * (end - start))
            yield Finding(
                f"a sum of {name} of model(θ) at {places} places on the way from one θ to another",
                f"near θ = {short(place.numpy())} it changes by {float(change[at]):.6g}, where its slope is at most "
                f"{float(slopes[name].abs().max()):.3g} per unit of the way and a step {width:.3g} long",
                f"take out what makes {name} jump, a comparison with θ or a rounding of it: a gradient says nothing of "
                "a jump. A sigmoid rises instead",
            )


def _on_the_way(
    subject: Subject, start: Tensor, end: Tensor, places: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random sums of each part of the model on the way from one θ to another, and their slopes, [places] each."""
    points = few_points_of(subject)
    parts: dict[str, Tensor] = {}
    slopes: dict[str, Tensor] = {}
    for shares in torch.linspace(0, 1, places, dtype=torch.float64).split(SIDE_BY_SIDE):
        share = shares.clone().requires_grad_()
        theta = start + share.view(-1, *[1] * start.dim()) * (end - start)
        for name, table in law_of(subject.model(theta)).quantities(points).items():
            weights = torch.from_numpy(np.random.default_rng(subject.seed).uniform(0.5, 1.5, table.shape[1:]))
            value = (table * weights).reshape(len(table), -1).sum(1).expand(len(share))
            slope = _derivative_of(value, share)
            parts[name] = torch.cat([parts.get(name, value.new_empty(0)), value.detach()])
            slopes[name] = torch.cat([slopes.get(name, value.new_empty(0)), slope])
    return parts, slopes


def _derivative_of(value: Tensor, share: Tensor) -> Tensor:
    """dvalue_i / dshare_i; 0 where there is none."""
    if not value.requires_grad:
        return torch.zeros_like(share)
    (slope,) = torch.autograd.grad(value.sum(), share, retain_graph=True, allow_unused=True)
    return torch.zeros_like(share) if slope is None else slope


def _along_the_way(subject: Subject, points: Points, start: Tensor, end: Tensor) -> Iterator[tuple[str, Finding]]:
    """Derivatives with respect to the share of the way from one θ to another, by name of the part."""

    def parts(share: Tensor) -> dict[str, Tensor]:
        theta = (start + share * (end - start))[None]
        return law_of(subject.model(theta)).quantities(points)

    def values(share: float) -> dict[str, Tensor]:
        return {name: part.detach() for name, part in parts(torch.tensor(share, dtype=torch.float64)).items()}

    share = torch.tensor(ALONG, dtype=torch.float64, requires_grad=True)
    at = {k: values(ALONG + k * STEP) for k in (-2, -1, 0, 1, 2)}
    for name, part in parts(share).items():
        difference, bend = _differences({k: told[name] for k, told in at.items()})
        scale, size = float(difference.abs().max()), float(part.detach().abs().max())
        tolerance = AGREEMENT * scale + 1e-14 * size / STEP
        exact = _derivative(part, share)
        off = torch.where(bend <= tolerance, (exact - difference).abs(), 0.0)
        if off.max() > 3 * tolerance:
            where = np.unravel_index(int(off.argmax()), off.shape)
            told = float(exact[where]), float(difference[where])
            yield name, _wrong_gradient(name, part.requires_grad, *told, where[1:])


def _wrong_gradient(name: str, attached: bool, exact: float, difference: float, at: tuple[np.intp, ...]) -> Finding:
    place = f" at {tuple(map(int, at))}" if at else ""
    looked = f"the derivative of {name} of model(θ) on the way from one θ to another, against central differences"
    if not attached:
        return Finding(
            looked,
            f"autograd gives none, while {name}{place} changes by {difference:.6g} per unit of the way",
            f"compute {name} from θ with torch operations, without detach(), .item(), .numpy() or torch.tensor(theta)",
        )
    return Finding(
        looked,
        f"autograd gives {exact:.6g} and differences give {difference:.6g} for {name}{place}",
        f"look for a term of {name} that is cut off from θ (detach(), .item(), a comparison), or has a gradient of its "
        "own",
    )


def _differences(at: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Central differences of fourth order, and how much slopes jump between the points, 0 where there is no kink.

    Args:
      at: values at so many steps from the middle, −2 … 2.
    """
    difference = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * STEP)
    # Third differences: of the order of the squared step where the function is smooth, of the jump where it is not.
    ahead, behind = (sign * (at[2 * sign] - 3 * at[sign] + 3 * at[0] - at[-sign]) / STEP for sign in (1, -1))
    return difference, torch.maximum(ahead.abs(), behind.abs())


def _derivative(part: Tensor, share: Tensor) -> Tensor:
    """The derivative of every entry with respect to one number, by two reverse passes; 0 without a gradient."""
    if not part.requires_grad:
        return torch.zeros_like(part)
    weights = torch.ones_like(part, requires_grad=True)
    (first,) = torch.autograd.grad(part, share, weights, create_graph=True, allow_unused=True)
    if first is None or not first.requires_grad:
        return torch.zeros_like(part)
    return torch.autograd.grad(first, weights)[0].detach()


def rewards(subject: Subject) -> Iterator[Finding]:
    """Steps pay what the model has."""
    law = law_of(subject.stepped(subject.thetas.inner[0]))
    yield from law.rewards(points_of(subject))


def moves(subject: Subject) -> Iterator[Finding]:
    """Steps lead where the model's law leads."""
    law = law_of(subject.stepped(subject.thetas.inner[0]))
    yield from law.moves(points_of(subject))


def starts(subject: Subject) -> Iterator[Finding]:
    """Episodes begin where the model's law has them begin."""
    theta = subject.thetas.inner[0]
    law = law_of(subject.stepped(theta))
    subject.inside.configure(theta)
    first = [subject.env.reset(seed=subject.seed)[0]]
    first += [deepcopy(subject.env.reset()[0]) for _ in range(subject.count // 10)]
    yield from law.starts(states_of(subject, first))
