"""A `configure` that puts θ into a black box: it sets values of θ alone, `reset` leaves them, and steps read them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import gymnasium as gym
import numpy as np

from bilevel_envs.core.checks import lacking
from bilevel_envs.testing.laws import law_of
from bilevel_envs.testing.model import few_points_of
from bilevel_envs.testing.report import Absent, Finding, Skipped
from bilevel_envs.testing.subject import Subject, first_difference, played, same, short
from bilevel_envs.worlds.declared.inside import Inside
from bilevel_envs.worlds.declared.problem import RewardProblem
from bilevel_envs.worlds.declared.rewards import BlackBoxEnv
from bilevel_envs.worlds.declared.spaces import Actions

STEPS = 100  # of an episode
EPISODES = 3  # at each θ, of different seeds
MOST_ENTRIES = 20  # of θ that are moved alone
NOISY = "the environment does not repeat an episode of one seed, even without `configure`"


class _Copy(gym.Wrapper):
    """A copy of a black box, in which something is done before and after every reset."""

    def __init__(self, inside: Inside, name: str) -> None:
        super().__init__(inside.env)
        self._given = Actions(inside.env.action_space, name)
        self.set_theta = inside.set_theta
        self.before: Callable[[], None] = _nothing
        self.after: Callable[[], None] = _nothing

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """What the black box tells."""
        self.before()
        told = self.env.reset(seed=seed)
        self.after()
        return told

    def step(self, action: Any) -> Any:
        """Likewise, of an action by its number or vector."""
        return self.env.step(self._given.of(action))


def _nothing() -> None:
    """Done where nothing is to be set."""


class _Box:
    """A copy of the black box of a `ConfigurableDynamics`, as that was given it."""

    def __init__(self, copy: _Copy, subject: Subject) -> None:
        self._copy, self._subject = copy, subject

    def episodes(self, before: np.ndarray | None = None, after: np.ndarray | None = None) -> list[object]:
        """What episodes tell, θ being set before or after each reset, or not at all."""
        self._copy.before, self._copy.after = self._setting(before), self._setting(after)
        seeds = range(self._subject.seed, self._subject.seed + EPISODES)
        return [played(self._copy, self._subject.actions(STEPS, offset=seed), seed) for seed in seeds]

    def _setting(self, theta: np.ndarray | None) -> Callable[[], None]:
        return _nothing if theta is None else lambda: self._copy.set_theta(theta)


@contextmanager
def _box(subject: Subject) -> Iterator[_Box]:
    """A new copy of the black box, closed afterwards.

    Raises:
      Absent: where θ is in no black box.
      Skipped: where episodes cannot be compared.
    """
    if lacking(subject.problem, ["sets"]) or cast(RewardProblem, subject.problem).sets is None:
        raise Absent("θ is not set in a black box")
    copy = _Copy(cast(BlackBoxEnv, subject.env.unwrapped).another(), subject.name)
    try:
        box = _Box(copy, subject)
        if not same(box.episodes(), box.episodes()):
            raise Skipped(NOISY)
        yield box
    finally:
        copy.close()


def alike(subject: Subject) -> Iterator[Finding]:
    """The same θ makes the same world, however often it is set, and whatever was set before."""
    with _box(subject) as box:
        one, other = subject.thetas.inner[0], subject.thetas.default
        for theta, another in ((one, other), (other, one)):
            first = box.episodes(theta)
            again = box.episodes(theta)
            box.episodes(another)
            for told, what in ((again, "once more"), (box.episodes(theta), f"after θ = {short(another)}")):
                if not same(first, told):
                    yield Finding(
                        f"episodes of the same seeds and actions in one copy, `configure` setting θ = {short(theta)} "
                        f"before each reset, and {what}",
                        _parting(first, told),
                        "let `configure` set values that are made of θ alone, such as `env.unwrapped.g = 9.8 * "
                        "theta[0]`. It is called before every reset: what it scales or adds to (`*=`, `+=`) has the "
                        "θ of earlier calls in it",
                    )
                    return


def effective(subject: Subject) -> Iterator[Finding]:
    """θ moves the steps, and `reset` leaves what `configure` has set."""
    with _box(subject) as box:
        one, other = subject.thetas.default, subject.thetas.inner[0]
        if same(one, other):
            raise Skipped("only one θ is known")
        undone: list[int] = []
        idle: list[int] = []
        before = box.episodes(one)
        for entry, theta in _moved(one, other):
            if same(before, box.episodes(theta)):
                late = same(box.episodes(after=one), box.episodes(after=theta))
                (idle if late else undone).append(entry)
        if undone:
            yield Finding(
                f"{EPISODES} episodes at two values of {_named(undone)}, set before each reset, and set after it",
                "set before, both are the same to the last digit; set after, they differ: `reset` of the environment "
                "sets again what `configure` has set",
                "set in `configure` what `reset` reads, such as an argument that the constructor keeps, or change "
                "`reset` of the environment so that it leaves these values alone",
            )
        if cast(RewardProblem, subject.problem).moves_start:
            warnings.warn(
                'θ moves the first observation, too. Searches heed that; leaders with dynamics="learnt" leave it out',
                UserWarning,
                stacklevel=2,
            )
        if not undone and same(before, box.episodes(other)):
            yield Finding(
                f"{EPISODES} episodes of the same seeds and actions, `configure` setting θ = {short(one)} and then "
                f"θ = {short(other)} before each reset",
                "observations, rewards and ends are the same to the last digit: θ does not reach the steps",
                "set what `step` reads: attributes of `env.unwrapped` (a wrapper keeps those that are set on it for "
                "itself), spelt as the environment spells them, and all that it has computed from them; where θ is in "
                "the rewards alone, take ConfigurableRewards",
            )
        elif idle := [entry for entry in idle if not _rewarded(subject, entry)]:
            warnings.warn(
                f"{_named(idle)} changed neither steps nor rewards in {EPISODES} episodes of random actions: is the "
                "attribute spelt as the environment spells it, and what is computed from it set, too?",
                UserWarning,
                stacklevel=2,
            )


def _moved(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """θ with one entry moved from its value in `one` to that in `other`, beside the entry's number."""
    differ = np.flatnonzero(one != other)
    for entry in differ[:: max(1, -(-len(differ) // MOST_ENTRIES))]:
        theta = one.copy()
        theta.flat[entry] = other.flat[entry]
        yield int(entry), theta


def _rewarded(subject: Subject, entry: int) -> bool:
    """Whether an entry of θ changes r_F or r_L at the sampled steps."""
    theta = dict(_moved(subject.thetas.default, subject.thetas.inner[0]))[entry]
    points = few_points_of(subject)
    one, other = (law_of(subject.model(each)).quantities(points) for each in (subject.thetas.default, theta))
    return any(not bool(np.array_equal(one[name].detach(), other[name].detach())) for name in one)


def _parting(first: list[object], again: list[object]) -> str:
    """Where the first of the episodes that differ parts from the other."""
    pairs = zip(first, again, strict=True)
    return next(first_difference(a, b) for a, b in pairs if not same(a, b))  # type: ignore[arg-type]


def _named(entries: list[int]) -> str:
    """Entries of θ in words."""
    return " and ".join(f"θ[{entry}]" for entry in entries)
