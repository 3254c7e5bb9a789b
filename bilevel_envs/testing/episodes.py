"""Episodes by `reset` and `step`: spaces, rewards, seeds, shared objects, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from bilevel_envs.core.foreign import configurable
from bilevel_envs.testing.laws import law_of
from bilevel_envs.testing.model import points_of
from bilevel_envs.testing.report import Absent, Finding, Skipped
from bilevel_envs.testing.statistics import SHARE
from bilevel_envs.testing.subject import Subject, drawn, first_difference, played, same, short

LENGTH = 40  # steps of episodes that are compared for their seeds
SEEDS = 12  # episodes among which another seed should be another episode
VARIES = 10  # of as many without a seed differ where chance has a part
AT_THE_LIMIT = 3  # episodes that all end there tell of a limit


def run(subject: Subject) -> Iterator[Finding]:
    """`reset` and `step` return what Gymnasium's do."""
    told = subject.env.reset(seed=subject.seed)
    if len(told) != 2:
        yield Finding("what `reset` returns", short(told), "return (observation, info)")
        return
    for action in subject.actions(20):
        step = subject.env.step(action)
        if len(step) != 5:
            yield Finding(
                "what `step` returns", short(step), "return (observation, reward, terminated, truncated, info)"
            )
            return
        if step[2] or step[3]:
            subject.env.reset()


def spaces(subject: Subject) -> Iterator[Finding]:
    """Observations are members of their space."""
    space, steps = subject.env.observation_space, subject.sample
    for observation in (*steps.first, *steps.following):
        if not space.contains(observation):
            kind = _dtype(observation)
            yield Finding(
                f"{len(steps.first) + len(steps.following)} observations against {short(space)}",
                f"{short(observation)}{kind} is no member",
                "widen `observation_space`, or return observations of its shape, dtype and bounds",
            )
            return


def _dtype(observation: object) -> str:
    """The dtype of an observation, in brackets."""
    return f" ({np.asarray(observation).dtype})"


def finite(subject: Subject) -> Iterator[Finding]:
    """Both rewards are there, and finite."""
    steps = subject.sample
    if "leader_reward" not in steps.infos[0]:
        yield Finding(
            f"`info` of {len(steps.step)} steps",
            f'it has no "leader_reward"; its keys are {sorted(steps.infos[0])}',
            'put r_L of the step into info["leader_reward"] at every step',
        )
        return
    for name, paid in (("the reward", steps.reward), ('info["leader_reward"]', steps.leader_reward)):
        bad = np.flatnonzero(~np.isfinite(paid))
        if len(bad):
            yield Finding(
                f"{name} of {len(paid)} steps",
                f"{len(bad)} are not finite; step {steps.step[bad[0]]} of an episode, action "
                f"{short(steps.action[bad[0]])} at {short(steps.observation[bad[0]])}, paid {paid[bad[0]]}",
                "pay a finite number at every step; end the episode before numbers overflow",
            )


def repeated(subject: Subject) -> Iterator[Finding]:
    """The same seed brings the same episode."""
    for seed in range(subject.seed, subject.seed + 3):
        one, two = (subject.episode(seed, steps=2 * LENGTH) for _ in range(2))
        if not same(one, two):
            yield Finding(
                f"two episodes of the same actions, both after `reset(seed={seed})`",
                first_difference(one, two),
                "draw from `self.np_random` alone, after `super().reset(seed=seed)`; begin anew what an episode keeps",
            )
            return


def varied(subject: Subject) -> Iterator[Finding]:
    """Another seed brings another episode, where chance has a part."""
    subject.inside.configure(subject.thetas.inner[0])
    episodes = [subject.episode(subject.seed + k, steps=LENGTH) for k in range(SEEDS)]
    if any(not same(episodes[0], other) for other in episodes[1:]):
        return
    actions = subject.actions(LENGTH)
    free = [played(subject.env, actions, None) for _ in range(SEEDS)]
    differ = sum(not same(episodes[0], other) for other in free)
    chance = _chance_of_repeating(subject)
    if differ < VARIES and (chance is None or chance ** (SEEDS - 1) > SHARE):
        raise Skipped("no chance has a part in its episodes, as far as can be seen")
    expected = f"{differ} of {SEEDS} without a seed differ from them"
    if chance is not None:
        expected += f"; by the model, two are the same with probability {chance:.2g}"
    yield Finding(
        f"episodes of the same actions after `reset` with {SEEDS} seeds",
        f"all of them are the same; {expected}",
        "seed what draws with the seed that `reset` is given, `super().reset(seed=seed)` and `self.np_random`",
    )


def _chance_of_repeating(subject: Subject) -> float | None:
    """Of the first sampled episode; None where the model does not tell."""
    steps = subject.sample
    length = next((k for k in range(1, len(steps.step)) if steps.step[k] == 0), len(steps.step))
    try:
        points = points_of(subject)
        law = law_of(subject.stepped(subject.thetas.inner[0]))
    except (Skipped, ValueError):
        return None
    for name in ("state", "action", "following", "terminated"):
        setattr(points, name, getattr(points, name)[: min(length, LENGTH)])
    return law.chance_of_repeating(points)


