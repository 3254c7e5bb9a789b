"""The leader's objective and its hypergradient without sampling: the truth that estimators are held against."""

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
)

__all__ = [
    "best_response",
    "evaluates",
    "hypergradient",
    "hypergradient_parts",
    "objective",
    "parts",
    "raw_gradient",
    "solves",
    "surrogates",
    "value",
]
