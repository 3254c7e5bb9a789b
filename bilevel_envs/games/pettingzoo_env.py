"""A game as PettingZoo environments: agents take turns (AEC), or step together (Parallel)."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import AECEnv, ParallelEnv

from bilevel_envs.core.checks import check_choice, check_count, check_instance
from bilevel_envs.games.tables import MarkovGame

LEADER, FOLLOWER = AGENTS = ("leader_0", "follower_0")
RENDER_MODES = ["rgb_array", "human"]


class _GameFace:
    """What both forms share: the game, its clock, its path and its picture."""

    def __init__(self, game: MarkovGame, name: str, max_cycles: int | None, render_mode: str | None) -> None:
        check_instance(game, "game")
        check_choice(render_mode, [None, *RENDER_MODES], "render_mode")
        self.game, self.render_mode = game, render_mode
        self.horizon = (
            check_count(game.horizon, "game.horizon") if max_cycles is None else check_count(max_cycles, "max_cycles")
        )
        self.metadata = {"name": name, "render_modes": RENDER_MODES, "render_fps": 10, "is_parallelizable": False}
        self.possible_agents = list(AGENTS)
        self.agents: list[str] = []  # none before the first reset
        self._window: Any = None
        self._rng = np.random.default_rng()
        # Own copies: a space carries the generator that samples from it.
        self._actions = {LEADER: deepcopy(game.leader_actions), FOLLOWER: deepcopy(game.follower_actions)}
        self._observed = {LEADER: deepcopy(game.game_states), FOLLOWER: deepcopy(self._follower_sees(game))}

    def _follower_sees(self, game: MarkovGame) -> gym.Space:
        raise NotImplementedError

    def observation_space(self, agent: str) -> gym.Space:
        """What the agent observes."""
        check_choice(agent, AGENTS, "agent")
        return self._observed[agent]

    def action_space(self, agent: str) -> gym.Space:
        """The agent's actions."""
        check_choice(agent, AGENTS, "agent")
        return self._actions[agent]

    def observe_follower(self, state: Any, leader_action: Any) -> Any:
        """What follower_0 sees at `state` once the leader has drawn `leader_action`."""
        return self.game.observe_follower(state, leader_action)

    def render(self) -> np.ndarray | None:
        """The present state as a picture, uint8 [height, width, 3]; None in mode "human", which draws by itself."""
        if self.render_mode is None:
            gym.logger.warn('no picture: make the environment with render_mode="rgb_array" or "human"')
            return None
        picture = self.game.draw_game(self._path, self._state)
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
        return np.asarray(self._state)

    def _begin(self, seed: int | None) -> None:
        if seed is not None:
            self._rng, _ = gym.utils.seeding.np_random(seed)
        self.agents = list(AGENTS)
        self._state, self._path, self._step = self.game.first_state(self._rng), [], 0  # type: ignore[var-annotated]

    def _checked(self, agent: str, action: Any) -> Any:
        """The action as an int or an array; refuses what lies outside its agent's space."""
        space, array = self._actions[agent], np.asarray(action)
        if isinstance(space, gym.spaces.Discrete):
            if array.dtype.kind in "iu" and array.size == 1 and 0 <= int(array.reshape(())) < space.n:
                return int(array.reshape(()))
        elif array.dtype.kind in "fiu" and array.shape == space.shape and np.isfinite(array).all():
            return array
        raise ValueError(f"the action of {agent} must lie in {space}, got {action!r}")

    def _play(self, leader_action: Any, action: Any) -> tuple[dict[str, float], bool, bool]:
        """One step of the game: both rewards, whether it is over, and whether the time is up."""
        following, r_leader, r_follower = self.game.advance(self._state, leader_action, action)
        self._path.append((self._state, leader_action, action))
        self._state, self._step = following, self._step + 1
        rewards = {LEADER: r_leader, FOLLOWER: r_follower}
        return rewards, bool(self.game.ends(following)), self._step >= self.horizon

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()


