"""Checks a follower: whether what it answers is a policy, and follows θ."""

from __future__ import annotations

import io
from collections.abc import Iterator
from copy import deepcopy
from functools import cached_property
from typing import cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import lacking
from bilevel_envs.core.follower import (
    BestResponse,
    Follower,
    FollowerError,
    LearningFollower,
    Policy,
    StatefulFollower,
    UnsupportedModelError,
    action_shape_of,
    saves,
)
from bilevel_envs.core.noise import Noise
from bilevel_envs.testing.report import Absent, Check, Finding, Report, Result, Skipped, finish, results_of
from bilevel_envs.testing.statistics import SHARE, binomial, chi_square, two_sided
from bilevel_envs.testing.subject import Subject, first_difference, same, short
from bilevel_envs.wrapper import BilevelWrapper

ROWS, STEPS = 4, 25  # of the trajectories whose states are looked at
STATES = 5  # of them, at which many actions are drawn
ACTIONS = 2_000  # drawn at each
PROPOSED = 20_000  # drawn at each from a wider law, to integrate densities
WIDER = 1.5  # its standard deviations in those of the policy
EDGE = 1 - 1e-9  # of tanh
CROWDED = 1 - 1e-4  # of the way to a bound: closer than that, floats cannot tell a density
REPEATS = 1e-6  # by which log-probabilities of equal policies may differ


class Pair:
    """A follower under test, in an environment.

    Args:
      follower: as given, never asked itself: each `fresh` one is a copy.
      subject: the environment.
    """

    def __init__(self, follower: Follower | LearningFollower | str, subject: Subject) -> None:
        self.subject = subject
        held = BilevelWrapper(subject.env, follower)
        self.name, self._given = type(held.follower).__name__, held.follower
        thetas = [theta for theta in subject.thetas.inner if not same(theta, subject.thetas.default)]
        self.one, self.two = subject.thetas.default, (thetas or [subject.thetas.default])[0]

    def fresh(self) -> BilevelWrapper:
        """The environment with an untouched copy of the follower."""
        return BilevelWrapper(self.subject.env, self._copied())

    def _copied(self) -> Follower | LearningFollower:
        """A copy of the follower; an environment that it holds stays the same one."""
        envs: list[gym.Env] = [self.subject.env]
        while isinstance(envs[-1], gym.Wrapper):
            envs.append(envs[-1].env)
        return deepcopy(self._given, {id(env): env for env in envs})

    @cached_property
    def answered(self) -> tuple[BestResponse, BestResponse]:
        """The responses at two θ, one after the other."""
        return self.responses(self.fresh())

    def responses(self, held: BilevelWrapper) -> tuple[BestResponse, BestResponse]:
        """The responses of another one."""
        first = held.best_response(self.one)
        return first, held.best_response(self.two, first)

    @cached_property
    def visited(self) -> tuple[Tensor, Tensor]:
        """States [1, K, ...] and actions [1, K, ...] of trajectories of the first response."""
        noise = Noise([self.subject.seed])
        batch = self.fresh().rollout(self.one, self.answered[0], noise, rows=ROWS, horizon=STEPS)
        state, action = (x.reshape(1, -1, *x.shape[3:]) for x in (batch.state, batch.action))
        return state, action

    def log_probs(self, best: BestResponse) -> np.ndarray:
        """log g of the visited actions at the visited states, [K]."""
        with torch.no_grad():
            return best.policy.log_prob(*self.visited)[0].numpy()


def answers(pair: Pair) -> Iterator[Finding]:
    """It answers, with a response that fits the world."""
    try:
        responses = pair.answered
    except UnsupportedModelError as error:
        yield Finding("its response at two θ", str(error), "give it a world of a kind that it answers in")
        return
    except FollowerError as error:
        yield Finding(
            "its response at two θ", str(error), "return a BestResponse whose tables are of the world's size and finite"
        )
        return
    for best in responses:
        if best.residual.isfinite().all() and bool((best.residual < 0).any()):
            yield Finding("the residual of its response", short(best.residual.numpy()), "give a residual of 0 or more")
            return
    try:
        _ = pair.visited
    except (AttributeError, TypeError, ValueError, FollowerError) as error:
        yield Finding(
            "trajectories of its response",
            f"{type(error).__name__}: {error}",
            "answer with a BoltzmannPolicy in a table, with a GaussianPolicy in a linear-quadratic world, and "
            "elsewhere with what has `sample` and `log_prob`",
        )


