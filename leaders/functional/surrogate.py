"""The scalar whose gradient is the hypergradient."""

from __future__ import annotations

import torch
from torch import Tensor

from bilevel_envs.core.batch import Terms
from leaders.functional.weights import Weights


def surrogate(terms: Terms, weights: Weights) -> Tensor:
    """⟨weights, terms⟩ of each run, [R]; one backward pass through its sum serves all runs and any dim θ.

    Terms that do not depend on θ are absent; if none does, the result is 0 and carries no gradient.
    """
    pairs = [
        (terms.r_leader, weights.r_leader),
        (terms.r_follower, weights.r_follower),
        (terms.log_start, weights.log_start),
        (terms.log_arrival, weights.log_arrival),
        (terms.expected_r_follower, weights.expected_r_follower),
        (terms.mean_next, weights.mean_next),
        (terms.mean_start, weights.mean_start),
    ]
    total = torch.zeros(weights.r_leader.shape[0], dtype=weights.r_leader.dtype)
    for term, weight in pairs:
        if term is not None and weight is not None:
            total = total + (weight * term).flatten(1).sum(1)
    return total