class GameEnv(_GameFace, AECEnv):
    """Turns: leader_0 observes s and draws a; follower_0 observes (s, a) and answers; then both are paid.

    Before the leader has moved, `observe("follower_0")` shows the leader's action as 0.

    Args:
      game: the game.
      name: for `metadata`.
      max_cycles: steps of the game before truncation; None for the game's own.
      render_mode: "rgb_array", "human" or None.
    """

    def __init__(self, game: MarkovGame, name: str, max_cycles: int | None, render_mode: str | None) -> None:
        AECEnv.__init__(self)
        _GameFace.__init__(self, game, name, max_cycles, render_mode)

    def _follower_sees(self, game: MarkovGame) -> gym.Space:
        return game.seen_space

    def reset(self, seed: int | None = None, options: dict | None = None) -> None:
        """Starts an episode; the first state is all that is ever drawn, from the stream of the last `seed`."""
        self._begin(seed)
        self.rewards = dict.fromkeys(AGENTS, 0.0)
        self._cumulative_rewards = dict.fromkeys(AGENTS, 0.0)
        self.terminations = dict.fromkeys(AGENTS, False)
        self.truncations = dict.fromkeys(AGENTS, False)
        self.infos: dict[str, dict[str, Any]] = {agent: {} for agent in AGENTS}
        self.agent_selection = LEADER
        self._leader_action: Any = None
        self._show()

    def observe(self, agent: str) -> Any:
        """The state for the leader, (s, a) for the follower."""
        check_choice(agent, AGENTS, "agent")
        if agent == LEADER:
            return self.state()
        nothing = np.zeros(self.game.leader_actions.shape or ())
        shown = nothing if self._leader_action is None else self._leader_action
        return self.game.observe_follower(self._state, shown)

    def step(self, action: Any) -> None:
        """The move of the agent whose turn it is."""
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        action = self._checked(agent, action)
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        if agent == LEADER:
            self._leader_action, self.agent_selection = action, FOLLOWER
        else:
            self.rewards, terminated, truncated = self._play(self._leader_action, action)
            self.infos = {one: {"step": self._step - 1} for one in AGENTS}
            self.terminations, self.truncations = dict.fromkeys(AGENTS, terminated), dict.fromkeys(AGENTS, truncated)
            self._leader_action, self.agent_selection = None, LEADER
            self._show()
        self._accumulate_rewards()


class ParallelGameEnv(_GameFace, ParallelEnv):
    """Both agents' moves at once; whoever calls draws a first and lets the follower see it.

    `observations["follower_0"]` marks the leader's action as not drawn yet; `observe_follower(state, leader_action)`
    is what the follower sees once it is.

    Args:
      game: the game.
      name: for `metadata`.
      max_cycles: steps before truncation; None for the game's own.
      render_mode: "rgb_array", "human" or None.
    """

    def __init__(self, game: MarkovGame, name: str, max_cycles: int | None, render_mode: str | None) -> None:
        _GameFace.__init__(self, game, name, max_cycles, render_mode)

    def _follower_sees(self, game: MarkovGame) -> gym.Space:
        return game.unseen_space

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, dict]]:
        """Starts an episode; the first state is all that is ever drawn, from the stream of the last `seed`."""
        self._begin(seed)
        self._show()
        return self._observations(), {agent: {} for agent in AGENTS}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict]]:
        """One step of the game with the moves of both."""
        if not self.agents:
            raise gym.error.ResetNeeded("call `reset` before `step`; the last episode is over or none has begun")
        missing = [agent for agent in AGENTS if agent not in actions]
        if missing:
            raise ValueError(f"`actions` must hold a move of each agent, got none of {', '.join(missing)}")
        rewards, terminated, truncated = self._play(*(self._checked(agent, actions[agent]) for agent in AGENTS))
        infos = {agent: {"step": self._step - 1} for agent in AGENTS}
        self._show()
        observations = self._observations()
        if terminated or truncated:
            self.agents = []
        return observations, rewards, dict.fromkeys(AGENTS, terminated), dict.fromkeys(AGENTS, truncated), infos

    def _observations(self) -> dict[str, Any]:
        return {LEADER: self.state(), FOLLOWER: self.game.not_drawn(self._state)}
