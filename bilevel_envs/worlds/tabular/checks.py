"""Whether a policy, states and actions fit a table: what is checked before compiled code indexes it with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bilevel_envs.core.checks import check_table_size
from bilevel_envs.core.follower import Policy
from bilevel_envs.core.mdp import kind_of
from bilevel_envs.worlds.tabular.model import TabularModel

SLACK = 1e-5  # by which probabilities may miss a sum of 1; networks answer in single precision


def table_in(part: object, name: str) -> Tensor | None:
    """The table of that name which a policy or a value function holds; None where it is made of something else."""
    table = None if kind_of(part) == "missing" else getattr(part, name, None)
    return table if isinstance(table, Tensor) else None


def check_table_policy(policy: Policy, runs: int, model: TabularModel) -> None:
    """Refuses a policy for another kind of world, and a table of probabilities that is none of so many runs in a model.

    Raises:
      TypeError: if it is one for another kind of world.
      ValueError: if it has another number of runs, states or actions, or is no distribution.
    """
    if kind_of(policy) not in (None, model.kind):
        raise TypeError(f"`policy` must be one for a TabularModel, got a {type(policy).__name__}")
    probs = table_in(policy, "probs")
    if probs is None:
        return
    check_table_size(probs, runs, (model.states, model.actions), "policy.probs", "state, action")
    missed = no_distribution(probs)
    if missed is not None:
        raise ValueError(f"`policy` must be a distribution in every state; {missed}")


def no_distribution(probs: Tensor) -> str | None:
    """Where probabilities [R, S, B] do not sum to 1 over actions, in words; None where all do."""
    sums = probs.detach().numpy().sum(-1)
    right = np.abs(sums - 1) <= SLACK  # False for NaN
    if right.all():
        return None
    run, state = np.argwhere(~right)[0]
    return f"in state {state} of run {run} its probabilities sum to {sums[run, state]:.6g}"


def check_numbers(column: Tensor, entries: Sequence[int], count: int, name: str, what: str) -> None:
    """Refuses with a ValueError what are no numbers of a table's states or actions.

    Args:
      column: the numbers.
      entries: shape of what should be a single number.
      count: how many there are.
      name: whose numbers they are.
      what: "states" or "actions".
    """
    if len(entries) or column.is_floating_point():
        got = f"{column.dtype} of shape {list(entries)}"
        raise ValueError(f"`{name}` must be whole numbers, one a step, in a world of tables; got {got} each")
    low, high = (int(x) for x in column.aminmax())
    if low < 0 or high >= count:
        remedy = ". A last observation counts, too: give the table a state for it" if what == "states" else ""
        raise ValueError(
            f"`{name}` must lie in 0 … {count - 1}, the {what} of the environment's `model`; got {low} … {high}{remedy}"
        )