def spread(pair: Pair) -> Iterator[tuple[Policy, Tensor, str]]:
    """Policies, and some visited states, [1, K, ...]."""
    best = pair.answered[0]
    states = pair.visited[0]
    chosen = torch.linspace(0, states.shape[1] - 1, STATES).long()
    yield best.policy, states[:, chosen], "policy"
    if best.actual_policy is not None:
        yield best.actual_policy, states[:, chosen], "actual_policy"


def normalised(pair: Pair) -> Iterator[Finding]:
    """exp(log_prob) sums to 1 over the actions, or integrates to 1."""
    space = pair.subject.env.action_space
    for policy, states, name in spread(pair):
        for k in range(states.shape[1]):
            state = states[:, k : k + 1]
            if action_shape_of(policy):
                total, slack = _integral(policy, state, space)
            else:
                total, slack = float(np.exp(_log_probs_of_all(policy, state, pair)).sum()), 1e-6
            if not abs(total - 1) <= slack:
                yield Finding(
                    f"exp(log_prob(s, b)) of its {name} over all actions {short(space)}, at state "
                    f"{short(state[0, 0].numpy())}",
                    f"it comes to {total:.6g}",
                    "return log-probabilities of a distribution, such as `torch.log_softmax(q / beta, -1)`",
                )
                return


def _log_probs_of_all(policy: Policy, state: Tensor, pair: Pair) -> np.ndarray:
    """log g of every action at a state, [B]."""
    count = _actions_of(pair)
    every = torch.arange(count)[None]
    with torch.no_grad():
        return policy.log_prob(state.expand(1, count, *state.shape[2:]), every)[0].double().numpy()


def _actions_of(pair: Pair) -> int:
    """How many actions the model has, or the environment where the model does not tell."""
    model = pair.subject.model(pair.one)
    if not lacking(model, ["actions"]):
        return int(cast("_Counted", model).actions)
    return int(cast(gym.spaces.Discrete, pair.subject.env.action_space).n)


class _Counted:
    """A model with a number of actions."""

    actions: int


def _integral(policy: Policy, state: Tensor, space: gym.Space) -> tuple[float, float]:
    """The integral of g over actions that are vectors, by importance sampling, and how far it may be from 1."""
    drawn = _weighted(policy, state, space)
    if drawn is None:
        return 1.0, 0.0
    weights, _ = drawn
    return float(weights.mean()), 5 * float(weights.std()) / len(weights) ** 0.5 + 1e-3


