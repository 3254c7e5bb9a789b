"""Values of a few seeds as a table shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import t


def with_interval(values: Sequence[float], digits: int = 2) -> str:
    """Each value, and from three on before them their mean with a 95 % interval of Student's t."""
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    if len(values) < 3:
        return each
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f} ({each})"
