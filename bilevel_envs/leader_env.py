"""The leader's side of a game as a Gymnasium environment, whose follower responds by itself."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike
from pettingzoo import AECEnv, ParallelEnv

from bilevel_envs.core.checks import check_instance
from bilevel_envs.core.env_base import Face, as_theta, check_options
from bilevel_envs.core.follower import (
    BestResponse,
    Follower,
    LearningFollower,
    action_shape_of,
    capabilities_of,
    check_given,
)
from bilevel_envs.core.mdp import Numbers
from bilevel_envs.core.transparent import check_transparent
from bilevel_envs.games.game import Game, Play, as_move, check_picture
from bilevel_envs.games.pairs import Action, State
from bilevel_envs.games.pettingzoo_env import TwoPlayerForm
from bilevel_envs.worlds.responses import check_response
from bilevel_envs.wrapper import BilevelWrapper


class LeaderEnv(gym.Env):
    """A game in which the follower answers by itself: `step(leader_action)` lets it reply, and pays the leader.

    Its reply is to the policy last set by `configure`, not to the one that in truth acts: whoever trains a leader here
    must `configure` again when the policy has changed, and solves the follower's problem each time.

    Args:
      game: a game with two players, or an environment made of it, see `game_of`; for a follower that learns, the
        follower's side in Gymnasium.
      follower: who answers; None for the game's exact follower, where it has one.
      theta: the leader's policy that the follower knows, see `configure`; the game's default if None.
      render_mode: "rgb_array" or None; the given environment's own if None.

    Raises:
      TypeError: if `game` is none, or has a wrapper that may change rewards, actions or observations.
      ValueError: if no follower is given and the game has no exact one.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        game: Game | gym.Env | AECEnv | ParallelEnv,
        follower: Follower | LearningFollower | None = None,
        theta: ArrayLike | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_instance(game, "game")
        check_transparent(game)
        self.game = game_of(game)
        if render_mode is None and not isinstance(game, Game):
            render_mode = game.unwrapped.render_mode  # a wrapper may make a list of its pictures
        check_picture(self.game, render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        wrapped = game.follower if isinstance(game, BilevelWrapper) else None
        if wrapped is not None and follower is not None and follower is not wrapped:
            raise ValueError("`follower` must be None, or the one inside the BilevelWrapper that was given")
        if follower is None:
            follower = self.game.default_follower() if wrapped is None else wrapped
        if isinstance(follower, (str, type)):
            raise TypeError(f"`follower` must be a follower, not its name or class, got {follower!r}")
        check_given(follower, type(self.game).__name__)
        assert follower is not None
        self.follower = follower
        self._chair = _chair(game, self.follower) if capabilities_of(follower).learns else None
        self.observation_space, self.action_space = map(deepcopy, (self.game.game_states, self.game.leader_actions))
        self._play: Play | None = None
        self._over = True
        self._best: BestResponse | None = None
        self.configure(self.game.default_theta if theta is None else theta)

    @property
    def best(self) -> BestResponse:
        """The follower's response in force."""
        assert self._best is not None
        return self._best

    def configure(self, theta: ArrayLike) -> None:
        """Tells the follower the leader's policy θ, ``[*θ.shape]``, and lets it solve its problem anew.

        Raises:
          ValueError: if θ has the wrong shape or lies outside the game's `theta_space`; all then stays as it was.
          FollowerError: if what the follower answers is no response to the game; likewise.
        """
        array = as_theta(self.game, theta, with_runs=False)
        if self._chair is not None:
            self._best = self._chair.best_response(array, self._best)
        else:
            model = self.game.model(torch.from_numpy(array)[None])
            planner = cast(Follower, self.follower)  # one that learns has an environment to do so
            best = planner.best_response(model, self.game.preferences, self._best)
            check_response(best, 1, model)
            self._best = best
        self.theta = array

    def reset(self, *, seed: int | None = None, options: Mapping[str, Numbers] | None = None) -> tuple[State, dict]:
        """Starts an episode; `options={"theta": θ}` configures first."""
        super().reset(seed=seed)
        check_options(options)
        if options and "theta" in options:
            self.configure(options["theta"])
        self._play, self._over = Play(self.game, self.game.horizon, self.np_random), False
        return self._play.state, {}

    def step(self, action: object) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """The leader moves, the follower answers; `info` tells its action and its reward."""
        play = self._play
        if play is None or self._over:
            raise gym.error.ResetNeeded("call `reset` before `step`; the last episode is over or none has begun")
        action = self._checked(action)
        seen = self.game.policy_state(play.state, action)
        acting = self.best.behavior_policy
        uniform = torch.from_numpy(self.np_random.random((1, *action_shape_of(acting))))
        answer = acting.sample(torch.as_tensor(seen)[None], uniform)[0].numpy()
        r_leader, r_follower, terminated, truncated = play.move(action, answer)
        self._over = terminated or truncated
        info = {"follower_action": answer, "follower_reward": r_follower, "step": play.step - 1}
        return play.state, r_leader, terminated, truncated, info

    def _checked(self, action: object) -> Action:
        """The action as an int or an array, whatever its dtype; refuses what lies outside the space."""
        move = as_move(self.action_space, action)
        if move is None or (isinstance(move, np.ndarray) and not self._within(move)):
            raise ValueError(f"`action` must lie in {self.action_space}, got {action!r}")
        return move

    def _within(self, move: np.ndarray) -> bool:
        return self.action_space.contains(move.astype(self.action_space.dtype))

    def render(self) -> np.ndarray | None:
        """The present state as a picture."""
        if self.render_mode is None:
            gym.logger.warn('no picture: make the LeaderEnv with render_mode="rgb_array"')
            return None
        if self._play is None:
            raise gym.error.ResetNeeded("call `reset` before `render`")
        return self._play.picture()


def _chair(game: object, follower: Follower | LearningFollower) -> BilevelWrapper:
    """The follower's environment, in which it learns."""
    if not isinstance(game, gym.Env):
        raise TypeError(
            "`game` must be the game's Gymnasium environment, gymnasium.make(...), for a follower that learns in it; "
            f"got {type(game).__name__}"
        )
    return game if isinstance(game, BilevelWrapper) else BilevelWrapper(game, follower)


def game_of(source: object) -> Game:
    """The game behind what was given.

    Args:
      source: a `Game`; one of its PettingZoo forms; its Gymnasium environment, of the follower's or the leader's side.
        Environments may have wrappers around them, a `BilevelWrapper` among them.

    Raises:
      TypeError: if it is none of these.
    """
    inner = source.unwrapped if isinstance(source, (gym.Env, AECEnv, ParallelEnv)) else source
    if isinstance(inner, (TwoPlayerForm, LeaderEnv)):
        inner = inner.game
    elif isinstance(inner, Face):
        inner = inner.problem
    if not isinstance(inner, Game):
        raise TypeError(
            "`game` must be a game with two players, such as toy_markov_game_v0.env(), its Gymnasium environment, or "
            f"the game itself, a Game; got {type(source).__name__}"
        )
    return inner