def _weighted(policy: Policy, state: Tensor, space: gym.Space) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights g/q [N] and actions [N, m] of a law q that is wider than g; None where actions crowd at their bounds.

    q is normal, or the image of a normal law under tanh where all of the policy's actions are inside the space.
    """
    actions = _sampled(policy, state, ACTIONS, 0).double()
    box = cast(gym.spaces.Box, space)
    middle, half = (torch.from_numpy((box.high.astype(float) + sign * box.low) / 2) for sign in (1, -1))
    squashed = bool((half < np.inf).all()) and bool(((actions - middle).abs() <= half).all())
    if squashed and bool(((actions - middle).abs() > CROWDED * half).any()):
        return None
    raw = ((actions - middle) / half).atanh() if squashed else actions
    mean, deviation = raw.mean(0), WIDER * raw.std(0) + 1e-12
    normal = torch.from_numpy(np.random.default_rng(1).standard_normal((PROPOSED, len(mean))))
    proposed = mean + deviation * normal
    log_q = torch.distributions.Normal(mean, deviation).log_prob(proposed).sum(-1)
    if squashed:
        inside = proposed.tanh().clamp(-EDGE, EDGE)
        log_q = log_q - (half * (1 - inside**2)).log().sum(-1)
        proposed = middle + half * inside
    with torch.no_grad():
        log_g = policy.log_prob(state.expand(1, PROPOSED, *state.shape[2:]), proposed[None])[0].double()
    return (log_g - log_q).exp().numpy(), proposed.numpy()


def _sampled(policy: Policy, state: Tensor, count: int, seed: int) -> Tensor:
    """So many actions at a state, [count, ...]."""
    uniform = torch.from_numpy(np.random.default_rng(seed).random((1, count, *action_shape_of(policy))))
    with torch.no_grad():
        return policy.sample(state.expand(1, count, *state.shape[2:]), uniform)[0]


def sampled(pair: Pair) -> Iterator[Finding]:
    """Actions are drawn with the probabilities that log_prob tells."""
    for policy, states, name in spread(pair):
        test = _density_test if action_shape_of(policy) else _count_test
        for k in range(states.shape[1]):
            state = states[:, k : k + 1]
            fault = test(policy, state, pair, seed=k)
            if fault:
                yield Finding(
                    f"{ACTIONS} actions that its {name} samples at state {short(state[0, 0].numpy())}, against "
                    f"exp(log_prob) (level {SHARE:g})",
                    fault,
                    "let `sample(state, uniform)` invert the distribution of which `log_prob` is the logarithm",
                )
                return


def _count_test(policy: Policy, state: Tensor, pair: Pair, seed: int) -> str:
    """What is wrong with counts of actions; empty if nothing is."""
    p = np.exp(_log_probs_of_all(policy, state, pair))
    actions = _sampled(policy, state, ACTIONS, seed).numpy()
    odd = actions[(actions < 0) | (actions >= len(p))]
    if len(odd):
        return f"{len(odd)} are no actions of the world, such as {odd[0]}"
    counts = np.bincount(actions.astype(int), minlength=len(p))
    each = binomial(counts, np.full(len(p), ACTIONS), np.clip(p, 0, 1))
    possible = p > 0
    overall = chi_square([counts[possible]], [p[possible]])
    worst = int(each.argmin())
    if min(each[worst] * len(p), overall) * 2 * STATES > SHARE:
        return ""
    return (
        f"p-value {min(overall, float(each[worst])):.2g} (chi-square); action {worst} is drawn with a share of "
        f"{counts[worst] / ACTIONS:.4g}, and its probability is {p[worst]:.4g}"
    )


def _density_test(policy: Policy, state: Tensor, pair: Pair, seed: int) -> str:
    """Likewise, of the moments of actions that are vectors."""
    drawn = _sampled(policy, state, ACTIONS, seed).double().numpy()
    wider = _weighted(policy, state, pair.subject.env.action_space)
    if wider is None:
        return ""
    weights, proposed = wider[0] / wider[0].mean(), wider[1]
    for entry in range(drawn.shape[1]):
        middle = drawn[:, entry].mean()
        for power, word in ((1, "mean"), (2, "variance")):
            own, told = (drawn[:, entry] - middle) ** power, weights * (proposed[:, entry] - middle) ** power
            error = (own.var() / len(own) + told.var() / len(told)) ** 0.5
            off = own.mean() - told.mean()
            if two_sided(off / error) * 2 * drawn.shape[1] * STATES < SHARE:
                shift = middle if power == 1 else 0.0
                return (
                    f"the {word} of entry {entry} is {own.mean() + shift:.6g} among the draws and "
                    f"{told.mean() + shift:.6g} by log_prob"
                )
    return ""


def depends(pair: Pair) -> Iterator[Finding]:
    """The response changes with θ, where the follower's rewards or dynamics do."""
    if same(pair.one, pair.two):
        raise Skipped("only one θ is known")
    found = [pair.log_probs(pair.answered[0])]
    for theta in pair.subject.thetas.inner:  # each by an untouched copy, as one that learns goes on learning
        found.append(pair.log_probs(pair.fresh().best_response(theta)))
        if np.abs(found[0] - found[-1]).max() > REPEATS:
            return
    if not _world_changes(pair):
        raise Skipped("θ changes nothing that the follower sees or is paid")
    yield Finding(
        f"log-probabilities of {len(found[0])} visited actions in its responses at {len(found)} values of θ",
        "they are the same",
        "solve the model that is given, or learn in `task.copies(n, theta)`, at every call; keep no response of "
        "another θ; one that learns may need more steps",
    )


def _world_changes(pair: Pair) -> bool:
    """Whether θ changes what the follower sees or is paid in an episode."""
    told = []
    for theta in (pair.one, *pair.subject.thetas.inner):
        pair.subject.inside.configure(theta)
        told.append([one[:4] if isinstance(one, tuple) else one for one in pair.subject.episode(steps=200)])
    return any(not same(told[0], other) for other in told[1:])


