"""Tests of draws against a law, at a level that makes a false alarm of a whole report unlikely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr, chdtrc, ndtr

LEVEL = 1e-4  # of a report: how likely a conforming subject is to be told of a fault
TESTS = 20  # that a report holds at most
SHARE = LEVEL / TESTS  # of each
FEWEST = 5.0  # draws that a cell of a chi-square test is to expect


def chi_square(observed: Sequence[np.ndarray], probability: Sequence[np.ndarray]) -> float:
    """The p-value of rows of counts, each drawn from its own probabilities; cells that expect few draws are merged.

    Args:
      observed: counts of each row, [K_i].
      probability: of each row's cells, [K_i], above 0.
    """
    statistic, freedom = 0.0, 0
    for counts, p in zip(observed, probability, strict=True):
        expected = counts.sum() * p
        order = np.argsort(expected)
        rare = order[np.cumsum(expected[order]) < FEWEST]  # merged with the next one
        keep = np.setdiff1d(order, rare)
        if len(keep) < 2:
            continue
        merged, hoped = counts[keep].astype(float), expected[keep]
        least = int(np.argmin(hoped))
        merged[least] += counts[rare].sum()
        hoped[least] += expected[rare].sum()
        if hoped.min() < FEWEST:
            continue
        statistic += float(((merged - hoped) ** 2 / hoped).sum())
        freedom += len(keep) - 1
    return float(chdtrc(freedom, statistic)) if freedom else 1.0


def binomial(counts: np.ndarray, draws: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Exact two-sided p-values of counts [K] among so many draws [K], each with its probability [K]."""
    below = bdtr(counts, draws, probability)
    above = 1 - np.where(counts > 0, bdtr(np.maximum(counts - 1, 0), draws, probability), 0.0)
    return np.minimum(1.0, 2 * np.minimum(below, above))


def uniform(draws: np.ndarray, cells: int = 10) -> float:
    """The p-value of numbers [N] that should be uniform in [0, 1], by chi-square on cells of equal size."""
    counts = np.bincount(np.clip((draws * cells).astype(int), 0, cells - 1), minlength=cells)
    return chi_square([counts], [np.full(cells, 1 / cells)])


def two_sided(z: float) -> float:
    """The p-value of a standard normal number."""
    return float(2 * ndtr(-abs(z)))


def z_score(sample: np.ndarray, mean: float = 0.0) -> float:
    """(mean of the sample − mean) / its standard error; 0 where both agree exactly, ∞ where only one value occurs."""
    off = float(sample.mean() - mean)
    error = float(sample.std(ddof=1)) / len(sample) ** 0.5
    if error > 0:
        return off / error
    return 0.0 if abs(off) <= 1e-9 * (1 + abs(mean)) else float("inf")
