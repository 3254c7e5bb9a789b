"""The contract of θ: what is accepted, what is refused, how long it holds, and that it matters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from bilevel_envs.testing.laws import law_of
from bilevel_envs.testing.model import points_of
from bilevel_envs.testing.report import Finding, Skipped
from bilevel_envs.testing.subject import Subject, first_difference, same, short

FEW = 15  # steps of episodes that are compared many times
REFUSALS = (ValueError, TypeError)


def parameterised(subject: Subject) -> Iterator[Finding]:
    """`parameterization(runs, noise)` yields [runs, *θ.shape], inside the space."""
    starts = subject.thetas.starts()
    if not starts:
        raise Skipped("the environment has no parameterisation of its own")
    shape = subject.inside.theta_space.shape
    for theta in starts:
        if theta.shape != shape:
            yield Finding(
                f"θ of `parameterization(runs, noise)`, which must be [runs, {', '.join(map(str, shape))}]",
                f"each run has shape {list(theta.shape)}",
                "return a module whose forward() gives [runs, *θ.shape]",
            )
            return
        fault = _refusal(subject, theta)
        if fault:
            yield Finding(
                "a first θ of `parameterization(runs, noise)`, which must lie in the space",
                f"{short(theta)} is refused: {fault}",
                "keep forward() inside `theta_space`, as Box, Budget and Softmax of bilevel_envs.parameterizations do",
            )
            return


def _refusal(subject: Subject, theta: np.ndarray) -> str:
    """Why `configure` refuses θ; empty if it does not."""
    try:
        subject.inside.configure(theta)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def accepted(subject: Subject) -> Iterator[Finding]:
    """The default θ, others inside the space, and those at its edge can be configured."""
    sorts = {
        "the default θ": [subject.thetas.default],
        "a θ inside the space": subject.thetas.inner,
        "a θ at the edge of the space": subject.thetas.extreme,
    }
    for name, thetas in sorts.items():
        for theta in thetas:
            fault = _refusal(subject, theta)
            if fault:
                yield Finding(
                    f"`configure` with {name}",
                    f"{short(theta)} is refused: {fault}",
                    "accept every θ of `theta_space`, or make the space smaller (a problem's `check_theta` may refuse "
                    "more)",
                )
                break


def bad_thetas(subject: Subject) -> dict[str, np.ndarray]:
    """θ that must be refused, by what is wrong with them."""
    space, default = subject.inside.theta_space, subject.thetas.inner[-1]
    found = {"of one entry too many": np.append(default.ravel(), default.ravel()[:1])}
    for name, bounds, sign in (("below", space.low, -1), ("above", space.high, 1)):
        entry = np.flatnonzero(np.isfinite(bounds))
        if len(entry):
            theta = default.copy()
            bound = float(bounds.flat[entry[0]])
            theta.flat[entry[0]] = bound + sign * max(1.0, abs(bound))
            found[f"{name} the bounds in entry {entry[0]}"] = theta
    found["with a NaN"] = default.copy()
    found["with a NaN"].flat[0] = np.nan
    return found


def refused(subject: Subject) -> Iterator[Finding]:
    """θ outside the space or of another shape raises a ValueError."""
    for name, theta in bad_thetas(subject).items():
        for call in ("configure(θ)", 'reset(options={"theta": θ})'):
            subject.inside.configure(subject.thetas.default)
            try:
                _give(subject, call, theta)
            except REFUSALS:
                continue
            except Exception as error:
                found = f"it raises {type(error).__name__}: {error}"
            else:
                found = "it is accepted"
            yield Finding(
                f"`{call}` with a θ {name}, {short(theta)}",
                found,
                "raise a ValueError before anything changes, as `problem.check_theta(θ)` does",
            )
            break
    subject.inside.configure(subject.thetas.default)


def _give(subject: Subject, call: str, theta: np.ndarray) -> None:
    if call.startswith("configure"):
        subject.inside.configure(theta)
    else:
        subject.env.reset(seed=subject.seed, options={"theta": theta})


def kept(subject: Subject) -> Iterator[Finding]:
    """A θ that is refused leaves the old one in force."""
    theta = subject.thetas.inner[0]
    for name, bad in bad_thetas(subject).items():
        for call in ("configure(θ)", 'reset(options={"theta": θ})'):
            subject.inside.configure(theta)
            before = subject.episode(steps=FEW)
            with suppress(*REFUSALS):
                _give(subject, call, bad)
            looked = f"θ after `{call}` refused one {name}"
            change = "check θ first and set it last, so that what fails leaves everything as it was"
            if subject.tells_theta and not same(np.asarray(subject.inside.theta), theta):
                yield Finding(looked, f"`theta` is {short(subject.inside.theta)}, before it was {short(theta)}", change)
                return
            after = subject.episode(steps=FEW)
            if not same(before, after):
                yield Finding(looked, f"the same episode differs: {first_difference(before, after)}", change)
                return


def sticky(subject: Subject) -> Iterator[Finding]:
    """θ stays in force from reset to reset."""
    theta = subject.thetas.inner[0]
    subject.inside.configure(theta)
    looked = "two episodes of one seed after `configure(θ)`, and `theta` after each `reset`"
    change = "keep θ until `configure` changes it; `reset` without options must leave it alone"
    one = subject.episode()
    if subject.tells_theta and not same(np.asarray(subject.inside.theta, float), theta):
        yield Finding(looked, f"`theta` is {short(subject.inside.theta)} where {short(theta)} was configured", change)
        return
    two = subject.episode()
    if not same(one, two):
        yield Finding(looked, first_difference(one, two), change)


def agreed(subject: Subject) -> Iterator[Finding]:
    """`reset(options={"theta": θ})` does what `configure(θ)` and `reset()` do."""
    first, theta = subject.thetas.default, subject.thetas.inner[0]
    subject.inside.configure(theta)
    told = subject.episode()
    subject.inside.configure(first)
    by_options = subject.episode(theta=theta)
    looked = 'an episode after `reset(options={"theta": θ})` and one of the same seed after `configure(θ)`'
    change = 'call `self.configure(options["theta"])` at the beginning of `reset`, before the first state is drawn'
    if subject.tells_theta and not same(np.asarray(subject.inside.theta, float), theta):
        yield Finding(looked, f"`theta` is {short(subject.inside.theta)} where the options say {short(theta)}", change)
    elif not same(told, by_options):
        yield Finding(looked, first_difference(told, by_options), change)
    elif not same(subject.episode(), by_options):
        yield Finding(looked, "what the options set is lost at the next `reset`", change)


def owned(subject: Subject) -> Iterator[Finding]:
    """What a caller does to the array that it gave does not change θ."""
    theta = subject.thetas.inner[0]
    given = theta.copy()
    subject.inside.configure(given)
    before = subject.episode()
    given[...] = subject.thetas.default
    looked = "θ after the array given to `configure` was changed by the caller"
    change = "keep a copy, `np.array(theta, dtype=float)`"
    if subject.tells_theta and not same(np.asarray(subject.inside.theta, float), theta):
        yield Finding(looked, f"`theta` is {short(subject.inside.theta)}, configured was {short(theta)}", change)
        return
    after = subject.episode()
    if not same(before, after):
        yield Finding(looked, f"the same episode differs: {first_difference(before, after)}", change)


def matters(subject: Subject) -> Iterator[Finding]:
    """Some θ changes rewards or dynamics."""
    thetas = [subject.thetas.default, *subject.thetas.inner]
    if len({theta.tobytes() for theta in thetas}) < 2:
        raise Skipped("only one θ is known")
    episodes = []
    for theta in thetas:
        subject.inside.configure(theta)
        episodes.append([subject.episode(seed) for seed in range(3)])
    if any(not same(episodes[0], other) for other in episodes[1:]):
        return
    points = points_of(subject)
    tables = [law_of(subject.model(theta)).quantities(points) for theta in thetas]
    if any(not bool(np.array_equal(a[name], b[name])) for a in tables for b in tables for name in a):
        return  # where these episodes did not come
    steps = sum(len(told) - 1 for told in episodes[0])
    yield Finding(
        f"{steps} steps, and model(θ), at {len(thetas)} values of θ, of the same seeds and actions",
        "they are the same to the last digit",
        "let θ enter the rewards, the transitions or the start: without that there is nothing to lead",
    )