def repeats(pair: Pair) -> Iterator[Finding]:
    """Two untouched copies answer alike."""
    other = pair.responses(pair.fresh())
    for which, (a, b) in enumerate(zip(pair.answered, other, strict=True)):
        off = float(np.abs(pair.log_probs(a) - pair.log_probs(b)).max())
        if off > REPEATS:
            yield Finding(
                f"log-probabilities in response {which + 1} of two untouched copies of it at the same θ",
                f"they differ by up to {off:.6g}",
                "draw from generators that are made of its own seed, and keep nothing outside of the object",
            )
            return


def resumes(pair: Pair) -> Iterator[Finding]:
    """What `state_dict` holds is enough to go on."""
    whole = pair.fresh()
    if not saves(whole.follower):
        raise Absent("it keeps nothing")
    first = whole.best_response(pair.one)
    file = io.BytesIO()
    torch.save(whole.follower.state_dict(), file)
    file.seek(0)
    again = pair.fresh()
    cast(StatefulFollower, again.follower).load_state_dict(torch.load(file, weights_only=True))
    one, two = (pair.log_probs(held.best_response(pair.two, first)) for held in (whole, again))
    off = float(np.abs(one - two).max())
    if off > REPEATS:
        yield Finding(
            "log-probabilities in the second response, and in that of a copy which `load_state_dict` gave the state "
            "after the first",
            f"they differ by up to {off:.6g}",
            "put all that the next response depends on into `state_dict`, counters and generators too",
        )


def leaves(pair: Pair) -> Iterator[Finding]:
    """Answering does not change θ of the environment."""
    subject = pair.subject
    subject.inside.configure(pair.one)
    before = subject.episode()
    held = pair.fresh()
    held.best_response(pair.two)
    looked = "the environment after a response at another θ"
    change = "learn in `task.copies(n, theta)` or plan in the model: the environment itself belongs to whoever made it"
    if subject.tells_theta and not same(np.asarray(subject.inside.theta, float), np.asarray(pair.one, float)):
        yield Finding(looked, f"`theta` is {short(subject.inside.theta)}, before it was {short(pair.one)}", change)
        return
    after = subject.episode()
    if not same(before, after):
        yield Finding(looked, first_difference(before, after), change)


ANSWERS = "follower: answers with a response"
NORMALISED = "follower: log-probabilities are normalised"
REPEATED = "follower: answers alike with the same seed"

CHECKS: tuple[Check[Pair], ...] = (
    Check(ANSWERS, answers),
    Check("follower: leaves θ alone", leaves, (ANSWERS,)),
    Check(NORMALISED, normalised, (ANSWERS,)),
    Check("follower: samples match log-probabilities", sampled, (ANSWERS, NORMALISED)),
    Check(REPEATED, repeats, (ANSWERS,)),
    Check("follower: responds to θ", depends, (ANSWERS, REPEATED)),
    Check("follower: resumes from its state", resumes, (ANSWERS, REPEATED)),
)


def follower_results(follower: Follower | LearningFollower | str, subject: Subject) -> tuple[Result, ...]:
    """What the checks of a follower give in an environment."""
    return results_of(CHECKS, Pair(follower, subject))


def check_follower(
    follower: Follower | LearningFollower | str, env: gym.Env, *, seed: int = 0, raises: bool = True
) -> Report:
    """Checks that a follower keeps the contract that leaders rely on, in an environment.

    A follower that learns does so about ten times, from copies of what was given: give it few steps.

    Args:
      follower: the follower, or its name.
      env: a configurable environment of a kind that it answers in.
      seed: of all that is drawn.
      raises: False to return a report with findings instead of raising.

    Returns:
      What was looked at, with what was found.

    Raises:
      ConformanceError: an `AssertionError` that lists all findings, unless `raises` is False.
      TypeError: if `follower` is none, or `env` is not configurable.
    """
    subject = Subject(env, seed)
    pair = Pair(follower, subject)
    with subject.borrowed():
        report = Report(f"{pair.name} in {subject.name}", results_of(CHECKS, pair))
    return finish(report, raises)
