"""The leader's objective and its hypergradient without sampling: the truth that estimators are held against."""

from leaders.exact.multi_start import MultiStart, multi_start
from leaders.exact.solve import (
    best_response,
    evaluates,
    hypergradient,
    hypergradient_parts,
    objective,
    parts,
    raw_gradient,
    solves,
    surrogates,
    value,
    value_and_surrogates,
)

__all__ = [
    "MultiStart",
    "best_response",
    "evaluates",
    "hypergradient",
    "hypergradient_parts",
    "multi_start",
    "objective",
    "parts",
    "raw_gradient",
    "solves",
    "surrogates",
    "value",
    "value_and_surrogates",
]
