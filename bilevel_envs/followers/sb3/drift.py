"""How far a follower's policy has moved from one response to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.follower import FollowerTask, Policy, action_shape_of, has_nodes
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy

LEAST = -100.0  # log-probabilities below count as this, so that an action that was impossible counts finitely


def drift(task: FollowerTask, policy: Policy, before: Policy, seen: Sequence[np.ndarray], noise: Noise) -> Tensor:
    """KL(g ‖ g before) of each run, [R], over a table's states as `policy` visits them, elsewhere over those seen.

    Args:
      task: the world at θ.
      policy: g.
      before: g of the response before.
      seen: of each run, observations [K, n].
      noise: draws an action at each state, where they cannot be summed over.
    """
    if task.model.kind == "tabular":
        now, old = cast(BoltzmannPolicy, policy), cast(BoltzmannPolicy, before)
        return _visited(cast(TabularModel, task.model), now, old, task.preferences.gamma_follower)
    shortest = min(len(one) for one in seen)
    state = torch.from_numpy(np.stack([one[-shortest:] for one in seen])).double()
    if has_nodes(policy) and (nodes := policy.action_nodes(state)) is not None:
        action, weight = nodes
        state = state[:, :, None].expand(*action.shape[:3], -1)
    else:
        action = policy.sample(state, noise.uniform(shortest, *action_shape_of(policy)))
        weight = torch.ones(1, 1, dtype=torch.float64)
    gained = policy.log_prob(state, action).clamp(min=LEAST) - before.log_prob(state, action).clamp(min=LEAST)
    return (weight * gained).flatten(1).sum(1) / shortest


def _visited(model: TabularModel, policy: BoltzmannPolicy, before: BoltzmannPolicy, gamma: float) -> Tensor:
    """(1 − γ) E Σ_t γ^t KL(s_t) under g, exactly, [R]."""
    gained = policy.log_probs.clamp(min=LEAST) - before.log_probs.clamp(min=LEAST)
    discounted = model.resolvent(policy.probs, gamma, (policy.probs * gained).sum(-1))
    return (1 - gamma) * (model.initial * discounted).sum(-1)
