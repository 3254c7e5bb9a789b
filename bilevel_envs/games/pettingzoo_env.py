"""A game as PettingZoo environments: agents take turns (AEC), or step together (Parallel)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.wrappers import OrderEnforcingWrapper

from bilevel_envs.core.checks import check_choice, check_count, check_instance, lacking
from bilevel_envs.core.env_base import Display
from bilevel_envs.games.game import Game, Play, as_move, check_picture
from bilevel_envs.games.pairs import Action, State

LEADER, FOLLOWER = AGENTS = ("leader_0", "follower_0")
RENDER_MODES = ["rgb_array", "human"]


def check_game(game: object) -> None:
    """Refuses what is no game with a TypeError."""
    check_instance(game, "game")
    missing = lacking(game, ["game_states", "leader_actions", "follower_actions", "advance"])
    if missing:
        raise TypeError(
            f"`game` must be a Game, got {type(game).__name__}, which lacks {', '.join(missing)}: of an environment "
            "made of one take `env.unwrapped.problem`"
        )


class TwoPlayerForm:
    """What both forms share: the game, its current play, and its picture."""

    def __init__(
        self, game: Game, name: str | None, max_cycles: int | None, render_mode: str | None, follower_sees: gym.Space
    ) -> None:
        check_picture(game, render_mode, RENDER_MODES)
        self.game, self.render_mode = game, render_mode
        self.horizon = (
            check_count(game.horizon, "game.horizon") if max_cycles is None else check_count(max_cycles, "max_cycles")
        )
        self.metadata = {
            "name": type(game).__name__ if name is None else name,
            "render_modes": RENDER_MODES,
            "render_fps": 10,
            "is_parallelizable": False,
        }
        self.possible_agents = list(AGENTS)
        self.agents: list[str] = []  # none before the first reset
        self._window: Display | None = None
        self._rng = np.random.default_rng()
        # Own copies: a space carries the generator that samples from it.
        self._actions = {LEADER: deepcopy(game.leader_actions), FOLLOWER: deepcopy(game.follower_actions)}
        self._observed = {LEADER: deepcopy(game.game_states), FOLLOWER: deepcopy(follower_sees)}

    def observation_space(self, agent: str) -> gym.Space:
        """What the agent observes."""
        check_choice(agent, AGENTS, "agent")
        return self._observed[agent]

    def action_space(self, agent: str) -> gym.Space:
        """The agent's actions."""
        check_choice(agent, AGENTS, "agent")
        return self._actions[agent]

    def observe_follower(self, state: State, leader_action: Action) -> np.ndarray:
        """What follower_0 sees at `state` once the leader has drawn `leader_action`."""
        return self.game.observe_follower(state, leader_action)

    def render(self) -> np.ndarray | None:
        """The present state as a picture, uint8 [height, width, 3]; None in mode "human", which draws by itself."""
        if self.render_mode is None:
            gym.logger.warn('no picture: make the environment with render_mode="rgb_array" or "human"')
            return None
        picture = self._play.picture()
        if self.render_mode == "rgb_array":
            return picture
        if self._window is None:
            self._window = import_module("bilevel_envs.rendering.window").Window(self.metadata["render_fps"])
        self._window.show(picture)
        return None

    def close(self) -> None:
        """Closes the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def state(self) -> np.ndarray:
        """The state of the game, as an array."""
        return np.asarray(self._play.state)

    def _begin(self, seed: int | None) -> None:
        if seed is not None:
            self._rng, _ = gym.utils.seeding.np_random(seed)
        self.agents = list(AGENTS)
        self._play = Play(self.game, self.horizon, self._rng)

    def _checked(self, agent: str, action: object) -> Action:
        """The action as an int or an array; refuses what lies outside its agent's space."""
        move = as_move(self._actions[agent], action)
        if move is None:
            raise ValueError(f"the action of {agent} must lie in {self._actions[agent]}, got {action!r}")
        return move

    def _moved(
        self, leader_action: Action, action: Action
    ) -> tuple[dict[str, float], bool, bool, dict[str, dict[str, int]]]:
        """One step of the game: both rewards, whether it is over, whether the time is up, and both infos."""
        r_leader, r_follower, terminated, truncated = self._play.move(leader_action, action)
        infos = {agent: {"step": self._play.step - 1} for agent in AGENTS}
        return {LEADER: r_leader, FOLLOWER: r_follower}, terminated, truncated, infos

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()


