"""The two-player forms of a game: PettingZoo's tests, and both forms against each other and against the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from copy import deepcopy
from importlib import import_module
from io import StringIO
from typing import cast

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from bilevel_envs.games.game import Game, Play
from bilevel_envs.games.pairs import Action
from bilevel_envs.games.pettingzoo_env import FOLLOWER, LEADER, GameEnv, ParallelGameEnv
from bilevel_envs.leader_env import LeaderEnv
from bilevel_envs.testing.laws import Points, law_of
from bilevel_envs.testing.report import Absent, Finding, Skipped
from bilevel_envs.testing.subject import Steps, Subject, drawn, same, short

CYCLES = 50  # of PettingZoo's tests
STEPS = 60  # in which both forms are compared


def _game(subject: Subject) -> Game:
    if subject.game is None:
        raise Absent("it is no game of two players")
    return subject.game


def _tested(name: str, given: object) -> Iterator[Finding]:
    """What a test of PettingZoo's says; it prints where it passes."""
    tests = import_module("pettingzoo.test")  # which imports games of PettingZoo's, and warns
    try:
        with redirect_stdout(StringIO()):
            getattr(tests, name)(given, num_cycles=CYCLES)
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        found = str(error) or type(error).__name__
        yield Finding(f"pettingzoo.test.{name}", found, "see PettingZoo's page on testing environments")


def turns(subject: Subject) -> Iterator[Finding]:
    """PettingZoo's `api_test` and `seed_test` of `GameEnv(game)`."""
    game = _game(subject)
    yield from _tested("api_test", GameEnv(game))
    yield from _tested("seed_test", lambda: GameEnv(game))


def together(subject: Subject) -> Iterator[Finding]:
    """PettingZoo's `parallel_api_test` and `parallel_seed_test` of `ParallelGameEnv(game)`."""
    game = _game(subject)
    yield from _tested("parallel_api_test", ParallelGameEnv(game))
    yield from _tested("parallel_seed_test", lambda: ParallelGameEnv(game))


def agree(subject: Subject) -> Iterator[Finding]:
    """Both forms play the same game from the same seed with the same moves."""
    game, seed = _game(subject), subject.seed
    leader, follower = (drawn(space, STEPS, seed) for space in (game.leader_actions, game.follower_actions))
    by_turns, at_once = GameEnv(game), ParallelGameEnv(game)
    by_turns.reset(seed=seed)
    at_once.reset(seed=seed)
    for step, (a, b) in enumerate(zip(leader, follower, strict=True)):
        by_turns.step(a)
        by_turns.step(b)
        _, rewards, over, cut, _ = at_once.step({LEADER: a, FOLLOWER: b})
        one = (by_turns.state(), by_turns.rewards, by_turns.terminations[LEADER], by_turns.truncations[LEADER])
        two = (at_once.state(), rewards, over[LEADER], cut[LEADER])
        if not same(one, two):
            yield Finding(
                "a play of the same seed and moves in the AEC and in the Parallel form",
                f"after step {step} state, rewards, terminated and truncated are {short(one)} and {short(two)}",
                "keep nothing in the game between moves: `advance` and `ends_after` are functions of their arguments "
                "and `rng`",
            )
            return
        if one[2] or one[3]:
            return


def model(subject: Subject) -> Iterator[Finding]:
    """`advance` pays, leads and ends as `model(θ)` of the follower's side does."""
    game = _game(subject)
    if not game.sees_leader:
        raise Skipped("the follower does not see the leader's draw, so that its model is a mean")
    law = law_of(subject.stepped(subject.thetas.default))
    steps = _moves_of(game, min(subject.count, 2_000), subject.seed)
    finite = isinstance(game.game_states, gym.spaces.Discrete)
    part = int(gym.spaces.flatdim(game.leader_actions)) if finite else gym.spaces.flatdim(game.game_states)
    points = Points(steps, np.array, part)
    looks = [law.rewards, law.moves, law.ends]
    for look in looks:
        for finding in look(points):
            yield Finding(
                f"moves of `advance` in the two-player form: {finding.looked_at}",
                finding.found,
                "let `advance`, `ends_after` and `model(θ)` describe one game",
            )


def _moves_of(game: Game, count: int, seed: int) -> Steps:
    """Random moves, with pairs (s, a) as the follower's policy takes them and the states that follow."""
    rng = np.random.default_rng(seed)
    leader, follower = drawn(game.leader_actions, count, seed), drawn(game.follower_actions, count, seed + 1)
    rows, play = [], Play(game, game.horizon, rng)
    for a, b in zip(cast(list[Action], leader), cast(list[Action], follower), strict=True):
        before = deepcopy(play.state)
        r_leader, r_follower, over, cut = play.move(a, b)
        rows.append((game.policy_state(before, a), b, deepcopy(play.state), r_follower, r_leader, over, cut, play.step))
        if over or cut:
            play = Play(game, game.horizon, rng)
    seen, did, arrived, *numbers = (list(column) for column in zip(*rows, strict=True))
    reward, paid, terminated, truncated, step = map(np.array, numbers)
    return Steps(seen, did, arrived, reward, paid, terminated, truncated, step - 1, seen[:1], [{}] * count)


def leader_side(subject: Subject) -> Iterator[Finding]:
    """Gymnasium's `check_env` of `LeaderEnv(game)`, where the game has an exact follower."""
    game = _game(subject)
    if game.default_follower() is None:
        raise Skipped("it has no exact follower that answers by itself")
    try:
        check_env(LeaderEnv(game), skip_render_check=True)
    except (AssertionError, gym.error.Error, TypeError, ValueError) as error:
        yield Finding(
            "gymnasium.utils.env_checker.check_env of LeaderEnv(game)",
            str(error),
            "see Gymnasium's page on custom environments",
        )
