"""The leader's chair in a game, for libraries that know nothing of followers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from bilevel_envs.core.checks import check_choice, check_instance
from bilevel_envs.core.env_base import as_theta, check_options, check_render_mode
from bilevel_envs.core.follower import BestResponse, Follower, LearningFollower, capabilities_of, check_given
from bilevel_envs.core.transparent import check_transparent
from bilevel_envs.worlds.responses import check_response
from bilevel_envs.wrapper import BilevelWrapper


class LeaderEnv(gym.Env):
    """A game in which the follower answers by itself: `step(leader_action)` lets it reply, and pays the leader.

    Its reply is to the policy last set by `configure`, not to the one that in truth acts: whoever trains a leader here
    must `configure` again when the policy has changed, and solves the follower's problem each time.

    Args:
      game: a game with two players, its Gymnasium environment, or one of its PettingZoo forms; for a follower that
        learns, the Gymnasium environment.
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
        game: Any,
        follower: Follower | LearningFollower | None = None,
        theta: Any = None,
        render_mode: str | None = None,
    ) -> None:
        check_instance(game, "game")
        check_transparent(game)
        self.game = _game_of(game)
        inner = getattr(game, "unwrapped", game)  # a wrapper may make a list of its pictures
        render_mode = getattr(inner, "render_mode", None) if render_mode is None else render_mode
        check_render_mode(render_mode, self.metadata["render_modes"], self.game)
        check_choice(getattr(self.game, "sees_leader", True), (True,), "game.sees_leader")
        self.render_mode = render_mode
        wrapped = game.follower if isinstance(game, BilevelWrapper) else None
        if wrapped is not None and follower is not None and follower is not wrapped:
            raise ValueError("`follower` must be None, or the one inside the BilevelWrapper that was given")
        if follower is None:
            follower = self.game.default_follower() if wrapped is None else wrapped
        if isinstance(follower, (str, type)):
            raise TypeError(f"`follower` must be a follower, not its name or class, got {follower!r}")
        check_given(follower, type(self.game).__name__)
        self.follower: Any = follower
        self._chair = _chair(game, follower) if capabilities_of(follower).learns else None
        self.observation_space, self.action_space = map(deepcopy, (self.game.game_states, self.game.leader_actions))
        self._state: Any = None
        self._over = True
        self._best: BestResponse | None = None
        self.configure(self.game.default_theta if theta is None else theta)

    @property
    def best(self) -> BestResponse:
        """The follower's response in force."""
        assert self._best is not None
        return self._best

    def configure(self, theta: Any) -> None:
        """Tells the follower the leader's policy θ, ``[*θ.shape]``, and lets it solve its problem anew.

        Raises:
          ValueError: if θ has the wrong shape or lies outside the game's `theta_space`; all then stays as it was.
          FollowerError: if what the follower answers is no response to the game; likewise.
        """
        array = as_theta(self.game, theta)
        if array.shape != self.game.theta_space.shape:
            raise ValueError(f"`theta` must have shape {list(self.game.theta_space.shape)}, got {list(array.shape)}")
        if self._chair is not None:
            self._best = self._chair.best_response(array, self._best)
        else:
            model = self.game.model(torch.from_numpy(array)[None])
            best = self.follower.best_response(model, self.game.preferences, self._best)
            check_response(best, 1, model)
            self._best = best
        self.theta = array

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts an episode; `options={"theta": θ}` configures first."""
        super().reset(seed=seed)
        check_options(options)
        if options and "theta" in options:
            self.configure(options["theta"])
        self._state, self._path = self.game.first_state(self.np_random), []  # type: ignore[var-annotated]
        self._step, self._over = 0, False
        return self._state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The leader moves, the follower answers; `info` tells its action and its reward."""
        if self._over:
            raise gym.error.ResetNeeded("call `reset` before `step`; the last episode is over or none has begun")
        action = self._checked(action)
        seen = self.game.policy_state(self._state, action)
        acting = self.best.behavior_policy
        uniform = torch.from_numpy(self.np_random.random((1, *getattr(acting, "action_shape", ()))))
        answer = acting.sample(torch.as_tensor(seen)[None], uniform)[0].numpy()
        following, r_leader, r_follower = self.game.advance(self._state, action, answer)
        self._path.append((self._state, action, answer))
        self._state, self._step = following, self._step + 1
        terminated, truncated = bool(self.game.ends(following)), self._step >= self.game.horizon
        self._over = terminated or truncated
        info = {"follower_action": answer, "follower_reward": r_follower, "step": self._step - 1}
        return following, r_leader, terminated, truncated, info

    def _checked(self, action: Any) -> Any:
        """The action as an int or an array, whatever its dtype; refuses what lies outside the space."""
        space, array = self.action_space, np.asarray(action)
        if isinstance(space, gym.spaces.Discrete):
            if array.dtype.kind in "iu" and array.size == 1 and 0 <= int(array.reshape(())) < space.n:
                return int(array.reshape(()))
        elif array.dtype.kind in "fiu" and space.contains(array.astype(space.dtype)):
            return array
        raise ValueError(f"`action` must lie in {space}, got {action!r}")

    def render(self) -> np.ndarray | None:
        """The present state as a picture."""
        if self.render_mode is None:
            gym.logger.warn('no picture: make the LeaderEnv with render_mode="rgb_array"')
            return None
        if self._state is None:
            raise gym.error.ResetNeeded("call `reset` before `render`")
        return self.game.draw_game(self._path, self._state)


def _chair(game: Any, follower: Any) -> BilevelWrapper:
    """The follower's environment, in which it learns."""
    if not isinstance(game, gym.Env):
        raise TypeError(
            "`game` must be the game's Gymnasium environment, gymnasium.make(...), for a follower that learns in it; "
            f"got {type(game).__name__}"
        )
    return game if isinstance(game, BilevelWrapper) else BilevelWrapper(game, follower)


def _game_of(game: Any) -> Any:
    """The problem behind whatever was given."""
    inner = getattr(game, "unwrapped", game)
    for name in ("game", "problem"):
        inner = getattr(inner, name, inner)
    if not hasattr(inner, "advance"):
        raise TypeError(
            "`game` must be a game with two players, such as toy_markov_game_v0.env(), its Gymnasium environment, or "
            f"the game itself, got {type(game).__name__}"
        )
    return inner