class GameEnv(TwoPlayerForm, AECEnv):
    """Turns: leader_0 observes s and draws a; follower_0 observes (s, a) and answers; then both are paid.

    Before the leader has moved, `observe("follower_0")` shows the leader's action as 0. A follower that does not see
    the draw (`game.sees_leader`) observes s alone, in this form and the other.

    Args:
      game: the game.
      name: for `metadata`; None for that of the game's class.
      max_cycles: steps of the game before truncation; None for the game's own.
      render_mode: "rgb_array", "human" or None.
    """

    def __init__(
        self, game: Game, name: str | None = None, max_cycles: int | None = None, render_mode: str | None = None
    ) -> None:
        check_game(game)
        AECEnv.__init__(self)
        TwoPlayerForm.__init__(self, game, name, max_cycles, render_mode, game.seen_space)

    def reset(self, seed: int | None = None, options: dict | None = None) -> None:
        """Starts an episode; what is left to chance is drawn from the stream of the last `seed`."""
        self._begin(seed)
        self.rewards = dict.fromkeys(AGENTS, 0.0)
        self._cumulative_rewards = dict.fromkeys(AGENTS, 0.0)
        self.terminations = dict.fromkeys(AGENTS, False)
        self.truncations = dict.fromkeys(AGENTS, False)
        self.infos: dict[str, dict[str, int]] = {agent: {} for agent in AGENTS}
        self.agent_selection = LEADER
        self._leader_action: Action | None = None
        self._show()

    def observe(self, agent: str) -> np.ndarray:
        """The state for the leader, (s, a) for the follower."""
        check_choice(agent, AGENTS, "agent")
        if agent == LEADER:
            return self.state()
        nothing = np.zeros(self.game.leader_actions.shape or ())
        shown = nothing if self._leader_action is None else self._leader_action
        return self.observe_follower(self._play.state, shown)

    def step(self, action: object) -> None:
        """The move of the agent whose turn it is."""
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        action = self._checked(agent, action)
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        if self._leader_action is None:  # the turn is the leader's
            self._leader_action, self.agent_selection = action, FOLLOWER
        else:
            self.rewards, terminated, truncated, self.infos = self._moved(self._leader_action, action)
            self.terminations, self.truncations = dict.fromkeys(AGENTS, terminated), dict.fromkeys(AGENTS, truncated)
            self._leader_action, self.agent_selection = None, LEADER
            self._show()
        self._accumulate_rewards()


class ParallelGameEnv(TwoPlayerForm, ParallelEnv):
    """Both agents' moves at once; whoever calls draws a first and lets the follower see it.

    `observations["follower_0"]` marks the leader's action as not drawn yet; `observe_follower(state, leader_action)`
    is what the follower sees once it is.

    Args:
      game: the game.
      name: for `metadata`; None for that of the game's class.
      max_cycles: steps before truncation; None for the game's own.
      render_mode: "rgb_array", "human" or None.
    """

    def __init__(
        self, game: Game, name: str | None = None, max_cycles: int | None = None, render_mode: str | None = None
    ) -> None:
        check_game(game)
        TwoPlayerForm.__init__(self, game, name, max_cycles, render_mode, game.unseen_space)

    def reset(
        self, seed: int | None = None, options: dict | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
        """Starts an episode; what is left to chance is drawn from the stream of the last `seed`."""
        self._begin(seed)
        self._show()
        return self._observations(), {agent: {} for agent in AGENTS}

    def step(
        self, actions: Mapping[str, object]
    ) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict]]:
        """One step of the game with the moves of both."""
        if not self.agents:
            raise gym.error.ResetNeeded("call `reset` before `step`; the last episode is over or none has begun")
        missing = [agent for agent in AGENTS if agent not in actions]
        if missing:
            raise ValueError(f"`actions` must hold a move of each agent, got none of {', '.join(missing)}")
        moves = [self._checked(agent, actions[agent]) for agent in AGENTS]
        rewards, terminated, truncated, infos = self._moved(*moves)
        self._show()
        observations = self._observations()
        if terminated or truncated:
            self.agents = []
        return observations, rewards, dict.fromkeys(AGENTS, terminated), dict.fromkeys(AGENTS, truncated), infos

    def _observations(self) -> dict[str, np.ndarray]:
        return {LEADER: self.state(), FOLLOWER: self.game.not_drawn(self._play.state)}


def pettingzoo_forms(
    game: Callable[..., Game], name: str
) -> tuple[Callable[..., OrderEnforcingWrapper], Callable[..., GameEnv], Callable[..., ParallelGameEnv]]:
    """The functions `env`, `raw_env` and `parallel_env` that a module of a game has, as PettingZoo's modules do.

    Each takes `render_mode`, `max_cycles`, and the arguments of the game.

    Args:
      game: makes the game; its class.
      name: for `metadata`.
    """

    def raw_env(render_mode: str | None = None, max_cycles: int | None = None, **kwargs: object) -> GameEnv:
        """The game in AEC form: leader_0 moves, then follower_0, who sees its action."""
        return GameEnv(game(**kwargs), name, max_cycles, render_mode)

    def env(**kwargs: Any) -> OrderEnforcingWrapper:
        """The game in AEC form with PettingZoo's order and bounds checks; arguments of `raw_env`."""
        return OrderEnforcingWrapper(raw_env(**kwargs))

    def parallel_env(
        render_mode: str | None = None, max_cycles: int | None = None, **kwargs: object
    ) -> ParallelGameEnv:
        """The game in Parallel form: the caller draws a, then b given a (`observe_follower`), and steps with both."""
        return ParallelGameEnv(game(**kwargs), name, max_cycles, render_mode)

    for made in (raw_env, env, parallel_env):  # as if written in the game's own module
        made.__module__, made.__qualname__ = game.__module__, made.__name__
    return env, raw_env, parallel_env