def shared_observations(subject: Subject) -> Iterator[Finding]:
    """What was observed stays as it was."""
    observation, _ = subject.env.reset(seed=subject.seed)
    kept, copies = [observation], [deepcopy(observation)]
    for action in subject.actions(30):
        observation, _, terminated, truncated, _ = subject.env.step(deepcopy(action))
        kept.append(observation)
        copies.append(deepcopy(observation))
        if terminated or truncated:
            kept.append(subject.env.reset()[0])
            copies.append(deepcopy(kept[-1]))
    wrong = [k for k, (one, copy) in enumerate(zip(kept, copies, strict=True)) if not same(one, copy)]
    if wrong:
        yield Finding(
            f"{len(kept)} observations, each once more after the last step",
            f"{len(wrong)} have changed, the first from {short(copies[wrong[0]])} to {short(kept[wrong[0]])}",
            "return a new array from every call, such as `self._state.copy()`",
        )


def shared_actions(subject: Subject) -> Iterator[Finding]:
    """What was done is not written into."""
    actions = [action for action in subject.actions(30) if np.asarray(action).ndim]
    if not actions:
        raise Absent("actions are numbers")
    subject.env.reset(seed=subject.seed)
    for action in actions:
        given = deepcopy(action)
        _, _, terminated, truncated, _ = subject.env.step(given)
        if not same(given, action):
            yield Finding(
                "the array that was given to `step`, afterwards",
                f"it is {short(given)}, given was {short(action)}",
                "work on a copy, `action = np.array(action)`: whoever acts may keep its array",
            )
            return
        if terminated or truncated:
            subject.env.reset()


def independent(subject: Subject) -> Iterator[Finding]:
    """Another copy, stepped in between at another θ, changes nothing."""
    other, (one, two) = subject.another(), (subject.thetas.inner[0], subject.thetas.inner[-1])
    subject.inside.configure(one)
    alone = subject.episode(steps=30)
    actions = subject.actions(30)
    observation, _ = subject.env.reset(seed=subject.seed)
    beside: list[object] = [deepcopy(observation)]
    configurable(other.unwrapped).configure(subject.thetas.default if same(one, two) else two)
    ended = True
    for action, otherwise in zip(actions, drawn(other.action_space, 30, subject.seed + 1), strict=True):
        if ended:
            other.reset(seed=subject.seed + 1)
        _, _, *ends, _ = other.step(otherwise)
        ended = any(ends)
        observation, reward, terminated, truncated, info = subject.env.step(deepcopy(action))
        beside.append((deepcopy(observation), reward, terminated, truncated, info.get("leader_reward")))
        if terminated or truncated:
            break
    changed = subject.tells_theta and not same(np.asarray(subject.inside.theta, float), one)
    if changed or not same(alone, beside):
        yield Finding(
            "an episode, and the same one while another copy of the environment was stepped at another θ",
            f"θ is {short(subject.inside.theta)}, not {short(one)}" if changed else first_difference(alone, beside),
            "keep θ, states and generators on the instance (`self.`), not on the class, in a module or in the default "
            "of an argument",
        )


def ends(subject: Subject) -> Iterator[Finding]:
    """A time limit truncates; what terminates is an end of the model's."""
    steps, limit = subject.sample, subject.limit
    declared = "no time limit" if limit is None else f"a time limit of {limit} steps"
    if limit is not None:
        late = np.flatnonzero((steps.step + 1 >= limit) & ~steps.truncated & ~steps.terminated)
        at = steps.terminated & (steps.step + 1 == limit)
        whole = (steps.step + 1 == limit).sum()
        if len(late):
            yield Finding(
                f"`truncated` at step {limit - 1}, with {declared} declared",
                f"{len(late)} episodes went on",
                "truncate there, or declare no limit: `max_episode_steps` of `gymnasium.register` does it for you",
            )
        if whole >= AT_THE_LIMIT and at.sum() == whole:
            yield Finding(
                f"how {whole} episodes end that take {limit} steps, with {declared} declared",
                f"all of them set `terminated` at step {limit - 1}",
                "set `terminated` only where nothing follows, whatever the clock says, and leave the limit to "
                "`max_episode_steps`, which sets `truncated`: what follows a limit still counts for values",
            )
            return
    if subject.inside.step_limit is None and not _cuts_itself(subject):
        early = np.flatnonzero(steps.truncated & (steps.step + 1 < (limit or np.inf)))
        if len(early):
            yield Finding(
                f"`truncated` of {len(steps.step)} steps, with {declared} declared",
                f"{len(early)} episodes were cut earlier, the first after {steps.step[early[0]] + 1} steps",
                "declare the limit as `max_episode_steps` when registering the id: leaders draw from models and "
                "copies, which heed that one alone",
            )
    yield from law_of(subject.stepped(subject.thetas.inner[0])).ends(points_of(subject))


def _cuts_itself(subject: Subject) -> bool:
    """Whether episodes are drawn by steps alone, so that the environment may cut them as it likes."""
    return subject.stepped(subject.thetas.inner[0]).kind == "declared"


def gymnasium(subject: Subject) -> Iterator[Finding]:
    """Gymnasium's own `check_env`."""
    inner = subject.another().unwrapped
    try:
        check_env(inner, skip_render_check=True)
    except (AssertionError, gym.error.Error, TypeError, ValueError) as error:
        yield Finding(
            "gymnasium.utils.env_checker.check_env", str(error), "see Gymnasium's page on custom environments"
        )
