"""Agents of Stable-Baselines3 as data: parameters, counters and replay buffers, without any object that is pickled.

SB3's own archives hold pickled objects, which run code when they are read. A file of ours may come from a stranger.
"""

from __future__ import annotations

import copy
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.followers.sb3.agents import arguments_of, stores

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.buffers import ReplayBuffer

PLAIN = (bool, int, float)
State: TypeAlias = dict[str, Any]


def agent_state(agent: BaseAlgorithm, with_buffer: bool) -> State:
    """What an agent has learnt: tensors and numbers, by name.

    Args:
      agent: the agent.
      with_buffer: whether its replay buffer, if it has one, is kept, too.
    """
    buffer = _buffer_state(cast("ReplayBuffer", agent.replay_buffer)) if stores(agent) and with_buffer else None
    return {"parameters": copy.deepcopy(agent.get_parameters()), "counters": _plain(agent), "buffer": buffer}


def checked(states: object) -> list[State]:
    """Agents' states as `agent_state` makes them; what they hold is held against an agent by `restore_agent`.

    Raises:
      ValueError: if they are none.
    """
    kinds = {"parameters": (dict,), "counters": (dict,), "buffer": (dict, NoneType)}
    for state in states if isinstance(states, list) else [states]:
        if not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in kinds.items()):
            raise ValueError("`state` must hold the parameters, counters and replay buffers of agents; it does not")
    return list(cast("list[State]", states))


def restore_agent(agent: BaseAlgorithm, state: State) -> None:
    """Puts back what `agent_state` gave into an agent that was made with the same settings.

    Raises:
      ValueError: if it was another one's.
    """
    side_by_side = state["counters"].get("n_envs", agent.n_envs)
    if side_by_side != agent.n_envs:
        raise ValueError(
            f"`envs` must be {side_by_side}, as the {type(agent).__name__} was saved with, got {agent.n_envs}"
        )
    try:
        agent.set_parameters(state["parameters"], exact_match=True, device="cpu")
        counters, own = state["counters"], _plain(agent)
        vars(agent).update({name: value for name, value in counters.items() if name in own and type(value) in PLAIN})
        if state["buffer"] is not None and stores(agent):
            _restore_buffer(cast("ReplayBuffer", agent.replay_buffer), state["buffer"])
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"`follower` must be the {type(agent).__name__} that was saved, with the same arguments; what was saved "
            f"does not fit ({error})"
        ) from error


def _plain(agent: BaseAlgorithm) -> dict[str, bool | int | float]:
    """Numbers among an agent's attributes that are not its constructor's arguments."""
    given = arguments_of(type(agent))
    return {name: value for name, value in vars(agent).items() if type(value) in PLAIN and name not in given}


def _buffer_state(buffer: ReplayBuffer) -> State:
    """The transitions stored, [size, n_envs, ...] by name, and where the next one goes."""
    arrays = {name: value for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}
    stored = {name: torch.from_numpy(value[: buffer.size()].copy()) for name, value in arrays.items()}
    return {"arrays": stored, "pos": buffer.pos, "full": buffer.full}


def _restore_buffer(buffer: ReplayBuffer, state: State) -> None:
    for name, stored in state["arrays"].items():
        array, kept = vars(buffer)[name], cast(Tensor, stored).numpy()
        if array.shape[2:] != kept.shape[2:]:  # components, whose number the first step tells
            array = vars(buffer)[name] = np.empty((*array.shape[:2], *kept.shape[2:]), array.dtype)
        array[: len(kept)] = kept
    buffer.pos, buffer.full = int(state["pos"]), bool(state["full"])
